"""The cost caps of runs that an agent starts: what was reserved, and never more than a person's own cap."""

from __future__ import annotations

import json
from pathlib import Path

from optimsyn.agents.ledger import bought_in
from optimsyn.base.errors import RecipeError
from optimsyn.base.files import write_json
from optimsyn.recipe.recipe import Recipe

CAPS = "agent.json"
"""In a run's folder: the cap that was set for an agent, and the one that a person had given."""


def capped(recipe: Recipe, folder: Path, needs: float | None) -> Recipe:
    """The recipe with a cap that keeps its run within what is reserved for it now.

    A cap that a person has given, in the recipe or at an earlier start of the run, stays; one that was set for an
    agent's earlier preview or run gives way.

    Args:
        recipe: The recipe of the run.
        folder: The run's folder, whether it exists or not.
        needs: The most that it may buy now, in US dollars; None: not known.
    """
    ours, given = _remembered(folder)
    earlier = _earlier(folder)
    if earlier != ours:
        # A person has started it since.
        given = earlier
    asked = recipe.limits.cost_usd if recipe.limits.cost_usd != ours else None
    person = min((cap for cap in (asked, given) if cap is not None), default=None)
    most = bought_in(folder) + needs if needs else None
    cap = min((each for each in (person, most) if each is not None), default=None)
    if most is not None or ours is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CAPS, {"cost_usd": cap, "given": person})
    return recipe if cap == recipe.limits.cost_usd else recipe.changed({"limits.cost_usd": cap})


def _remembered(folder: Path) -> tuple[float | None, float | None]:
    """The cap that was set for an agent, and the person's."""
    file = folder / CAPS
    if not file.is_file():
        return None, None
    kept = json.loads(file.read_text(encoding="utf-8"))
    return kept["cost_usd"], kept["given"]


def _earlier(folder: Path) -> float | None:
    """The cap of the run as it was started last."""
    if not (folder / "recipe.yaml").is_file():
        return None
    try:
        return Recipe.load(folder / "recipe.yaml", of_run=True).limits.cost_usd
    except RecipeError:
        return None
