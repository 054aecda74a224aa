"""How long a run will take, by the time that earlier runs took; without one, why that is not known."""

from __future__ import annotations

from pathlib import Path

from optimsyn.base.counting import plural
from optimsyn.base.errors import RecipeError
from optimsyn.base.terminal.table import duration
from optimsyn.recipe.bundled import recipes_folder
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.durations import whole_runs

_BUNDLED = "quickstart"
_QUICKSTART = (
    "10 to 16 minutes, as measured on two quiet CPU cores; 20 or more beside other jobs. No run of it has finished here"
)


def expected_time(recipe: Recipe, root: Path) -> str:
    """Time that the run will take, in a sentence with its basis.

    Args:
        recipe: The recipe.
        root: Folder of the run folders, where earlier runs of this recipe's name are looked for.
    """
    seconds = whole_runs(root, recipe.name)
    if seconds:
        least, most = duration(min(seconds)), duration(max(seconds))
        span = least if least == most else f"{least} to {most}"
        took = f"{plural(len(seconds), 'finished run')} of the name {recipe.name} in {root} took"
        return f"It will take about {span}: what {took}, on the machine and with the fields of then"
    if recipe.name == _BUNDLED and recipe.fingerprint == Recipe.load(recipes_folder() / f"{_BUNDLED}.yaml").fingerprint:
        return f"It will take {_QUICKSTART}"
    models = recipe.models
    names = dict.fromkeys(spec.name for spec in (*models.writers.values(), models.target, recipe.trained_target))
    tiny = "" if _is_tiny(recipe) else ", `--size tiny` goes through every stage in minutes"
    return (
        f"How long it will take is not foreseen: no run of {recipe.name} has finished in {root}, and how fast "
        f"{', '.join(names)} {'works' if len(names) == 1 else 'work'} here is not known. `optimsyn preview` shows the "
        f"time of a few pairs{tiny}"
    )


def _is_tiny(recipe: Recipe) -> bool:
    """Whether size tiny would change nothing."""
    try:
        return recipe.resized("tiny").fingerprint == recipe.fingerprint
    except RecipeError:  # its texts are on the hub only, so it is of full size
        return False
