"""What the commands share: their console, loading the recipe, and opening a checked run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.errors import RecipeError
from optimsyn.base.secrets.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console

    from optimsyn.execution.status_line import Steps
    from optimsyn.machine.preflight_result import Preflight
    from optimsyn.recipe.recipe import Recipe
    from optimsyn.runs.folder import Run


def make_console(*, stderr: bool = False) -> Console:
    """The console for a command's output."""
    from rich.console import Console

    return Console(stderr=stderr)


def load_recipe(name: str, size: str = "full", changes: list[str] | None = None) -> Recipe:
    """The recipe that a command names, with its changes."""
    from optimsyn.execution.parameters import chosen_recipe
    from optimsyn.recipe.changes import SetOptions

    return chosen_recipe(name, size=size, changes=SetOptions(changes or ()))


def refuse_unknown_stage(name: str, size: str, changes: list[str] | None, stage: str) -> None:
    """Refuses a stage that the recipe (or that of the run folder) does not have, before any other check.

    Raises:
        StageError: There is no such stage; names the nearest one.
    """
    from optimsyn.runs.resources import notebook_name

    notebook_name(stage, _recipe_and_root(name, Path(), size, changes)[0].stage_names)


def _recipe_and_root(name: str, root: Path, size: str, changes: list[str] | None) -> tuple[Recipe, Path]:
    """The recipe of a run folder and the folder above that, or the recipe of this name."""
    from optimsyn.runs.folder import Run

    folder = Path(name)
    if not (folder / "manifest.json").is_file():
        return load_recipe(name, size, changes), root
    if changes or size != "full":
        raise RecipeError(f"{name} is a run, whose recipe stays as it is; give --set and --size with a recipe")
    return Run.load(folder).recipe, folder.resolve().parent


def open_checked(name: str, root: Path, size: str, changes: list[str] | None, console: Console, steps: Steps) -> Run:
    """Checks a recipe, or that of a run folder, and opens its run."""
    from optimsyn.machine.forecast.requests import foresee
    from optimsyn.machine.preflight import checked
    from optimsyn.machine.preflight_services import names_services, open_asked

    recipe, root = _recipe_and_root(name, root, size, changes)
    with steps.step("Checking files, questions and models"):
        preflight = checked(recipe, root, ask=False)
    show_preflight(preflight, console)
    preflight.raise_if_refused()
    # Before anything is loaded, so that a refusal does not cost minutes of local work.
    label = "Sending each service one tiny request" if names_services(recipe) else "Opening the run"
    with steps.step(label):
        run_ = open_asked(recipe, root)
    _show("[yellow]note:[/]", run_.warnings, console)
    console.print(foresee(run_, preflight.forecast))
    return run_


def show_preflight(preflight: Preflight, console: Console) -> None:
    """Shows warnings and skipped checks."""
    _show("[yellow]note:[/]", preflight.warnings, console)
    _show("not checked:", preflight.unchecked, console)


def _show(mark: str, texts: Sequence[str], console: Console) -> None:
    from rich.markup import escape

    for text in texts:
        console.print(f"{mark} {escape(redact(text))}", highlight=False)
