"""Finds the notebooks and recipes, in a source checkout or inside an installed wheel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optimsyn.base.errors import RecipeError, StageError
from optimsyn.base.suggestions import did_you_mean
from optimsyn.runs.manifest import STAGES

_PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """The source checkout of this package, or None for an installed wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


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
    folder = root / "notebooks" if root is not None else _PACKAGE / "_notebooks"
    path = folder / f"{notebook_name(stage)}.ipynb"
    if not path.is_file():
        cure = "run `make notebooks`" if root is not None else "reinstall optimsyn"
        raise StageError(f"{path}: the notebook of stage {stage} is missing; {cure}")
    return path


def recipes_folder() -> Path:
    """The folder of the recipes that come with optimsyn."""
    root = checkout()
    return root / "recipes" if root is not None else _PACKAGE / "_recipes"


def find_recipe(name: str) -> Path:
    """The file of a recipe that is given as a path or as the name of one that comes with optimsyn."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        return path
    shipped = sorted(file.stem for file in recipes_folder().glob("*.yaml"))
    if name in shipped:
        return recipes_folder() / f"{name}.yaml"
    hint = did_you_mean(name, shipped, f"give a .yaml file or one of {', '.join(shipped)}")
    raise RecipeError(f"{name}: there is no such recipe; {hint}")


def default_root() -> Path:
    """Folder of the runs: `runs` in the working directory, or in the checkout when called from its notebooks."""
    root = checkout()
    here = Path.cwd()
    return root / "runs" if root is not None and here == root / "notebooks" else here / "runs"
