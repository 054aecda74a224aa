"""Builds the documentation: `python tools/docs.py build`, `serve` or `prepare`.

Pages are prepared as plain Markdown in `build/docs` (notebooks, references, mathematics and figures included), which
`mkdocs.yml` then builds without any plugin of our own: another generator that reads `mkdocs.yml` can do the same.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

from architecture import table as rooms_table
from docs_json import json_page, json_schema_text
from docs_math import outside_code, with_mathml
from docs_notebooks import notebook_pages
from docs_reference import checks_table, cli_page, recipe_page, recipes_page, schema_json

ROOT = Path(__file__).resolve().parents[1]
PREPARED = ROOT / "build" / "docs"
_WATCHED = ("docs", "notebooks", "recipes", "optimsyn", "tools", "CHANGELOG.md", "CONTRIBUTING.md", "AGENTS.md")

# Files of the repository and the page that shows each.
_PAGES = {
    "README.md": "index.md",
    "README.ko.md": "index.ko.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "AGENTS.md": "agents.md",
    "LICENSE": "licence.md",
    "NOTICE": "licence.md",
}
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s#]+)((?:#[^)\s]*)?\))")
# Placeholder for the table of validity checks.
_CHECKS = "<!-- checks -->"
# Placeholder for the table of packages.
_ROOMS = "<!-- rooms -->"
_FIGURE = re.compile(r"^!\[(?P<caption>[^\]]*)\]\((?P<path>[^)\s]+\.svg)\)$", re.MULTILINE)


def pages() -> dict[str, str | bytes]:
    """Every file of the site's source: path in the site to content."""
    contents: dict[str, str | bytes] = {}
    sources: dict[str, str] = {}  # page -> its file in the repository
    for path in sorted((ROOT / "docs").rglob("*")):
        if path.is_file():
            name = path.relative_to(ROOT / "docs").as_posix()
            contents[name] = path.read_text(encoding="utf-8") if path.suffix == ".md" else path.read_bytes()
            sources[name] = f"docs/{name}"
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "AGENTS.md"):
        contents[_PAGES[name]] = (ROOT / name).read_text(encoding="utf-8")
        sources[_PAGES[name]] = name
    contents["licence.md"] = _licence()
    contents["reference/recipe.md"] = recipe_page()
    contents["reference/recipe.schema.json"] = schema_json()
    contents["reference/cli.md"] = cli_page()
    contents["reference/json.md"] = json_page()
    contents["reference/json.schema.json"] = json_schema_text()
    contents["reference/recipes.md"] = recipes_page(ROOT / "recipes")
    for name, content in notebook_pages(ROOT / "notebooks").items():
        contents[name] = content
        sources[name] = name
    for name, content in contents.items():
        if isinstance(content, str) and name.endswith(".md"):
            if _CHECKS in content:
                content = content.replace(_CHECKS, checks_table())
            if _ROOMS in content:
                content = content.replace(_ROOMS, rooms_table())
            source = sources.get(name, f"docs/{name}")
            text = outside_code(content, lambda part, s=source, n=name: _relinked(part, s, n))  # type: ignore[misc]
            contents[name] = _with_figures(with_mathml(text), source)
    return contents


def prepare(folder: Path = PREPARED) -> None:
    """Writes changed pages and removes obsolete ones."""
    contents = pages()
    for name, content in contents.items():
        data = content.encode() if isinstance(content, str) else content
        path = folder / name
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in contents:
            path.unlink()


def _licence() -> str:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8").rstrip()
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8").rstrip()
    return f"# Licence\n\n## Notice\n\n```text\n{notice}\n```\n\n## Apache License 2.0\n\n```text\n{licence}\n```\n"


def _relinked(text: str, source: str, page: str) -> str:
    """Links between files of the repository as links between pages."""

    def change(match: re.Match[str]) -> str:
        target = _normal(PurePosixPath(source).parent / match[2])
        if target in _PAGES:
            there = _PAGES[target]
        elif target.startswith("docs/"):
            there = target.removeprefix("docs/")
        elif target.startswith("notebooks/") and target.endswith(".ipynb"):
            there = target.removesuffix(".ipynb") + ".md"
        elif target.startswith("recipes/") and target.endswith(".yaml"):
            stem = PurePosixPath(target).stem
            return f"{match[1]}{_relative('reference/recipes.md', page)}#{stem})"
        else:
            return match[0]
        return f"{match[1]}{_relative(there, page)}{match[3]}"

    return _LINK.sub(change, text)


def _normal(path: PurePosixPath) -> str:
    return os.path.normpath(str(path)).replace(os.sep, "/")


def _relative(there: str, page: str) -> str:
    return os.path.relpath(there, str(PurePosixPath(page).parent)).replace(os.sep, "/")


def _with_figures(text: str, source: str) -> str:
    """Images in SVG become part of the page, so that they follow its colours."""

    def change(match: re.Match[str]) -> str:
        svg = (ROOT / PurePosixPath(source).parent / match["path"]).read_text(encoding="utf-8")
        svg = re.sub(r"\n\s*", " ", svg.strip())
        caption = f"<figcaption>{match['caption']}</figcaption>" if match["caption"] else ""
        return f'<figure class="drawn {Path(match["path"]).stem}">{svg}{caption}</figure>'

    return outside_code(text, lambda part: _FIGURE.sub(change, part))


def build() -> int:
    """Prepares and builds the site strictly into `site/`."""
    prepare()
    done = subprocess.run([*_mkdocs(), "build", "--strict", "--quiet", "--clean"], cwd=ROOT, check=False)
    if done.returncode == 0:
        sys.stdout.write(f"built: {ROOT / 'site' / 'index.html'}\n")
    return done.returncode


def serve() -> int:
    """Serves the site, and prepares it again whenever a source changes."""
    prepare()
    server = subprocess.Popen([*_mkdocs(), "serve"], cwd=ROOT)
    newest = _newest()
    try:
        while server.poll() is None:
            time.sleep(1)
            if (changed := _newest()) != newest:
                newest = changed
                # A new process, so that the reference reads the current code.
                subprocess.run([sys.executable, __file__, "prepare"], cwd=ROOT, check=False)
    except KeyboardInterrupt:
        server.terminate()
    return server.wait()


def _newest() -> float:
    files = (f for name in _WATCHED for f in ((ROOT / name).rglob("*") if (ROOT / name).is_dir() else [ROOT / name]))
    return max(
        file.stat().st_mtime for file in files if file.suffix in {".md", ".py", ".ipynb", ".yaml", ".svg", ".css"}
    )


def _mkdocs() -> list[str]:
    # The theme's advertisement for its successor.
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
    return [sys.executable, "-m", "mkdocs"]


def main() -> int:
    """Runs the command that the first argument names."""
    commands = {"build": build, "serve": serve, "prepare": lambda: prepare() or 0}
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in commands:
        sys.stderr.write(f"use: python tools/docs.py {'|'.join(commands)}\n")
        return 2
    return commands[name]()


if __name__ == "__main__":
    sys.exit(main())
