"""How closely to look at a reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import Recipe


@dataclass(frozen=True)
class LookOptions:
    """How many pairs a look at the reward takes, and the training on subsets of them.

    Attributes:
        pairs: Pairs to look at. The correlation with length is taken over all.
        random_subsets: Subsets to train on beside the best and the worst; 0: no training at all.
        steps: Optimiser steps on each subset.
        batch_size: Pairs a step.
        lr: Learning rate of the training.
        seed: Of every random choice.
    """

    pairs: int = 12
    random_subsets: int = 6
    steps: int = 8
    batch_size: int = 2
    lr: float = 2e-4
    seed: int = 0

    @classmethod
    def of(cls, recipe: Recipe) -> LookOptions:
        """From the recipe's `reward.look`, with the learning rate of its fine-tuning."""
        look = recipe.reward.look
        return cls(look.pairs, look.subsets, look.steps, look.batch_size, recipe.fine_tune.lr, recipe.seed)
