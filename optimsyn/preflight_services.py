"""Asks the services of a recipe one tiny question each, before anything local is loaded for a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.errors import RecipeError
from optimsyn.models.availability import Availability
from optimsyn.recipe import Recipe

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run


def service_problems(recipe: Recipe, looked_at: Sequence[Availability]) -> tuple[str, ...]:
    """What is wrong with the services of a recipe, as far as one could see that they are there and have a key.

    Args:
        recipe: The recipe.
        looked_at: What is known of its models.
    """
    if not _names_services(recipe):
        return ()
    from optimsyn.models.probe import probe, services

    dubious = {model.role for model in looked_at if model.problems or model.unreachable}
    roles = {role: spec for role, spec in services(recipe).items() if role not in dubious}
    return probe(recipe, roles=roles).problems


def check_services(recipe: Recipe, replies: Path) -> Callable[[Run], None]:
    """Sends a tiny request to each service that a run has not asked before.

    Args:
        recipe: The recipe.
        replies: The run's file of replies, whether it is there yet or not.

    Returns:
        Keeps the answers in the run, once it is there: they count as its own, and it does not ask again.

    Raises:
        RecipeError: A service does not answer; names the model's field and the cure.
    """
    if not _names_services(recipe):
        return lambda run: None
    from optimsyn.models.probe import probe
    from optimsyn.models.replies import ReplyCache

    found = probe(recipe, ReplyCache(replies) if replies.is_file() else None)
    if found.problems:
        raise RecipeError("\n".join(found.problems))
    return lambda run: found.keep(run.replies)


def _names_services(recipe: Recipe) -> bool:
    models = (recipe.models.generator, recipe.models.rubric, recipe.models.reflection)
    return any(spec is not None and spec.provider == "litellm" for spec in models)
