"""Tiny recipes and notebooks for the tests of run folders and of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat

from optimsyn.recipe.recipe import Recipe


def tiny_recipe(**changes: Any) -> Recipe:
    """A valid recipe that names no file which must exist."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "documents": {"source": "embedded:quickstart"},
        "questions": {"validation": "embedded:quickstart"},
        "guiding_text": "Write criteria for a question about one certain fact.",
    }
    return Recipe.parse({**raw, **changes})


def write_notebook(path: Path, *sources: str, parameters: str = 'run_folder: str = ""') -> Path:
    """A notebook of a parameters cell and one code cell for each source."""
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def statuses(path: Path) -> list[str]:
    """papermill's status of every code cell of an executed notebook, without papermill's own marker cells."""
    notebook = nbformat.read(path, as_version=4)
    return [cell.metadata.papermill.status for cell in notebook.cells if cell.cell_type == "code"]
