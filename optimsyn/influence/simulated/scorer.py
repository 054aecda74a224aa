r"""Scores by a simulated training: the effect of a pair in the batches of the fine-tuning that it is written for.

`SimulatedTraining` predicts the effect of a short training on the validation questions. Here each batch has a place for
the pair z; companions, first drafts of the run, share the other places evenly. The score is

    IF(z) = mean_q L_q(companions, an empty pair in z's place) − mean_q L_q(companions, z in that place)

in nats, over the questions of each subtask. An empty pair has no gradient, so a pair that teaches nothing scores 0. z
is trained on with every label, as in fine-tuning; the questions count the tokens of `influence.tokens`.

Unlike the other estimators this one models the batch: the gradient is clipped together with the companions', a pair
that repeats them earns little, and a pair that is learnt after two steps teaches nothing in the third.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch

from optimsyn.base.errors import DataError, ModelError
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.accuracy import Choice, MeasuresGradients, Method, probes_of
from optimsyn.influence.fingerprint import scorer_fingerprint
from optimsyn.influence.gradients.projection import Layout
from optimsyn.influence.gradients.rows import AdamScale, gradient_rows, layout_for, products
from optimsyn.influence.gradients.taps import GradientTaps
from optimsyn.influence.options import Across, ScoringOptions, refuse_nothing_to_score_by, refuse_precision
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.scores import Scores
from optimsyn.influence.simulated.training import HORIZON, SimulatedTraining, WarmGradients
from optimsyn.llm.local.turns import turn
from optimsyn.recipe.sections.evaluation import FineTune
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.encoding import Encoded, as_sample, counted
from optimsyn.target.target import Target
from optimsyn.target.upcast import Precision, is_narrow

Item = Pair | Question | Sample

# Increased when the same facts give other scores.
_RULE = 1
# Number of pairs whose gradients are held at once, beside those of questions and companions.
CHUNK = 32


@dataclass(frozen=True)
class BatchTraining:
    """The training that a pair is placed in.

    Attributes:
        companions: The other pairs of its batches; the first ones if the predicted steps have fewer places.
        fine_tune: The recipe's section `fine_tune`: rate, steps and batch size.
        max_grad_norm: Gradient clipping; None does not clip.
    """

    companions: Sequence[Item]
    fine_tune: FineTune
    max_grad_norm: float | None = 1.0

    @property
    def steps(self) -> int:
        """How many steps are predicted."""
        return min(HORIZON, self.fine_tune.steps)

    @property
    def used(self) -> Sequence[Item]:
        """The companions that have a place.

        Raises:
            DataError: There are none, and the batches have places for them.
        """
        places = self.steps * (self.fine_tune.batch_size - 1)
        if places and not self.companions:
            raise DataError(
                "influence.estimator: simulated places a pair in a batch with first drafts of the run, and there is "
                "none; write some (warm_up.pairs), or set fine_tune.batch_size to 1 or influence.estimator to "
                "adam_linear"
            )
        return self.companions[:places]

    def weights(self, companions: int) -> torch.Tensor:
        """The share of each companion in a batch's mean, [companions]; the rest is the pair's."""
        size = self.fine_tune.batch_size
        return torch.full((companions,), (size - 1) / size / max(1, companions), dtype=torch.float64)


@dataclass(frozen=True)
class _Held:
    """Shared by all scores: gradients of questions and companions, and the training of companions alone."""

    layout: Layout
    scale: AdamScale
    asked: torch.Tensor
    scaled: torch.Tensor
    plain: torch.Tensor
    base: SimulatedTraining


class SimulatedScorer(MeasuresGradients):
    """Scores pairs by the effect of a simulated training, with the pair in its batches, on validation questions.

    Training continues from the target's last checkpoint; earlier ones do not affect the score. The pairs of one call do
    not affect each other's scores, except for rounding through padding.

    Args:
        target: A warmed-up target.
        questions: The validation questions; their `subtask` groups them.
        training: The training to place pairs in.
        across_subtasks: mean, or max.
        tokens: Which tokens of the questions count, and, for `Scores.label_tokens` alone, of pairs.
        batch_tokens: Tokens per forward pass.
        folder: Cache measured errors here.
        precision: The precision of pairs' gradients in a 16-bit model, as for `InfluenceScorer`; those of questions and
            companions are computed in float32.
        report: Called with the number of questions and companions of each batch whose gradients have been computed.

    Attributes:
        method: exact.
        choice: Why `build_scorer` chose it; None where it was made directly.
        subtasks: Names of the columns of `Scores.by_subtask`.
        fingerprint: Changes with everything that changes scores.

    Raises:
        DataError: There are no questions, or no companions.
        ModelError: The target has not been warmed up, its trained parameters cannot be scored, or a loss is not finite.
        RecipeError: An option has no such value.

    Example:
        >>> scorer = SimulatedScorer(target, questions, BatchTraining(drafts, FineTune()))   # doctest: +SKIP
        >>> scorer.score(pairs).total                                                        # doctest: +SKIP
    """

    method: ClassVar[Method] = "exact"

    def __init__(  # noqa: PLR0913 - keyword options of a public class
        self,
        target: Target,
        questions: Sequence[Question | Sample],
        training: BatchTraining,
        *,
        across_subtasks: Across = "mean",
        tokens: CountedTokens = CountedTokens(),  # noqa: B008 - frozen
        batch_tokens: int = 2048,
        folder: Path | None = None,
        precision: Precision = "model",
        report: Callable[[int], None] | None = None,
    ) -> None:
        self.options = ScoringOptions(
            "simulated",
            across_subtasks=across_subtasks,
            tokens=tokens,
            batch_tokens=batch_tokens,
            folder=folder,
            report=report,
        )
        refuse_nothing_to_score_by(target, questions)
        self.target = target
        self.training = training
        self.choice: Choice | None = None
        self._narrow = is_narrow(target.model)
        self._checkpoint = target.checkpoints[-1]
        self._taps = GradientTaps(target)
        self._given = [as_sample(question) for question in questions]
        self._questions = [counted(target.encode(sample), tokens, "question") for sample in self._given]
        self._asked = [sample.subtask or "all" for sample in self._given]
        self.subtasks: tuple[str, ...] = tuple(sorted(set(self._asked)))
        self._shares = torch.tensor(
            [[(name == subtask) / self._asked.count(subtask) for subtask in self._asked] for name in self.subtasks],
            dtype=torch.float64,
        )
        self._companions = [target.encode(as_sample(item)) for item in training.used]
        # With all labels, as in training. With the answer of another question, a question is as new as a pair.
        self.probes: list[Encoded] = probes_of([target.encode(sample) for sample in self._given])
        self._held = self._hold()
        self._weights = training.weights(len(self._companions))
        self._take(precision)

    def at(self, precision: Precision) -> SimulatedScorer:
        """The same scorer at another precision of a 16-bit model; both share their gradients."""
        other = copy.copy(self)
        for name in ("reference", "numerical_error", "linear"):
            other.__dict__.pop(name, None)
        other.choice = None
        other._take(precision)
        return other

    @property
    def layout(self) -> Layout:
        """The layout of held gradients: whole or projected."""
        return self._held.layout

    def _take(self, precision: Precision) -> None:
        refuse_precision(precision)
        self._precision: Precision = precision if self._narrow else "model"
        training, layout = self.training, self._held.layout
        more = {
            "rule": _RULE,
            "companions": [[item.id, item.input_ids, item.labels] for item in self._companions],
            "lr": training.fine_tune.lr,
            "steps": training.steps,
            "batch_size": training.fine_tune.batch_size,
            "max_grad_norm": training.max_grad_norm,
            "layout": layout.facts(),
            "projection": None if layout.projection is None else layout.projection.facts(),
            **({} if self._precision == "model" else {"computing": self._precision}),
        }
        self.fingerprint = scorer_fingerprint(
            "simulated", self.target, self._questions, self._asked, self.options, **more
        )

    def _hold(self) -> _Held:
        target, training, report = self.target, self.training, self.options.report
        rows = len(self._questions) + 2 * len(self._companions) + 2 * CHUNK
        layout = layout_for(target, rows)
        target.load_checkpoint(self._checkpoint)
        self._taps.verify(self._questions)
        scale = AdamScale.of(target, self._checkpoint, layout)
        with self._computing("float32") as budget:
            (asked,), asked_losses = gradient_rows(
                self._taps, layout, self._questions, [scale.roots], batch_tokens=budget, report=report
            )
            (scaled, plain), losses = gradient_rows(
                self._taps, layout, self._companions, [scale.roots, None], batch_tokens=budget, report=report
            )
        base = SimulatedTraining.of(
            WarmGradients(self._checkpoint, scale, asked, asked_losses, scaled, plain, losses),
            lr=training.fine_tune.lr,
            steps=training.steps,
            max_grad_norm=training.max_grad_norm,
        )
        return _Held(layout, scale, asked, scaled, plain, base)

    @cached_property
    def linear(self) -> InfluenceScorer:
        """`adam_linear` with `dot` on the same questions, whose score can be split over tokens."""
        return InfluenceScorer(
            self.target,
            self._given,
            across_subtasks=self.options.across_subtasks,
            tokens=self.options.tokens,
            batch_tokens=self.options.batch_tokens,
            folder=self.options.folder,
            processes="own",
            precision=self._precision,
        )

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        """Scores of pairs, in the caller's order. The adapter is left at the last checkpoint.

        Losses and gradient norms are those of a pair as it is trained on, with every label.

        Raises:
            ModelError: Token shares are requested, which this score does not have; a pair has an empty answer, is too
                long without its context, or its loss or influence is not finite.
        """
        if token_shares:
            raise ModelError(
                "a simulated training is not a sum over tokens, so influence.estimator: simulated has no token shares; "
                "take those of scorer.linear, or set influence.estimator to adam_linear"
            )
        encoded = [self.target.encode(as_sample(pair)) for pair in pairs]
        with turn(self.target.device):
            by_subtask, norms, losses = self._score(encoded)
        return Scores.finished(
            [item.id for item in encoded],
            self.subtasks,
            self.options.across_subtasks,
            by_subtask=by_subtask,
            gradient_norm=norms,
            loss=losses,
            label_tokens=torch.tensor(
                [counted(item, self.options.tokens, "pair").label_tokens for item in encoded], dtype=torch.int64
            ),
        )

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """The score of a sample that teaches nothing: 0."""
        return {"total": 0.0, "by_subtask": dict.fromkeys(self.subtasks, 0.0)}

    def _score(
        self, encoded: Sequence[Encoded], precision: Precision | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores by subtask [n, k], gradient norms [n] and losses [n]."""
        held = self._held
        scores = torch.zeros(len(encoded), len(self.subtasks), dtype=torch.float64)
        norms, losses = torch.zeros(2, len(encoded), dtype=torch.float64)
        if encoded:
            self.target.load_checkpoint(self._checkpoint)
        # Sorted by length, so that there is little padding.
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].input_ids))
        for start in range(0, len(order), CHUNK):
            places = order[start : start + CHUNK]
            chosen = [encoded[i] for i in places]
            with self._computing(precision or self._precision) as budget:
                (scaled, plain), losses[places] = gradient_rows(
                    self._taps,
                    held.layout,
                    chosen,
                    [held.scale.roots, None],
                    batch_tokens=budget,
                )
            norms[places] = torch.linalg.vector_norm(plain, dim=1, dtype=torch.float64)
            scores[places] = self.predicted(scaled, plain, losses[places]) @ self._shares.t()
        return scores, norms, losses

    def predicted(self, scaled: torch.Tensor, plain: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """The questions' losses without each pair minus those with it, [n, Q]."""
        held = self._held
        asked, pairs, gram = (
            products(left, right) for left, right in ((held.asked, scaled), (held.scaled, scaled), (held.plain, plain))
        )
        momentum = products(scaled, held.scale.drift[None])[:, 0]
        decreases = []
        for i in range(len(losses)):
            own = float(products(scaled[i : i + 1], scaled[i : i + 1]))
            length = float(products(plain[i : i + 1], plain[i : i + 1]))
            with_it = replace(
                held.base,
                question_kernel=torch.cat([held.base.question_kernel, asked[:, i : i + 1]], dim=1),
                pair_kernel=_bordered(held.base.pair_kernel, pairs[:, i], own),
                gram=_bordered(held.base.gram, gram[:, i], length),
                pair_momentum=torch.cat([held.base.pair_momentum, momentum[i : i + 1]]),
                pair_losses=torch.cat([held.base.pair_losses, losses[i : i + 1]]),
            )
            weights = torch.cat([self._weights, torch.zeros(1, dtype=torch.float64)]).repeat(2, 1)
            weights[1, -1] = 1 / self.training.fine_tune.batch_size
            empty, trained = with_it.losses(weights)
            # Rounding must not give a pair without gradient an effect.
            decreases.append(empty - trained if length > 0 else torch.zeros_like(empty))
        return torch.stack(decreases)


def _bordered(matrix: torch.Tensor, side: torch.Tensor, corner: float) -> torch.Tensor:
    """A symmetric matrix [n, n] with an added row and column."""
    bordered = torch.empty(len(matrix) + 1, len(matrix) + 1, dtype=matrix.dtype)
    bordered[:-1, :-1], bordered[:-1, -1], bordered[-1, :-1], bordered[-1, -1] = matrix, side, side, corner
    return bordered
