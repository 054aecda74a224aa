"""Functions of custom stages: loads them, and detects edited ones."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import StageError
from optimsyn.base.extensions import STAGES, call_problem
from optimsyn.base.source_identity import source_identity

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import OwnStage, Recipe
    from optimsyn.runs.protocol import RunLike

SOURCE = "source"
"""Key in the manifest's stage notes: digests of a stage's source, by module."""


def _problem(part: object) -> str | None:
    """Why an object cannot be a stage."""
    if inspect.isclass(part) or not callable(part):
        return "a stage is a function that is called with the run and its handle: def mine(run, stage)"
    problem = call_problem(part, "the run", "its handle")
    return None if problem is None else f"{problem}; write def mine(run, stage)"


STAGES.provide({}, _problem)


def own_stage(recipe: Recipe, name: str) -> OwnStage | None:
    """The recipe's entry for a custom stage; None for a built-in one."""
    return next((stage for stage in recipe.stages if stage.name == name), None)


def function_of(recipe: Recipe, stage: OwnStage) -> Callable[[Any, Any], Any]:
    """The function of a custom stage."""
    function: Callable[[Any, Any], Any] = STAGES.get(stage.reference, _field(recipe, stage))
    return function


def digests(recipe: Recipe, stage: OwnStage) -> dict[str, str]:
    """A digest of each module of a custom stage.

    Raises:
        RecipeError: It cannot be found, or has neither source nor a file.
    """
    sources = source_identity(stage.reference, function_of(recipe, stage), _field(recipe, stage))
    return {name: hashlib.sha256(source.encode()).hexdigest()[:16] for name, source in sorted(sources.items())}


def refuse_edited(run: RunLike) -> None:
    """Stops a run if a finished stage was edited since: its results, and those of later stages, come from other code.

    Raises:
        StageError: Names the stage, the modules that changed and the cure.
        RecipeError: A finished stage's function cannot be found any more.
    """
    if not run.recipe.stages:
        return
    for record in run.manifest.stages:
        stage, before = own_stage(run.recipe, record.name), record.notes.get(SOURCE)
        if stage is None or record.status != "finished" or before is None:
            continue
        now = digests(run.recipe, stage)
        if before != now:
            changed = ", ".join(name for name in sorted({*before, *now}) if before.get(name) != now.get(name))
            raise StageError(
                f"{run.name}: stage {record.name} was edited since it finished ({changed}). Undo the change "
                f"and run again; or start over under another --root (or after removing {run.folder}), so that "
                "later stages use its present code"
            )


def refuse_unreachable(recipe: Recipe, stage: OwnStage) -> None:
    """Stops before starting the kernel of a stage whose function it could not find."""
    if STAGES.only_here(stage.reference):
        raise StageError(
            f"{_field(recipe, stage)}: the stage {stage.name} is known to this process alone, and each stage is "
            "executed in a process of its own. Put its function into a module and write package.module:name, or go "
            "through the stages here: optimsyn.execution.in_process.run_through(run, stage)"
        )


def _field(recipe: Recipe, stage: OwnStage) -> str:
    return f"stages.{recipe.stages.index(stage)}.run"
