"""The section `influence` of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from optimsyn.base.extensions import ESTIMATORS, SCORERS
from optimsyn.recipe.sections.models import CountedTokens, QuestionGradients, Section
from optimsyn.recipe.sections.parts import named

IS_LINEAR: Mapping[str, bool] = MappingProxyType(
    {"adam": False, "adam_momentum_free": False, "adam_linear": True, "sgd": True, "less": False, "simulated": False}
)
"""The estimators that come with optimsyn, and whether each is linear in a pair's gradient. What they compute is in
`optimsyn.influence.estimators`, which needs torch."""

BUILT_IN_SCORER = "influence"
OWN_SCORER = "own-"
"""How the fingerprint of a custom scorer begins."""

MOVED_PROBABILITY = (
    "reward.given: judged predicts how the losses of questions fall, and not what becomes of their answers' "
    "probabilities; set influence.question_gradients to plain, or reward.given to nothing"
)
"""Why directions that are gradients of a probability do not move with the judged pairs."""

PART_OF_AN_END = (
    "question_gradients: probability needs answers whose end counts whole or not at all, a part of it has no "
    "probability; set tokens.end_of_questions to 0 or 1"
)
"""Why such directions need whole ends."""


class Influence(Section):
    """How a pair's influence on the validation questions is computed.

    The paper uses `adam` with `cosine` and `unit` gradients. The defaults are `adam_linear` with `dot`, which is linear
    in a pair's gradient and 0 without one, so that it costs least and can be computed in several ways, and `plain`
    gradients, with which it predicts the questions' mean loss; docs/influence.md has the measurements.
    """

    method: Literal["auto", "exact", "twin", "forward"] = Field(
        "auto",
        description="exact: from each pair's gradient. For linear estimators (adam_linear, sgd) with dot also twin: "
        "from two forward passes at slightly moved weights, in float32 only; and forward: from one pass that carries "
        "the derivative along, in 16 bits too. auto: the cheapest whose error, measured on validation questions, is "
        "below half a per cent; where there is none, the best one if it is below 5, as a named one may be.",
    )
    estimator: Annotated[str, named(ESTIMATORS)] = Field(
        "adam_linear",
        description="Which direction of a step counts: adam, adam_momentum_free, adam_linear, sgd or less; see "
        "docs/influence.md. simulated: what a simulated training with the pair in its batches does, by `fine_tune` and "
        "at most twelve steps long, from the last checkpoint. Or your own: a registered name or `package.module:name`.",
    )
    scorer: Annotated[str, named(SCORERS)] = Field(
        BUILT_IN_SCORER,
        description="What gives pairs their reward. influence: what this section describes. Or your own, which takes "
        "its place: a registered name or `package.module:name`.",
    )
    normalization: Literal["cosine", "dot"] = Field(
        "dot", description="cosine: only the direction counts. dot: a longer direction counts for more."
    )
    across_subtasks: Literal["mean", "max"] = Field("mean", description="How subtasks become one score (LESS: max).")
    question_gradients: QuestionGradients = Field(
        "plain",
        description="plain: a direction is the gradient of the questions' mean loss. unit: each question's gradient is "
        "scaled to length 1 before the mean is taken, so that each has one vote (the paper). probability: the gradient "
        "of the mean probability of the answers, so that a question that the target misses hardly counts.",
    )
    tokens: CountedTokens = CountedTokens()
    batch_tokens: int = Field(1024, ge=64, description="Tokens scored in one batch; samples of like length together.")

    @property
    def aim(self) -> str:
        """What a training step on a pair of high influence does, for people."""
        if self.question_gradients == "probability":
            return "raise the mean probability of the experts' answers"
        return "lower the loss on the validation questions"

    @property
    def is_derivative(self) -> bool:
        """Whether the score is a directional derivative of the pair's loss, which twin and forward can read off.

        Raises:
            RecipeError: A custom estimator cannot be imported.
        """
        return self.is_influence and self.normalization == "dot" and self._is_linear()

    @property
    def is_influence(self) -> bool:
        """Whether pairs are scored as this section describes, and not by a custom scorer."""
        return self.scorer == BUILT_IN_SCORER

    @property
    def has_own_estimator(self) -> bool:
        """Whether the estimator does not come with optimsyn."""
        return self.estimator not in IS_LINEAR

    @property
    def label(self) -> str:
        """How pairs are scored, for people, such as `adam_linear, dot`."""
        return f"{self.estimator}, {self.normalization}" if self.is_influence else f"scorer {self.scorer}"

    def _is_linear(self) -> bool:
        if self.has_own_estimator:
            return bool(getattr(ESTIMATORS.get(self.estimator), "linear", False))
        return IS_LINEAR[self.estimator]

    @property
    def linear(self) -> Influence:
        """The same with the linear score, which a simulated training uses for shares of tokens."""
        return self.model_copy(update={"estimator": "adam_linear", "normalization": "dot"})

    @field_validator("estimator")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        if ":" not in value and value not in IS_LINEAR and value not in ESTIMATORS.names():
            # A finished run may name a custom estimator that is not available now.
            if info.context is not None and info.context.get("of_run"):
                return value
            raise ValueError(ESTIMATORS.unknown(value, dict.fromkeys([*IS_LINEAR, *ESTIMATORS.names()])))
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Influence:
        if not self.is_influence and self.method != "auto":
            raise ValueError(
                f"method {self.method} is a way of computing influence, and scorer {self.scorer} takes its place; set "
                f"method to auto, or scorer to {BUILT_IN_SCORER}"
            )
        if self.estimator == "simulated" and self.normalization != "dot":
            raise ValueError(
                "estimator simulated gives what a training brings, in nats, and has no direction to normalise; set "
                "normalization to dot, or estimator to adam or adam_linear"
            )
        if self.estimator == "simulated" and self.question_gradients != "plain":
            raise ValueError(
                "estimator simulated predicts losses of questions, and takes no mean of their gradients; set "
                "question_gradients to plain, or estimator to adam or adam_linear"
            )
        if self.question_gradients == "probability" and 0 < self.tokens.end_of_questions < 1:
            raise ValueError(PART_OF_AN_END)
        # A custom estimator is checked after its import: before a run, and when its scorer is made.
        if self.has_own_estimator and self.normalization == "dot":
            return self
        if self.method in ("twin", "forward") and not self.is_derivative:
            raise ValueError(
                f"method {self.method} reads off a derivative of the loss, which {self.estimator} with "
                f"{self.normalization} is not; set estimator to adam_linear (or sgd) and normalization to dot, or "
                "method to exact"
            )
        return self


def twin_problem(dtype: str) -> str:
    """The message that refuses twins on a 16-bit target."""
    return (
        f"influence.method: twin is a small difference of losses, which {dtype} rounds away; set influence.method to "
        "auto, forward or exact, or models.target.dtype to float32"
    )
