"""The options of every scorer, with their checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from optimsyn.base.errors import DataError, ModelError, RecipeError
from optimsyn.base.suggestions import nearest_value
from optimsyn.recipe.sections.influence import PART_OF_AN_END
from optimsyn.recipe.sections.models import CountedTokens, QuestionGradients
from optimsyn.target.target import Target
from optimsyn.target.upcast import Precision

Normalization = Literal["cosine", "dot"]
Across = Literal["mean", "max"]


@dataclass(frozen=True)
class ScoringOptions:
    """The options that the scorers of one recipe share.

    Attributes:
        estimator: As in a recipe: a name or `package.module:name`.
        normalization: cosine, or dot: longer directions count for more.
        across_subtasks: mean, or max as in LESS.
        question_gradients: plain, unit or probability (see `optimsyn.influence.directions`).
        tokens: Which tokens of questions and pairs count.
        batch_tokens: Tokens scored in one batch.
        folder: Cache validation directions, steps and measured errors here; None does not cache.
        report: Called with the number of questions of each batch whose directions have been computed.

    Raises:
        RecipeError: An option has no such value, or two do not go together.
    """

    estimator: str = "adam_linear"
    normalization: Normalization = "dot"
    across_subtasks: Across = "mean"
    question_gradients: QuestionGradients = "plain"
    tokens: CountedTokens = CountedTokens()  # noqa: RUF009 - frozen
    batch_tokens: int = 2048
    folder: Path | None = None
    report: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        refuse_unknown("influence.normalization", self.normalization, get_args(Normalization))
        refuse_unknown("influence.across_subtasks", self.across_subtasks, get_args(Across))
        refuse_unknown("influence.question_gradients", self.question_gradients, get_args(QuestionGradients))
        if self.question_gradients == "probability" and 0 < self.tokens.end_of_questions < 1:
            raise RecipeError(f"influence: {PART_OF_AN_END}")

    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments of a scorer."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def refuse_unknown(field: str, value: object, allowed: Sequence[str]) -> None:
    """Refuses a value that an option does not have."""
    if value in allowed:
        return
    hint = nearest_value(value, allowed)
    if len(allowed) == 2:
        raise RecipeError(f"{field}: {value!r} is neither {allowed[0]} nor {allowed[1]}{hint}")
    raise RecipeError(f"{field}: {value!r} is none of {', '.join(allowed)}{hint}")


def refuse_precision(precision: object) -> None:
    """Refuses an unknown precision."""
    refuse_unknown("precision", precision, get_args(Precision))


def refuse_nothing_to_score_by(target: Target, questions: Sequence[object]) -> None:
    """Refuses to score without questions or warm-up."""
    if not questions:
        raise DataError("influence needs at least one validation question; see questions.validation")
    if not target.checkpoints:
        raise ModelError("the target has no warm-up checkpoint; call target.warm_up(pairs) first")


def checkpoint_weights(rates: Sequence[float]) -> list[float]:
    """The weight of each checkpoint: its learning rate over their sum."""
    if not sum(rates) > 0:
        raise ModelError("the learning rates of the warm-up checkpoints sum to 0, so none of them has a weight")
    return [rate / sum(rates) for rate in rates]
