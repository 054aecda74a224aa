"""The section `reward` of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from optimsyn.base.errors import StageError
from optimsyn.recipe.sections.data import Source, as_path
from optimsyn.recipe.sections.models import Section

RewardSource = Literal["influence", "random", "length", "negated", "permuted", "other"]
# Newer fields: a recipe without them keeps its fingerprint.
LATER_REWARD_FIELDS = ("source", "other_questions", "penalty_unit")
# Sources without a direction of their own, by which no set of pairs can be chosen and no history be taken into account.
WITHOUT_DIRECTION = frozenset({"random", "length", "negated"})
# Sources that compute no gradient.
WITHOUT_GRADIENTS = frozenset({"random", "length"})


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
    source: RewardSource = Field(
        "influence",
        description="What a valid pair earns. influence: as the section `influence` says. The others are controls, to "
        "compare with. random: a seeded number a pair, normal with a spread of 1. length: the length of the answer in "
        "the target's tokens; longer is better. negated: minus the influence. permuted: influence on the validation "
        "questions with their answers swapped among each other, so that their form stays and their content goes. "
        "other: influence on the questions of another domain (`other_questions`).",
    )
    other_questions: Annotated[Source | None, BeforeValidator(as_path)] = Field(
        None,
        description="Another domain's questions, for source: other; read as `questions.validation` is, and asked "
        "without a text.",
    )
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

    @property
    def is_control(self) -> bool:
        """Whether pairs earn something else than their influence on the validation questions."""
        return self.source != "influence"

    @model_validator(mode="after")
    def _other_questions_for_other(self) -> Reward:
        if self.source == "other" and self.other_questions is None:
            raise ValueError("source: other needs other_questions, a file or dataset of another domain's questions")
        if self.source != "other" and self.other_questions is not None:
            raise ValueError(
                f"other_questions is for source: other alone, and source is {self.source}; set one of them otherwise"
            )
        if self.given == "judged" and self.source in WITHOUT_DIRECTION:
            raise ValueError(
                f"given: judged moves the direction that influence is taken along, and source: {self.source} has none; "
                "set given to nothing"
            )
        return self

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
