"""The scorer that a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.scorer import InfluenceScorer, Scores
from optimsyn.influence.twin import TwinScorer
from optimsyn.influence.twin_smooth import choice_of
from optimsyn.models.encoding import as_sample
from optimsyn.models.target import Target
from optimsyn.recipe import Influence


class Scorer(Protocol):
    """What every scorer does, however it comes by its numbers.

    Attributes:
        subtasks: Names of the columns of `Scores.by_subtask`.
        fingerprint: Names everything that its scores depend on, and changes with any of it: target, warm-up, questions,
            which tokens count, estimator, normalization, method. Equal in every process for equal facts (see
            `optimsyn.influence.identity.scorer_fingerprint`). Rewards are kept under it.
    """

    subtasks: tuple[str, ...]
    fingerprint: str

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        """Scores of pairs, in the caller's order."""

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """The score of a sample that teaches nothing."""


def build_scorer(
    target: Target,
    questions: Sequence[Question | Sample],
    config: Influence,
    folder: Path | None = None,
    *,
    report: Callable[[int], None] | None = None,
) -> Scorer:
    """The scorer of a recipe's section `influence`.

    Args:
        target: A warmed-up target.
        questions: The validation questions.
        config: The section.
        folder: Where validation directions are kept; None: nowhere.
        report: Called with the number of questions of each batch whose directions have been computed.

    Raises:
        DataError: There are no questions.
        ModelError: The target has not been warmed up, or its trained parameters cannot be scored.
        RecipeError: An option has no such value.
    """
    common: dict[str, Any] = {
        "estimator": config.estimator,
        "normalization": config.normalization,
        "across_subtasks": config.across_subtasks,
        "tokens": config.tokens,
        "batch_tokens": config.batch_tokens,
        "folder": folder,
        "report": report,
    }
    # A backward pass costs about two forward passes; twins take one more than there are subtasks, at least two.
    cheaper = config.is_derivative and len({as_sample(question).subtask for question in questions}) == 1
    # A mixture of experts has no twins, only gradients.
    if config.method == "twin" or (config.method == "auto" and cheaper and choice_of(target, questions) is None):
        return TwinScorer(target, questions, **common)
    # Under torchrun every process of GRPO rewards completions of its own.
    return InfluenceScorer(target, questions, **common, processes="own")
