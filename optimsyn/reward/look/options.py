"""How closely to look at a reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimsyn.recipe.sections.reward import WITHOUT_GRADIENTS, RewardSource

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
        source: The recipe's `reward.source`.
    """

    pairs: int = 12
    random_subsets: int = 6
    steps: int = 8
    batch_size: int = 2
    lr: float = 2e-4
    seed: int = 0
    source: RewardSource = "influence"

    @classmethod
    def of(cls, recipe: Recipe) -> LookOptions:
        """From the recipe's `reward.look`, with the learning rate of its fine-tuning.

        A source that computes no gradient gets no training either.
        """
        look = recipe.reward.look
        source = recipe.reward.source
        subsets = 0 if source in WITHOUT_GRADIENTS else look.subsets
        return cls(look.pairs, subsets, look.steps, look.batch_size, recipe.fine_tune.lr, recipe.seed, source)
