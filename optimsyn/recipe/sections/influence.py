"""The section `influence` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from optimsyn.recipe.sections.models import CountedTokens, QuestionGradients, Section

Estimator = Literal["adam", "adam_momentum_free", "adam_linear", "sgd", "less", "simulated"]


class Influence(Section):
    """How a pair's influence on the validation loss is computed.

    The paper's own choice is `adam` with `cosine` and `unit` gradients. `adam_linear` with `dot` goes to 0 with a
    pair's gradient, which the paper's does not, and is linear in it, so that it costs least and can be computed in
    several ways; with `plain` gradients it foretells the questions' mean loss. So these are the defaults;
    docs/influence.md says what has been measured of them and what has not.
    """

    method: Literal["auto", "exact", "twin", "forward"] = Field(
        "auto",
        description="exact: from each pair's gradient. For linear estimators (adam_linear, sgd) with dot also twin: "
        "from two forward passes at slightly moved weights, in float32 only; and forward: from one pass that carries "
        "the derivative along, in 16 bits too. auto: the cheapest whose error, measured on validation questions, is "
        "below half a per cent; where there is none, the best one if it is below 5, as a named one may be.",
    )
    estimator: Estimator = Field(
        "adam_linear",
        description="Which direction of a step counts; see docs/influence.md. simulated: what a foretold training with "
        "the pair in its batches does, by `fine_tune` and at most twelve steps long, from the last checkpoint.",
    )
    normalization: Literal["cosine", "dot"] = Field(
        "dot", description="cosine: only the direction counts. dot: a longer direction counts for more."
    )
    across_subtasks: Literal["mean", "max"] = Field("mean", description="How subtasks become one score (LESS: max).")
    question_gradients: QuestionGradients = Field(
        "plain",
        description="plain: a direction is the gradient of the questions' mean loss. unit: each question's gradient is "
        "scaled to length 1 before the mean is taken, so that each has one vote (the paper).",
    )
    tokens: CountedTokens = CountedTokens()
    batch_tokens: int = Field(1024, ge=64, description="Tokens scored in one batch; samples of like length together.")

    @property
    def is_derivative(self) -> bool:
        """Whether the score is a directional derivative of the pair's loss, which twin and forward can read off."""
        return self.estimator in ("adam_linear", "sgd") and self.normalization == "dot"

    @property
    def linear(self) -> Influence:
        """The same with the linear score beside a foretold training, which shares of tokens are taken of."""
        return self.model_copy(update={"estimator": "adam_linear", "normalization": "dot"})

    @model_validator(mode="after")
    def _nothing_to_normalise(self) -> Influence:
        if self.estimator == "simulated" and self.normalization != "dot":
            raise ValueError(
                "estimator simulated foretells a training, in nats, and has no direction to normalise; set "
                "normalization to dot, or estimator to adam or adam_linear"
            )
        if self.estimator == "simulated" and self.question_gradients != "plain":
            raise ValueError(
                "estimator simulated foretells losses of questions, and takes no mean of their gradients; set "
                "question_gradients to plain, or estimator to adam or adam_linear"
            )
        return self

    @model_validator(mode="after")
    def _derivative_is_linear(self) -> Influence:
        if self.method in ("twin", "forward") and not self.is_derivative:
            raise ValueError(
                f"method {self.method} reads off a derivative of the loss, which {self.estimator} with "
                f"{self.normalization} is not; set estimator to adam_linear (or sgd) and normalization to dot, or "
                "method to exact"
            )
        return self


def twin_problem(dtype: str) -> str:
    """Why twins are refused on a 16-bit target, and the cure."""
    return (
        f"influence.method: twin is a small difference of losses, which {dtype} rounds away; set influence.method to "
        "auto, forward or exact, or models.target.dtype to float32"
    )
