"""Which pairs a warm-up trains on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimsyn.data.records import Pair
    from optimsyn.recipe.recipe import Recipe
    from optimsyn.target.warm_up.curve import Search


# Fewer valid first drafts than this cannot fill two different batches, and moments of one batch mean nothing.
FEWEST_DRAFTS = 4


def parts_of(recipe: Recipe, pairs: Sequence[Pair]) -> tuple[Sequence[Pair], Sequence[Pair], Search]:
    """The pairs to train on, the held-out pairs, and how to search steps and learning rate."""
    from optimsyn.target.warm_up.curve import Search

    config = recipe.warm_up
    search = Search(config.max_steps, config.every, config.held_out, around=recipe.fine_tune.lr)
    share = max(min(FEWEST_DRAFTS, len(pairs)), round(len(pairs) * config.fraction))
    if config.steps is not None and config.lr is not None:
        return pairs[:share], [], search
    return *search.split(pairs, share), search
