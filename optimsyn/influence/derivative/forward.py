"""Scoring in forward mode: the derivative of a sample's loss along d goes through the model beside its values.

No small difference of large numbers is needed, so it works in 16 bits, where twins do not. It takes one pass per
subtask, also for each label token, and keeps no activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from optimsyn.data.records import Question, Sample
from optimsyn.influence.accuracy import MOST_ERROR, Method
from optimsyn.influence.derivative.scorer import DerivativeScorer, TokenSums
from optimsyn.influence.gradients.slopes import token_slopes
from optimsyn.influence.gradients.taps import GradientTaps, refuse_infinite
from optimsyn.influence.options import Across, Normalization, ScoringOptions
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.recipe.sections.models import CountedTokens, QuestionGradients
from optimsyn.target.encoding import Encoded
from optimsyn.target.target import Target
from optimsyn.target.upcast import Precision


class ForwardScorer(DerivativeScorer):
    """Scores pairs by their influence, from one forward-mode pass; a drop-in for `TwinScorer` and `InfluenceScorer`.

    It gives the scores of `InfluenceScorer` with the same linear estimator and `normalization="dot"`, up to the error
    in `numerical_error`, which is rounding: none in float32 and a few per cent in bfloat16.

    Args:
        target: A warmed-up target.
        questions: The validation questions; their `subtask` groups them.
        estimator: adam_linear, sgd, or a custom linear one.
        normalization: dot; nothing else is a derivative of the loss.
        across_subtasks: mean, or max as in LESS.
        by_subtask: Score every subtask, with a pass for each. Otherwise the mean over subtasks is one direction, so
            there is one pass, and `Scores.by_subtask` has the single column "mean".
        question_gradients: As for `InfluenceScorer`.
        tokens: Which tokens of questions and pairs count; see `optimsyn.target.encoding.counted`.
        batch_tokens: Tokens per forward pass.
        folder: Cache validation directions and the measured error here.
        report: As for `InfluenceScorer`.
        precision: As for `InfluenceScorer`.
        most_error: Refuse scores whose measured error is at least this share of their size.
        exact: A scorer of the same target, questions and options, whose directions to reuse.

    Attributes:
        method: forward.
        numerical_error: The error against gradients, as a share of the scores' size (`optimsyn.influence.accuracy`).
        choice: Why `build_scorer` chose it; None where it was made directly.
        subtasks: Names of the columns of `Scores.by_subtask`.
        fingerprint: Changes with everything that changes scores (see `optimsyn.influence.fingerprint`).

    Raises:
        DataError: There are no questions.
        ModelError: The target has not been warmed up, its trained parameters cannot be scored, an operation of the
            model has no derivative in forward mode, or the error is too large.
        RecipeError: The estimator is not linear, or an option has no such value.

    Example:
        >>> scorer = ForwardScorer(target, questions)                                # doctest: +SKIP
        >>> scorer.score(pairs, token_shares=True).token_shares                      # doctest: +SKIP
    """

    method: ClassVar[Method] = "forward"

    def __init__(  # noqa: PLR0913 - keyword options of a public class
        self,
        target: Target,
        questions: Sequence[Question | Sample],
        *,
        estimator: str = "adam_linear",
        normalization: Normalization = "dot",
        across_subtasks: Across = "mean",
        by_subtask: bool = True,
        question_gradients: QuestionGradients = "plain",
        tokens: CountedTokens = CountedTokens(),  # noqa: B008 - frozen
        batch_tokens: int = 2048,
        folder: Path | None = None,
        report: Callable[[int], None] | None = None,
        precision: Precision = "model",
        most_error: float = MOST_ERROR,
        exact: InfluenceScorer | None = None,
    ) -> None:
        options = ScoringOptions(
            estimator, normalization, across_subtasks, question_gradients, tokens, batch_tokens, folder, report
        )
        super().__init__(
            target,
            questions,
            options,
            by_subtask=by_subtask,
            exact=exact,
            precision=precision,
            by_subtask_scores=by_subtask,
        )
        self._taps = GradientTaps(target)
        self._judge(most_error)

    def _add(self, place: int, encoded: list[Encoded], sums: TokenSums) -> None:
        step, norm = self.step_at(place), self.directions[place].reference_norms[self.estimator.identity]
        for batch in self.target.batches(encoded, self.batch_tokens):
            columns = []
            for k in range(len(self.subtasks)):
                direction = {name: value[k] for name, value in step.items()}
                slopes = token_slopes(
                    self.target, self._taps, batch, direction, cure="set influence.method to exact or auto"
                )
                columns.append(slopes.slopes)
            losses, rows = slopes.losses, slopes.rows
            weighted = torch.zeros(len(batch), dtype=losses.dtype).index_add(0, rows, losses * slopes.weights)
            refuse_infinite(weighted, batch.ids, self.target.model)
            sums.add(self._weights[place], norm, batch.indices, torch.stack(columns, dim=1), losses, rows)
