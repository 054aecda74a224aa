"""The built site: strictly built, every link, anchor and image there, nothing asked of other servers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest

from tests.docs_helpers import ROOT

pytestmark = pytest.mark.slow


@dataclass
class Page(HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    formulas: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __hash__(self) -> int:
        return id(self)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        if "id" in values:
            self.ids.add(values["id"])
        if tag == "a" and "name" in values:
            self.ids.add(values["name"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in {"img", "script", "source", "iframe"} and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in {"stylesheet", "icon", "preload", "preconnect"}:
            self.loaded.append(values["href"])
        if tag == "math":
            self.formulas += 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    import docs

    docs.prepare(folder / "pages")
    # Paths in the configuration count from its own folder.
    (folder / "tools").symlink_to(ROOT / "tools")
    config = folder / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {folder / 'pages'}\nsite_dir: {folder / 'site'}\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def read(site: Path) -> dict[Path, Page]:
    found = {}
    for path in sorted(site.rglob("*.html")):
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        found[path] = page
    return found


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return read(site)


def broken_links(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Links, images, scripts and styles inside the site that lead nowhere."""
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # served from any address, so its links begin at the root
            continue
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                broken.append(f"{path.relative_to(site)}: {link} (no such anchor)")
    return broken


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<a href="sub/b.html#there">1</a><a href="sub/b.html#not">2</a><a href="c.html">3</a><img src="no.png">'
    )
    (tmp_path / "sub" / "b.html").write_text(
        '<h2 id="there">x</h2><a href="../a.html">4</a><a href="https://x.org">5</a>'
    )
    assert broken_links(tmp_path, read(tmp_path)) == [
        "a.html: sub/b.html#not (no such anchor)",
        "a.html: c.html",
        "a.html: no.png",
    ]


def test_every_link_image_and_anchor_is_there(site: Path, pages: dict[Path, Page]) -> None:
    assert not broken_links(site, pages)


def test_links_to_elsewhere_are_well_formed_and_nothing_is_loaded_from_there(
    site: Path, pages: dict[Path, Page]
) -> None:
    wrong: defaultdict[str, list[str]] = defaultdict(list)
    for path, page in pages.items():
        name = str(path.relative_to(site))
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme and (parts.scheme != "https" or "." not in parts.netloc or " " in link):
                wrong[name].append(link)
        wrong[name] += [link for link in page.loaded if urlsplit(link).netloc]
    assert not {name: links for name, links in wrong.items() if links}


def test_mathematics_is_drawn_without_a_script(site: Path, pages: dict[Path, Page]) -> None:
    assert pages[site / "influence.html"].formulas > 20


def test_every_notebook_has_a_page(site: Path) -> None:
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / f"{notebook.stem}.html").is_file()
        assert (site / "notebooks" / notebook.name).is_file()


def test_pages_carry_what_only_the_code_knows(site: Path) -> None:
    text = {
        name: (site / name).read_text(encoding="utf-8") for name in ("reference/recipe.html", "concepts/reward.html")
    }
    assert "recipe-guiding-text" in text["reference/recipe.html"]
    assert "near_duplicate_question" in text["concepts/reward.html"]


def test_a_page_that_is_opened_as_a_file_has_what_its_search_needs(site: Path, pages: dict[Path, Page]) -> None:
    assert (site / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = {")
    for path, page in pages.items():
        scripts = [name for link in page.loaded if (name := Path(urlsplit(link).path).name).endswith(".js")]
        # The theme's own script asks for a worker, which only this one gives to a file.
        assert scripts[0] == "iframe-worker.js" and scripts[-1].startswith("bundle."), path


_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(_CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("asked", ["influence", "GEPA", "영향도"])
def test_the_search_finds_pages_without_a_server(site: Path, asked: str) -> None:
    address = f"{(site / 'howto' / 'cost.html').as_uri()}?q={quote(asked)}"
    command = [str(_CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000"]
    done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, check=True, timeout=120)
    assert re.search(r"md-search-result__meta\">\s*[1-9]\d* matching document", done.stdout)
