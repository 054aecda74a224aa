"""Draws which package imports which: `python tools/architecture.py`, or with `--check`.

The order is that of the contract in `pyproject.toml`. The picture does not say how often, so that it changes only when
a room begins or ceases to use another one.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "figures" / "architecture.svg"

_CELL, _LEFT, _TOP = 27, 96, 84
_STYLE = """\
.fg-u{fill:var(--fig-accent,#00796b)}.fg-v{fill:var(--fig-warm,#c4511c)}.fg-b{fill:var(--fig-box,#eef5f4)}
.fg-d{fill:var(--fig-learned,#d7efe9);stroke:var(--fig-accent,#00796b);stroke-width:1.5}
.fg-t{fill:var(--fig-ink,#1b2a2e)}.fg-q{fill:var(--fig-quiet,#5d6f73)}.fg-w{fill:var(--fig-warm,#c4511c)}
text{font-size:16px}.fg-s{font-size:13.5px}.fg-bold{font-weight:600}.fg-m{text-anchor:middle}.fg-e{text-anchor:end}"""


def _contracts() -> dict[str, dict[str, object]]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["type"]: contract for contract in config["tool"]["importlinter"]["contracts"]}


def rooms() -> list[str]:
    """The packages, topmost layer first."""
    return list(_contracts()["layers"]["layers"])  # type: ignore[call-overload]


def purposes() -> dict[str, str]:
    """The purpose of each package: the first line of its docstring."""
    purposes_by_room = {}
    for room in rooms():
        folder = ROOT / "optimsyn" / room
        path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        purposes_by_room[room] = text.partition("\n")[0]
    return purposes_by_room


def imports() -> set[tuple[str, str]]:
    """Pairs of a package and its import: another package, or a library that takes seconds to load."""
    import grimp  # installed with import-linter; the docs' table does not need it

    heavy: list[str] = list(_contracts()["forbidden"]["forbidden_modules"])  # type: ignore[call-overload]
    graph = grimp.build_graph("optimsyn", include_external_packages=True, cache_dir=None)
    modules = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            room = module.split(".")[1] if module.count(".") else ""
            parts = imported.split(".")
            other = parts[0] if parts[0] in heavy else parts[1] if parts[0] == "optimsyn" and len(parts) > 1 else ""
            if room in rooms() and other and other != room:
                modules.add((room, other))
    return modules


def table() -> str:
    """The table of packages for the page about the architecture."""
    rows = [f"| `{name}` | {text} |" for name, text in purposes().items()]
    return "\n".join(["| room | what lies in it |", "|---|---|", *rows])


def picture() -> str:
    """The picture as SVG: a row and a column per package; a mark where the row imports the column."""
    names, used = rooms(), imports()
    libraries: list[str] = list(_contracts()["forbidden"]["forbidden_modules"])  # type: ignore[call-overload]
    height = _TOP + _CELL * len(names) + 34
    gap = _LEFT + _CELL * len(names) + 14
    width = gap + _CELL * len(libraries) + 36

    def centre(column: int) -> int:
        return (_LEFT if column < len(names) else gap - _CELL * len(names)) + _CELL * column + _CELL // 2

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Which room imports which: every mark is above the diagonal">',
        f"<style>\n{_STYLE}\n</style>",
    ]
    for column, name in enumerate([*names, *libraries]):
        x, y, kind = centre(column), _TOP - 8, "t" if column < len(names) else "w"
        lines.append(
            f'<text class="fg-{kind} fg-s" transform="translate({x + 4} {y}) rotate(-55)">{escape(name)}</text>'
        )
    for row, name in enumerate(names):
        y = _TOP + _CELL * row
        lines.append(f'<text class="fg-t fg-s fg-e" x="{_LEFT - 8}" y="{y + 18}">{escape(name)}</text>')
        for column, other in enumerate([*names, *libraries]):
            x, library = centre(column), column >= len(names)
            kind = "d" if column == row else "b"
            lines.append(f'<rect class="fg-{kind}" x="{x - 12}" y="{y + 1}" width="24" height="24" rx="3"/>')
            if (name, other) in used:
                mark = "v" if library else "u"
                title = f"<title>{escape(name)} imports {escape(other)}</title>"
                lines.append(f'<circle class="fg-{mark}" cx="{x}" cy="{y + 13}" r="7">{title}</circle>')
    lines.append(
        f'<text class="fg-q fg-s" x="{_LEFT}" y="{height - 10}">'
        "a row's room imports the column's; below the diagonal there is nothing</text>"
    )
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    """Writes the picture, or with `--check` checks that it is up to date."""
    if sys.argv[1:] not in ([], ["--check"]):
        sys.stderr.write("use: python tools/architecture.py [--check]\n")
        return 2
    new = picture()
    if not sys.argv[1:]:
        PICTURE.write_text(new, encoding="utf-8")
        return 0
    if PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == new:
        return 0
    sys.stderr.write(f"{PICTURE.relative_to(ROOT)} is not up to date; draw it again: python tools/architecture.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
