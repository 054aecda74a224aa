"""Generates the `.ipynb` beside each percent-format notebook; with `--check` it only says which ones differ."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def generated(source: Path) -> Any:
    """The notebook of a percent-format file, with stable cell ids and no execution metadata."""
    notebook = jupytext.read(source, fmt="py:percent")
    cells = []
    for number, cell in enumerate(notebook.cells, 1):
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        cells.append(make(cell.source, id=f"{source.stem}-{number}", metadata=metadata))
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def cells_of(notebook: Any) -> list[tuple[str, str, str, list[str]]]:
    """What must match between the two forms: kind, id, source and tags of each cell."""
    return [(cell.cell_type, cell.id, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def main() -> int:
    """Writes or checks every notebook; the exit code is 1 when `--check` finds one that differs."""
    check = "--check" in sys.argv[1:]
    stale = []
    for source in sorted(FOLDER.glob("*.py")):
        target = source.with_suffix(".ipynb")
        wanted = generated(source)
        if target.is_file() and cells_of(nbformat.read(target, as_version=4)) == cells_of(wanted):
            continue
        stale.append(target.name)
        if not check:
            target.write_text(nbformat.writes(wanted, version=4) + "\n", encoding="utf-8")
    if stale:
        sys.stdout.write(f"{'differ from their .py' if check else 'written'}: {', '.join(stale)}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
