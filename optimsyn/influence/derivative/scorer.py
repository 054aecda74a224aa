"""The base of scorers that compute a score as a derivative of the sample's own loss, token by token, without gradients.

For a linear estimator Γ(g) = D ⊙ g with `dot`, ⟨V_k, Γ(g(z))⟩ is the derivative of ℓ(z) along d_k = D ⊙ V_k. Twins take
it from losses at two points (`optimsyn.influence.derivative.twin`), forward mode from one pass
(`optimsyn.influence.derivative.forward`). Validation directions still need one backward pass per question.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from optimsyn.base.errors import RecipeError
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.accuracy import Choice, Method, kept_error, refuse_error, relative_error
from optimsyn.influence.derivative.twin_adapters import step_directions
from optimsyn.influence.directions import Directions
from optimsyn.influence.estimators import BUILT_IN, Estimator, estimator_of
from optimsyn.influence.fingerprint import scorer_fingerprint
from optimsyn.influence.options import ScoringOptions, checkpoint_weights
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.scores import Scores
from optimsyn.llm.local.turns import turn
from optimsyn.target.encoding import Encoded, as_sample, counted
from optimsyn.target.target import Target
from optimsyn.target.upcast import Precision, computing, is_narrow
from optimsyn.target.warm_up.checkpoints import Checkpoint


class DerivativeScorer(ABC):
    """Scores of a linear estimator with `dot`; the subclasses document the method and the arguments."""

    method: ClassVar[Method]

    def __init__(
        self,
        target: Target,
        questions: Sequence[Question | Sample],
        options: ScoringOptions,
        *,
        by_subtask: bool,
        exact: InfluenceScorer | None,
        precision: Precision = "model",
        **more: Any,
    ) -> None:
        self.estimator = linear_estimator(options.estimator, self.method)
        if options.normalization != "dot":
            raise RecipeError(
                f"influence.normalization: {options.normalization!r} needs the norm of each sample's own direction, "
                f"which method {self.method} never computes; set it to dot, or influence.method to exact"
            )
        if not by_subtask and options.across_subtasks == "max":
            raise RecipeError("influence.across_subtasks: max needs every subtask's score; set by_subtask to True")
        self._exact = exact or InfluenceScorer(target, questions, **options.keywords())
        self.target = target
        self.across_subtasks = options.across_subtasks
        self.tokens = options.tokens
        self.batch_tokens = options.batch_tokens
        self.choice: Choice | None = None
        self.checkpoints: tuple[Checkpoint, ...] = tuple(target.checkpoints)
        self._mean = not by_subtask
        self._precision: Precision = precision if is_narrow(target.model) else "model"
        if self._precision != "model":
            more["computing"] = self._precision
        whole = self._exact.directions
        self.directions: list[Directions] = whole if by_subtask else [_mean(directions) for directions in whole]
        self.subtasks: tuple[str, ...] = self.directions[0].subtasks
        self._weights = checkpoint_weights([checkpoint.lr for checkpoint in self.checkpoints])
        self._folder = options.folder
        self._step: dict[str, torch.Tensor] | None = None
        self._questions = [counted(target.encode(question), options.tokens, "question") for question in questions]
        self.fingerprint = scorer_fingerprint(
            self.method,
            target,
            self._questions,
            [as_sample(question).subtask or "all" for question in questions],
            options,
            question_gradients=options.question_gradients,
            **more,
        )

    @cached_property
    def numerical_error(self) -> float:
        """The numerical error as a share of the scores' size (see `optimsyn.influence.accuracy`)."""
        return kept_error(self._folder, self.target, self.fingerprint, self._error)

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        """Scores of pairs, in the caller's order; `gradient_norm` is None, since no gradient is computed.

        The adapter is left at the last checkpoint.

        Args:
            pairs: What to score.
            token_shares: Also give each label token's share; a sample's shares sum to its total.

        Raises:
            ModelError: A pair has an empty answer, is too long without its context, or its loss is not finite.
        """
        encoded = [counted(self.target.encode(pair), self.tokens, "pair") for pair in pairs]
        with turn(self.target.device):
            return self._sums(encoded).scores(self.across_subtasks, token_shares=token_shares)

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """The score of a sample that teaches nothing: 0, since a linear estimator has no momentum."""
        return {"total": 0.0, "by_subtask": dict.fromkeys(self.subtasks, 0.0)}

    def probe_scores(self) -> tuple[list[Encoded], torch.Tensor]:
        """The questions that errors are measured on, and their scores by subtask [n, k] from gradients in float32."""
        reference = self._exact.reference
        return self._exact.probes, reference.mean(dim=1, keepdim=True) if self._mean else reference

    def step_at(self, place: int) -> dict[str, torch.Tensor]:
        """d_k of a checkpoint, by parameter name [K, *shape], on the parameters' devices."""
        if self._step is not None:
            return self._step
        step = step_directions(self.target, self.checkpoints[place], self.directions[place], self.estimator)
        if len(self.checkpoints) == 1:
            self._step = step
        return step

    @abstractmethod
    def _add(self, place: int, encoded: list[Encoded], sums: TokenSums) -> None:
        """Adds the token derivatives of the samples at one loaded checkpoint."""

    def _sums(self, encoded: list[Encoded]) -> TokenSums:
        sums = TokenSums(encoded, self.subtasks)
        for place, checkpoint in enumerate(self.checkpoints) if encoded else ():
            self.target.load_checkpoint(checkpoint)
            with computing(self.target.model, self._precision):
                self._add(place, encoded, sums)
        return sums

    def _error(self) -> float:
        probes, reference = self.probe_scores()
        return relative_error(self._sums(probes).by_subtask(), reference)

    def _judge(self, most_error: float) -> None:
        refuse_error(self.method, self.numerical_error, most_error)


class TokenSums:
    """Adds up derivatives of label tokens over checkpoints."""

    def __init__(self, encoded: Sequence[Encoded], subtasks: tuple[str, ...]) -> None:
        self._encoded = encoded
        self._subtasks = subtasks
        self._shares = [torch.zeros(e.label_tokens, len(subtasks), dtype=torch.float64) for e in encoded]
        self._loss = torch.zeros(len(encoded), dtype=torch.float64)

    def add(
        self,
        weight: float,
        reference_norm: float,
        indices: Sequence[int],
        derivatives: torch.Tensor,
        losses: torch.Tensor,
        rows: torch.Tensor,
    ) -> None:
        """Adds one batch at one checkpoint.

        Args:
            weight: The checkpoint's.
            reference_norm: The divisor of the derivatives.
            indices: The sample of each row.
            derivatives: [N, K] float64, of the batch's label tokens in row-major order.
            losses: [N] float64.
            rows: [N].
        """
        for row, index in enumerate(indices):
            own = rows == row
            weights = torch.tensor(self._encoded[index].token_weights, dtype=torch.float64)
            if reference_norm > 0:
                self._shares[index] += weight / reference_norm * weights.unsqueeze(1) * derivatives[own]
            self._loss[index] += weight * (weights * losses[own]).sum()

    def by_subtask(self) -> torch.Tensor:
        """[n, K]."""
        scores = torch.zeros(len(self._encoded), len(self._subtasks), dtype=torch.float64)
        for i, share in enumerate(self._shares):
            scores[i] = share.sum(0)
        return scores

    def scores(self, across: str, *, token_shares: bool) -> Scores:
        """The finished scores."""
        by_subtask = self.by_subtask()
        shares = None
        if token_shares and across == "mean":
            shares = tuple(share.mean(dim=1) for share in self._shares)
        elif token_shares:
            # The shares of the winning subtask.
            shares = tuple(s[:, int(by_subtask[i].argmax())] for i, s in enumerate(self._shares))
        return Scores.finished(
            [item.id for item in self._encoded],
            self._subtasks,
            across,
            by_subtask=by_subtask,
            gradient_norm=None,
            loss=self._loss,
            label_tokens=torch.tensor([item.label_tokens for item in self._encoded], dtype=torch.int64),
            token_shares=shares,
        )


def linear_estimator(name: str, method: str) -> Estimator:
    """The estimator of this name, which must be linear."""
    estimator = estimator_of(name)
    if not estimator.linear:
        linear = " or ".join(e.name for e in BUILT_IN.values() if e.linear)
        raise RecipeError(
            f"influence.estimator: {name} is not linear in the gradient, so its score is not a derivative of the loss; "
            f"method {method} takes {linear}; set influence.method to exact to keep {name}"
        )
    return estimator


def _mean(directions: Directions) -> Directions:
    vectors = {name: vector.mean(dim=0, keepdim=True) for name, vector in directions.vectors.items()}
    return replace(directions, subtasks=("mean",), vectors=vectors)
