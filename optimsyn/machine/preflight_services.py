"""Asks the services of a recipe one tiny question each, before anything local is loaded for a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.errors import RecipeError
from optimsyn.machine.availability import Availability
from optimsyn.recipe.recipe import Recipe

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run


def service_findings(recipe: Recipe, looked_at: Sequence[Availability]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`(problems, notes)` of the services of a recipe, as far as one could see that they are there and have a key.

    Args:
        recipe: The recipe.
        looked_at: What is known of its models.
    """
    if not names_services(recipe):
        return (), ()
    from optimsyn.machine.service_probe import probe, services

    dubious = {model.role for model in looked_at if model.problems or model.unreachable}
    roles = {role: spec for role, spec in services(recipe).items() if role not in dubious}
    probed = probe(recipe, roles=roles)
    return probed.problems, probed.notes


def open_asked(recipe: Recipe, root: Path | str) -> Run:
    """The run of a recipe, once each service has answered one tiny question in it; a run that goes on asks no more.

    The answers are the run's own: they count towards its caps, and what was learned of a service stays known. Where one
    does not answer, a run that was only made for this is removed again. What is odd about an answer is among the run's
    `warnings`, and is asked for again at the next start.

    Raises:
        RecipeError: A service does not answer; names the model's field and the cure.
    """
    from optimsyn.runs.folder import Run

    new = not (Run.folder_of(recipe, root) / "manifest.json").is_file()
    run = Run.open(recipe, root)
    if not names_services(recipe):
        return run
    from optimsyn.llm.shared_budget import Purse
    from optimsyn.machine.service_probe import probe

    probed = probe(recipe, run.replies, purse=Purse.from_environment())
    if probed.problems:
        if new:
            run.replies.close()
            shutil.rmtree(run.folder)
        raise RecipeError("\n".join(probed.problems))
    run.warnings = probed.notes
    return run


def names_services(recipe: Recipe) -> bool:
    """Whether a role of the recipe is a service's."""
    models = (recipe.models.generator, recipe.models.rubric, recipe.models.reflection)
    return any(spec is not None and spec.provider == "litellm" for spec in models)
