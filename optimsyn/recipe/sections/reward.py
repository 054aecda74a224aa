"""The section `reward` of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev
from typing import Literal

from pydantic import Field

from optimsyn.base.errors import StageError
from optimsyn.recipe.sections.models import Section


class Look(Section):
    """How closely a run looks at its own reward after the warm-up; does not change results."""

    pairs: int = Field(12, ge=0, description="First-draft pairs to look at; 0: no look.")
    subsets: int = Field(
        6, ge=0, description="Random subsets to train on, beside the best and the worst; 0: no training."
    )
    steps: int = Field(8, ge=1, description="Steps on each subset, at fine_tune.lr.")
    batch_size: int = Field(2, ge=1, description="Pairs in one such step.")


class Reward(Section):
    """R = Valid * IF - invalid_penalty * (1 - Valid)."""

    invalid_penalty: float = Field(0.1, ge=0, description="Penalty: the reward of an invalid pair is minus this (λ).")
    penalty_unit: Literal["raw", "spread"] = Field(
        "raw",
        description="Unit of invalid_penalty. raw: that of the influence. spread: the standard deviation of the first "
        "drafts' influence, so that 1 costs a pair as much as rubrics usually differ.",
    )
    given: Literal["nothing", "judged"] = Field(
        "nothing",
        description="What the target has learned when a pair of GRPO is scored. nothing: the warm-up alone. judged: "
        "also the pairs that GRPO has judged so far, so that the hundredth pair with the same answer earns little; for "
        "linear estimators with dot.",
    )
    look: Look = Look()
    on_noise: Literal["stop", "warn"] = Field(
        "stop",
        description="What to do if the reward is noise: stop after the warm-up, or continue with a warning.",
    )

    def penalty(self, first_drafts: Sequence[float]) -> float:
        """λ in units of the influence.

        Args:
            first_drafts: The influence of the warm-up's valid pairs.

        Raises:
            StageError: There is no spread to measure with.
        """
        if self.penalty_unit == "raw":
            return self.invalid_penalty
        spread = stdev(first_drafts) if len(first_drafts) > 1 else 0.0
        if not spread:
            raise StageError(
                f"reward.penalty_unit: spread needs first drafts whose influence differs, and {len(first_drafts)} have "
                "none; raise warm_up.pairs, or set penalty_unit: raw"
            )
        return self.invalid_penalty * spread
