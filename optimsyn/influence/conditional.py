r"""Scores that depend on what was judged before: the hundredth pair with the same answer earns little.

A score takes each question as the warm-up left it. Here a question is taken as a training on the pairs judged so far
(the history H) leaves it, as `SimulatedTraining` predicts. With p_q the probability of the answer of question q, its
gradient has shrunk (or, where H teaches the contrary, grown) to

    ω_q = (1 − p_q(H)) / (1 − p_q(∅))          IF'(z) = Σ_q ω_q ⟨ĝ_q / s_q, D⊙g_z⟩ / (Q · reference norm)

of its earlier size, so the direction has moved. Without a history ω = 1 and IF' = IF, to the last bit, because only the
change, Σ_q (ω_q − 1) ⟨…⟩, is computed here and added to the scorer's score. All pairs of one call are scored under one
history; s_q is that of `optimsyn.influence.directions`. ω is at most 4, so that a question that was known well and is
forgotten counts at most four times as much as before.

The training on H takes one pass over it, at most the horizon of `optimsyn.influence.simulated.training`, so a short
history teaches less than a long one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.base.identity import digest_of
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.directions import Directions, direction_scale, question_votes
from optimsyn.influence.estimators import Estimator, estimator_of
from optimsyn.influence.factory import MeasuredScorer
from optimsyn.influence.gradients.rows import AdamScale, gradient_rows, layout_for
from optimsyn.influence.gradients.taps import GradientTaps
from optimsyn.influence.moments import moments_of
from optimsyn.influence.scores import Scores
from optimsyn.influence.simulated.training import HORIZON, SimulatedTraining, WarmGradients
from optimsyn.recipe.sections.evaluation import FineTune
from optimsyn.recipe.sections.influence import MOVED_PROBABILITY, Influence
from optimsyn.target.encoding import Encoded, as_sample, counted
from optimsyn.target.target import Target

HISTORY = 256
"""How many of the latest pairs are the history; older pairs are ignored."""

MOST = 4.0
"""Upper limit of ω."""

# Increased when the same facts give other scores.
_RULE = 1
# Limit of held gradients; lower than elsewhere, since every call recomputes all products.
_HELD_BYTES = 2**28
# Expected number of pairs per call to hold beside the history.
_CALL = 32


class DirectedScorer(MeasuredScorer, Protocol):
    """A scorer with validation directions, one a checkpoint."""

    directions: list[Directions]


class MovedScorer:
    """A linear scorer whose directions move with the judged pairs.

    `training` is the recipe's section `fine_tune`: rate, batch size and steps of the simulated training.

    Attributes:
        fingerprint: Changes with everything that changes scores, except the history.
        history: The pairs that count as judged, the latest last.

    Raises:
        RecipeError: The scores are not linear in a pair's gradient, there are several checkpoints, or directions are
            those of a probability.
    """

    def __init__(
        self,
        base: DirectedScorer,
        target: Target,
        questions: Sequence[Question | Sample],
        config: Influence,
        training: FineTune,
        *,
        max_grad_norm: float = 1.0,
    ) -> None:
        if not config.is_derivative or len(base.directions) != 1:
            raise RecipeError(
                "reward.given: judged needs scores that are linear in a pair's gradient, at one checkpoint; set "
                "influence.estimator to adam_linear (or sgd), influence.normalization to dot and warm_up.checkpoints "
                "to 1, or reward.given to nothing"
            )
        if config.question_gradients == "probability":
            raise RecipeError(MOVED_PROBABILITY)
        self.base = base
        self.target = target
        self.config = config
        self.training = training
        self.max_grad_norm = max_grad_norm
        self.subtasks = base.subtasks
        self.origin = base.fingerprint
        self.history: tuple[Pair | Question | Sample, ...] = ()
        # A reward reads no more than this of a long ledger.
        self.remembers = HISTORY
        self._checkpoint = target.checkpoints[-1]
        samples = [as_sample(question) for question in questions]
        self._questions = [counted(target.encode(sample), config.tokens, "question") for sample in samples]
        self._shares = _shares_of([sample.subtask or "all" for sample in samples], base.subtasks)
        (self._directions,) = base.directions
        self._layout = layout_for(target, 2 * (HISTORY + _CALL) + 2 * len(questions), limit=_HELD_BYTES)
        self._asked: tuple[AdamScale, torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._held: dict[str, tuple[torch.Tensor, torch.Tensor, float]] = {}
        facts = [
            _RULE,
            self.origin,
            HISTORY,
            HORIZON,
            MOST,
            training.lr,
            training.batch_size,
            training.steps,
            max_grad_norm,
            self._layout.facts(),
            None if self._layout.projection is None else self._layout.projection.facts(),
        ]
        self.fingerprint = f"moved-{digest_of(facts, sort_keys=False)}"

    @property
    def method(self) -> str:
        """How the base computes its scores."""
        return self.base.method

    @property
    def numerical_error(self) -> float:
        """The numerical error of the base, as a share of its scores' size."""
        return self.base.numerical_error

    def judged(self, pairs: Sequence[Pair | Question | Sample]) -> None:
        """Adds valid, judged pairs to the history."""
        self.history = (*self.history, *pairs)[-HISTORY:]

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        """Scores of pairs under the history, in the caller's order. The adapter is left at the checkpoint.

        Raises:
            ModelError: Token shares are requested, which exist only for a fixed direction; or a pair's loss or
                gradient is not finite.
        """
        if token_shares:
            raise ModelError("token shares exist only for a fixed direction; call the scorer without a history")
        scores = self.base.score(pairs)
        if not self.history or not pairs:
            return scores
        moved = scores.by_subtask + self._change(pairs)
        total = moved.mean(1) if self.config.across_subtasks == "mean" else moved.max(1).values
        return replace(scores, by_subtask=moved, total=total)

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """The score of a sample that teaches nothing; independent of the history."""
        return self.base.zero_gradient_baseline()

    def question_shares(self) -> torch.Tensor:
        """The remaining share ω [Q] of each question's gradient; all 1 without a history."""
        if not self.history:
            return torch.ones(len(self._questions), dtype=torch.float64)
        scale, asked, _, losses = self._questions_at()
        encoded = [self.target.encode(as_sample(pair)) for pair in self.history]
        keys = [json.dumps([item.input_ids, item.labels]) for item in encoded]
        counts = Counter(keys)
        rows = self._rows_of(scale, dict(zip(keys, encoded, strict=True)))
        gradients = WarmGradients(
            self._checkpoint,
            scale,
            questions=asked,
            question_losses=losses,
            scaled=torch.stack([row[0] for row in rows]),
            plain=torch.stack([row[1] for row in rows]),
            losses=torch.tensor([row[2] for row in rows], dtype=torch.float64),
        )
        simulated = SimulatedTraining.of(
            gradients,
            lr=self.training.lr,
            steps=min(HORIZON, self.training.steps, math.ceil(len(keys) / self.training.batch_size)),
            max_grad_norm=self.max_grad_norm,
        )
        weights = torch.tensor([[counts[key] / len(keys) for key in counts]], dtype=torch.float64)
        left = torch.expm1(-simulated.losses(weights)[0]) / torch.expm1(-simulated.start())
        return left.clamp(max=MOST)

    def _change(self, pairs: Sequence[Pair | Question | Sample]) -> torch.Tensor:
        """Σ_q (ω_q − 1) ⟨ĝ_q / s_q, Γ(g_z)⟩ / (Q · reference norm) by subtask, [n, k]."""
        less = self.question_shares() - 1
        scale, scaled, plain, _ = self._questions_at()
        estimator = estimator_of(self.config.estimator)
        norms = torch.tensor(self._directions.gradient_norms, dtype=torch.float64)
        # The votes of `plain` and `unit` depend on the norms alone.
        kind = self.config.question_gradients
        votes = question_votes(kind, norms, torch.zeros_like(norms), torch.ones_like(norms))
        weights = self._shares * less * votes / direction_scale(kind, votes, norms)
        # ⟨ĝ, D ⊙ g⟩; each side takes the root of Adam's D, as in the simulated training.
        asked, factor = (scaled, scale.roots) if estimator.name == "adam_linear" else (plain, self._gains(estimator))
        directions = weights @ asked.double()
        encoded = [counted(self.target.encode(as_sample(pair)), self.config.tokens, "pair") for pair in pairs]
        self.target.load_checkpoint(self._checkpoint)
        (rows,), _ = gradient_rows(
            GradientTaps(self.target),
            self._layout,
            encoded,
            [factor],
            batch_tokens=self.config.batch_tokens,
        )
        return rows.double() @ directions.t() / self._directions.reference_norms[estimator.identity]

    def _gains(self, estimator: Estimator) -> dict[str, torch.Tensor] | None:
        """D of a linear Γ(g) = D ⊙ g by parameter; None where it is 1."""
        if estimator.name == "sgd":
            return None
        gains = {}
        for name, parameter in self.target.parameters.items():
            moments = moments_of(self._checkpoint, name, dtype=self.target.dtype, device=parameter.device)
            gains[name] = estimator.gain(moments)(torch.ones_like(moments.first)[None])[0]
        return gains

    def _questions_at(self) -> tuple[AdamScale, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Adam's scale, the questions' scaled and plain gradients, and their losses."""
        if self._asked is None:
            scale = AdamScale.of(self.target, self._checkpoint, self._layout)
            self.target.load_checkpoint(self._checkpoint)
            (scaled, plain), losses = gradient_rows(
                GradientTaps(self.target),
                self._layout,
                self._questions,
                [scale.roots, None],
                batch_tokens=self.config.batch_tokens,
            )
            self._asked = scale, scaled, plain, losses
        return self._asked

    def _rows_of(self, scale: AdamScale, encoded: dict[str, Encoded]) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """Gradients and losses of the history's pairs with all labels, each pair in a separate batch.

        So a run that continues and computes them all at once gets the same values, to the last bit.
        """
        self._held = {key: self._held[key] for key in encoded if key in self._held}
        new = [key for key in encoded if key not in self._held]
        if new:
            self.target.load_checkpoint(self._checkpoint)
            (scaled, plain), losses = gradient_rows(
                GradientTaps(self.target),
                self._layout,
                [encoded[key] for key in new],
                [scale.roots, None],
                batch_tokens=1,
            )
            self._held |= {key: (scaled[i], plain[i], float(losses[i])) for i, key in enumerate(new)}
        return [self._held[key] for key in encoded]


def _shares_of(asked: Sequence[str], columns: Sequence[str]) -> torch.Tensor:
    """The weight of each question in each column of the scores, [k, Q].

    A column is a subtask, or the mean of all subtasks where a scorer keeps only that.
    """
    names = sorted(set(asked))
    counts = Counter(asked)
    by_subtask = torch.tensor(
        [[(name == subtask) / counts[subtask] for subtask in asked] for name in names], dtype=torch.float64
    )
    return by_subtask if tuple(columns) == tuple(names) else by_subtask.mean(0, keepdim=True)
