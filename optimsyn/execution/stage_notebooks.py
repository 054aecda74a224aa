"""The notebook that executes a stage: the shipped one, or a generated one for a custom stage."""

from __future__ import annotations

import inspect
from pathlib import Path

from optimsyn.base.files import write_text
from optimsyn.recipe.recipe import OwnStage
from optimsyn.runs.datasets.pairs import between
from optimsyn.runs.folder import Run
from optimsyn.runs.outcomes import stage_label
from optimsyn.runs.resources import notebook_path
from optimsyn.runs.stage_functions import function_of, own_stage, refuse_unreachable

_PARAMETERS = 'run_folder: str = ""  # the run; `optimsyn run` fills it in'
_KERNEL = "from optimsyn.execution.notebook import check_environment\n\ncheck_environment()"
_RUN = "from optimsyn import Run\nfrom optimsyn.stages.own import run_stage\n\nrun = Run.load(run_folder)"


def stage_notebook(run: Run, stage: str) -> Path:
    """The notebook that executes a stage of a run.

    Raises:
        StageError: There is no such stage, its notebook is missing, or its function exists only in this process.
        RecipeError: The function of a custom stage cannot be found.
    """
    custom = own_stage(run.recipe, stage)
    if custom is None:
        return notebook_path(stage)
    refuse_unreachable(run.recipe, custom)
    file = run.path(stage, "notebook.ipynb")
    write_text(file, _notebook_text(run, custom))
    return file


def first_line(source: str) -> str:
    """The first line of a cell's code."""
    lines = (line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return next(lines, "").strip()


def _notebook_text(run: Run, stage: OwnStage) -> str:
    import nbformat

    docstring = inspect.getdoc(function_of(run.recipe, stage)) or ""
    number = run.stages.index(stage.name) + 1
    head = f"# {number}. {stage_label(stage.name)}\n\nA custom stage, after `{stage.after}`: `{stage.reference}`."
    cells = [
        nbformat.v4.new_markdown_cell(f"{head}\n\n{docstring}".strip()),
        nbformat.v4.new_code_cell(_PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(_KERNEL),
        nbformat.v4.new_code_cell(_RUN),
        nbformat.v4.new_code_cell(f"run_stage(run, {stage.name!r})"),
    ]
    if stage.name in between(run.manifest):
        cells.append(nbformat.v4.new_markdown_cell("The dataset as it is now:"))
        cells.append(nbformat.v4.new_code_cell("run.dataset"))
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for place, cell in enumerate(notebook.cells):
        # Fixed ids, so that the notebook is the same each time.
        cell["id"] = f"{stage.name[:40]}-{place}"
    return str(nbformat.writes(notebook)) + "\n"
