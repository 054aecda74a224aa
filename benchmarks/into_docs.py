"""Puts the tables and pictures of benchmarks/results into the docs.

    python benchmarks/into_docs.py            # write
    python benchmarks/into_docs.py --check    # exit 1 when a page shows other figures than benchmarks/results

A page holds `<!-- results: NAME -->` … `<!-- end -->`, with the content of benchmarks/results/NAME.md in between.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
_BLOCK = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with the current results in its blocks."""

    def block(match: re.Match[str]) -> str:
        text = (RESULTS / f"{match['name']}.md").read_text(encoding="utf-8").strip()
        text = re.sub(r"^#", "###", text, flags=re.MULTILINE)  # below the page's own headings
        return f"{match[1]}\n{text}\n\n{match[3]}"

    return _BLOCK.sub(block, page)


def main() -> None:
    """Writes or checks."""
    check = "--check" in sys.argv[1:]
    stale = []
    for file in sorted((ROOT / "docs").rglob("*.md")):
        before = file.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            stale.append(str(file.relative_to(ROOT)))
            if not check:
                file.write_text(after, encoding="utf-8")
    for picture in sorted(RESULTS.glob("*.png")):
        copy = IMAGES / picture.name
        if not copy.is_file() or copy.read_bytes() != picture.read_bytes():
            stale.append(str(copy.relative_to(ROOT)))
            if not check:
                IMAGES.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(picture.read_bytes())
    print("\n".join(stale) or "the docs show the present results")
    if check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
