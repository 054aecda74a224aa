"""Sends each service of a recipe one tiny request before a run loads anything local."""

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
    """`(problems, notes)` of the recipe's services that are reachable and have a key."""
    if not names_services(recipe):
        return (), ()
    from optimsyn.machine.service_probe import probe, services

    dubious = {model.role for model in looked_at if model.problems or model.unreachable}
    roles = {role: spec for role, spec in services(recipe).items() if role not in dubious}
    probed = probe(recipe, roles=roles)
    return probed.problems, probed.notes


def open_asked(recipe: Recipe, root: Path | str) -> Run:
    """Opens the run of a recipe after each service has answered one tiny request; a continued run sends none.

    The replies belong to the run: they count towards its caps, and what they show of a service is remembered. If a
    service fails, a newly made run folder is removed. Odd replies go to the run's `warnings`, and are requested again
    at the next start.

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
    """Whether any role of the recipe uses a service."""
    return any(spec.provider == "litellm" for spec in recipe.models.writers.values())
