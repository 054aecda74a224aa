"""Finds the notebooks, in a source checkout or inside an installed wheel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimsyn.base.errors import StageError
from optimsyn.base.suggestions import did_you_mean
from optimsyn.recipe.bundled import PACKAGE, checkout, find_recipe, recipes_folder
from optimsyn.runs.manifest import STAGES

__all__ = ["checkout", "default_root", "find_recipe", "notebook_name", "notebook_path", "recipes_folder"]


def notebook_name(stage: str, stages: Sequence[str] = STAGES) -> str:
    """File name of a stage's notebook without its suffix, such as `05_synthesize`."""
    for number, name in enumerate(stages, 1):
        if name == stage:
            return f"{number:02d}_{name}"
    hint = did_you_mean(stage, stages, f"the stages are {', '.join(stages)}")
    raise StageError(f"there is no stage {stage!r}; {hint}")


def notebook_path(stage: str) -> Path:
    """The notebook that runs a built-in stage."""
    root = checkout()
    folder = root / "notebooks" if root is not None else PACKAGE / "_notebooks"
    path = folder / f"{notebook_name(stage)}.ipynb"
    if not path.is_file():
        cure = "run `make notebooks`" if root is not None else "reinstall optimsyn"
        raise StageError(f"{path}: the notebook of stage {stage} is missing; {cure}")
    return path


def default_root() -> Path:
    """Folder of the runs: `runs` in the working directory, or in the checkout when called from its notebooks."""
    root = checkout()
    here = Path.cwd()
    return root / "runs" if root is not None and here == root / "notebooks" else here / "runs"
