"""The notebook that a stage of a run is executed by: the one that comes along, or a small one made for your own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.files import write_text
from optimsyn.runs.outcomes import stage_label
from optimsyn.runs.pairs import between
from optimsyn.runs.resources import notebook_path
from optimsyn.runs.stage_functions import function_of, own_stage, refuse_unreachable

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import OwnStage
    from optimsyn.runs.folder import Run

_PARAMETERS = 'run_folder: str = ""  # the run; `optimsyn run` fills it in'
_KERNEL = "from optimsyn.execution.notebook import check_environment\n\ncheck_environment()"
_RUN = "from optimsyn import Run\nfrom optimsyn.stages.own import run_stage\n\nrun = Run.load(run_folder)"


def stage_notebook(run: Run, stage: str) -> Path:
    """The notebook that executes a stage of a run.

    Raises:
        StageError: There is no such stage, its notebook is missing, or its function is known to this process alone.
        RecipeError: The function of a stage of your own cannot be found.
    """
    own = own_stage(run.recipe, stage)
    if own is None:
        return notebook_path(stage)
    refuse_unreachable(run.recipe, own)
    file = run.path(stage, "notebook.ipynb")
    write_text(file, _written(run, own))
    return file


def _written(run: Run, own: OwnStage) -> str:
    import nbformat

    function = function_of(run.recipe, own)
    said = inspect.getdoc(function) or ""
    number = run.stages.index(own.name) + 1
    head = (
        f"# {number}. {stage_label(own.name)}\n\nA stage of this recipe's own, after `{own.after}`: `{own.reference}`."
    )
    cells = [
        nbformat.v4.new_markdown_cell(f"{head}\n\n{said}".strip()),
        nbformat.v4.new_code_cell(_PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(_KERNEL),
        nbformat.v4.new_code_cell(_RUN),
        nbformat.v4.new_code_cell(f"run_stage(run, {own.name!r})"),
    ]
    if own.name in between(run.manifest):
        cells.append(nbformat.v4.new_markdown_cell("The dataset as it is now:"))
        cells.append(nbformat.v4.new_code_cell("run.dataset"))
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for place, cell in enumerate(notebook.cells):
        # The same notebook each time, so that nothing seems to have changed.
        cell["id"] = f"{own.name[:40]}-{place}"
    return str(nbformat.writes(notebook)) + "\n"
