"""Twin-adapter scoring: influence without a backward pass.

A linear estimator's dot product is a directional derivative of the sample's own loss (see `twin_adapters`). It is read
off the losses at θ + εd and θ − εd, a label token at a time if wanted, with no activation kept. Validation directions
still take one backward pass a question, once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from optimsyn.data.jsonl import write_text
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.errors import ModelError, RecipeError
from optimsyn.influence.directions import Directions
from optimsyn.influence.gamma import ESTIMATORS, Estimator, estimator_of
from optimsyn.influence.identity import scorer_fingerprint
from optimsyn.influence.scorer import InfluenceScorer, Scores
from optimsyn.influence.twin_adapters import Twins, length, step_directions
from optimsyn.influence.twin_smooth import choice_of
from optimsyn.influence.twin_step import Plan, Step, measure_step
from optimsyn.models.encoding import IGNORE, Batch, Encoded, counted
from optimsyn.models.target import Target
from optimsyn.models.warm_up import Checkpoint
from optimsyn.recipe_models import CountedTokens

_log = logging.getLogger(__name__)

Sides = Literal["auto", "central", "one-sided"]
_PROBES = 4
# The one-sided form is taken by itself where it is measured to be off by at most this share.
_FORWARD_LIMIT = 0.01
_DOUBTFUL = 0.05
_RULE = 2


class TwinScorer:
    """Scores pairs by their influence, from the losses of slightly moved adapters; a drop-in for `InfluenceScorer`.

    Its numbers are those of `InfluenceScorer` with the same linear estimator and `normalization="dot"`, up to the error
    recorded in `plans` (in float32 about 1e-4 of the scores' size, in bfloat16 a few per cent).

    Args:
        target: A warmed-up target.
        questions: The validation questions; their `subtask` groups them.
        estimator: adam_linear or sgd.
        normalization: dot; nothing else is a derivative of the loss.
        across_subtasks: mean, or max as in LESS.
        by_subtask: Score every subtask. Without, the mean over subtasks is one direction, hence two passes however
            many subtasks there are, and `Scores.by_subtask` has the one column "mean".
        sides: central takes two passes a subtask. one-sided takes one pass more than there are subtasks, and is wrong
            by ε·ℓ''/2. auto: one-sided for two subtasks or more where its measured error is at most 1 per cent in each
            of them, else central.
        tokens: Which tokens of questions and pairs count; see `optimsyn.models.encoding.counted`.
        batch_tokens: Tokens that go through the model at once, all twins together.
        together: Run two twins as one batch of twice the rows (half the samples at once), else one after the other.
        folder: Keep validation directions and steps here, as `InfluenceScorer` does.
        report: As for `InfluenceScorer`.

    Attributes:
        subtasks: Names of the columns of `Scores.by_subtask`.
        plans: One a checkpoint: the steps with their measured errors, the form of the difference.
        fingerprint: Changes with everything that changes scores (see `optimsyn.influence.identity`).

    Raises:
        DataError: There are no questions.
        ModelError: The target has not been warmed up, its trained parameters cannot be scored, or it is a mixture of
            experts.
        RecipeError: The estimator is not linear, or an option has no such value.

    Example:
        >>> scorer = TwinScorer(target, questions)                                   # doctest: +SKIP
        >>> scorer.score(pairs).total                                                # doctest: +SKIP
    """

    def __init__(
        self,
        target: Target,
        questions: Sequence[Question | Sample],
        *,
        estimator: str = "adam_linear",
        normalization: str = "dot",
        across_subtasks: Literal["mean", "max"] = "mean",
        by_subtask: bool = True,
        sides: Sides = "auto",
        tokens: CountedTokens = CountedTokens(),  # noqa: B008 - frozen
        batch_tokens: int = 2048,
        together: bool = True,
        folder: Path | None = None,
        report: Callable[[int], None] | None = None,
    ) -> None:
        self.estimator = linear_estimator(estimator)
        if normalization != "dot":
            raise RecipeError(
                f"influence.normalization: {normalization!r} needs the norm of each sample's own direction, which "
                "twins never form; set it to dot, or influence.method to exact"
            )
        if sides not in ("auto", "central", "one-sided"):
            raise RecipeError(f"influence.sides: {sides!r} is none of auto, central, one-sided")
        if not by_subtask and across_subtasks == "max":
            raise RecipeError("influence.across_subtasks: max needs every subtask's score; leave by_subtask on")
        if target.checkpoints and questions and (choice := choice_of(target, questions)) is not None:
            raise ModelError(
                f"the target chooses among its layers as it goes ({choice}, as a mixture of experts does), so its loss "
                "jumps where the choice changes, and twins would take the jump for influence; set influence.method to "
                "exact"
            )
        exact = InfluenceScorer(
            target,
            questions,
            estimator=estimator,
            normalization="dot",
            across_subtasks=across_subtasks,
            tokens=tokens,
            batch_tokens=batch_tokens,
            folder=folder,
            report=report,
        )
        self.target = target
        self.across_subtasks = across_subtasks
        self.tokens = tokens
        self.batch_tokens = batch_tokens
        self.together = together
        self.checkpoints: tuple[Checkpoint, ...] = tuple(target.checkpoints)
        self.directions: list[Directions] = exact.directions if by_subtask else [_mean(d) for d in exact.directions]
        self.subtasks: tuple[str, ...] = self.directions[0].subtasks
        self._twins = Twins(target)
        encoded = [counted(target.encode(question), tokens, "question") for question in questions]
        asked = [(e.id, e.input_ids, e.labels, e.weights, q.subtask) for e, q in zip(encoded, questions, strict=True)]
        marks = [target.fingerprint(), [c.fingerprint for c in self.checkpoints]]
        facts = [_RULE, marks, estimator, self.subtasks, sides, asked]
        self._steps_name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self.fingerprint = scorer_fingerprint(
            "twin",
            target,
            encoded,
            [question.subtask or "all" for question in questions],
            estimator=estimator,
            normalization=normalization,
            across_subtasks=across_subtasks,
            tokens=tokens,
            steps=[_RULE, sides, by_subtask],
        )
        self.plans: list[Plan] = self._plans(encoded, sides, folder)

    @property
    def epsilon(self) -> dict[str, list[float]]:
        """ε of each checkpoint by subtask, in units of d = D ⊙ V; what it was chosen from is in `plans`."""
        return {
            name: [p.steps[k].epsilon if p.sides == "central" else p.steps[k].forward_epsilon for p in self.plans]
            for k, name in enumerate(self.subtasks)
        }

    @property
    def estimated_error(self) -> dict[str, float]:
        """By subtask, the largest measured error over checkpoints, as a share of the derivatives' size."""
        return {
            name: max(p.steps[k].error if p.sides == "central" else p.steps[k].forward_error for p in self.plans)
            for k, name in enumerate(self.subtasks)
        }

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        """Scores of pairs, in the caller's order; `gradient_norm` is None, since no gradient is formed.

        The adapter is left at the last checkpoint.

        Args:
            pairs: What to score.
            token_shares: Also give each label token's share; a sample's shares sum to its total.

        Raises:
            ModelError: A pair has an empty answer, is too long without its context, or its loss is not finite.
        """
        encoded = [counted(self.target.encode(pair), self.tokens, "pair") for pair in pairs]
        sums = TokenSums(encoded, self.subtasks)
        if encoded:
            for checkpoint, directions, plan in zip(self.checkpoints, self.directions, self.plans, strict=True):
                self.target.load_checkpoint(checkpoint)
                step = step_directions(self.target, checkpoint, directions, self.estimator)
                values = self._twins.moved([_scaled(step, k, epsilon) for k, epsilon in plan.points])
                for batch in self.target.batches(encoded, self.batch_tokens // (2 if self.together else 1)):
                    losses, rows = self._losses(batch, values)
                    sums.add(plan, batch.indices, losses, rows)
        return sums.scores(self.across_subtasks, token_shares=token_shares)

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """The score of a sample that teaches nothing: 0, a linear estimator has no momentum."""
        return {"total": 0.0, "by_subtask": dict.fromkeys(self.subtasks, 0.0)}

    def _losses(self, batch: Batch, values: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """[points, N] and [N], two points a pass or one."""
        count = len(next(iter(values.values())))
        size = 2 if self.together else 1
        parts = []
        for start in range(0, count, size):
            group = {name: value[start : start + size] for name, value in values.items()}
            losses, rows = self._twins.token_losses(batch, group, together=self.together)
            parts.append(losses)
        return torch.cat(parts), rows

    def _plans(self, encoded: list[Encoded], sides: Sides, folder: Path | None) -> list[Plan]:
        file = None if folder is None else folder / f"twin-steps-{self._steps_name}.json"
        if file is not None and file.is_file():
            try:
                return [Plan.from_json(facts) for facts in json.loads(file.read_text(encoding="utf-8"))]
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError(f"{file}: not readable as twin steps ({error}); delete the file") from error
        total = sum(checkpoint.lr for checkpoint in self.checkpoints)
        measured = [
            self._measure(checkpoint, directions, encoded)
            for checkpoint, directions in zip(self.checkpoints, self.directions, strict=True)
        ]
        if sides == "auto":
            enough = all(step.forward_error <= _FORWARD_LIMIT for steps in measured for step in steps)
            sides = "one-sided" if len(self.subtasks) > 1 and enough else "central"
        plans = [
            Plan(c.step, c.lr / total, directions.reference_norms[self.estimator.name], sides, steps)
            for c, directions, steps in zip(self.checkpoints, self.directions, measured, strict=True)
        ]
        for plan in plans:
            worst = max(s.error if sides == "central" else s.forward_error for s in plan.steps)
            if worst > _DOUBTFUL:
                _log.warning(
                    "twin scores at warm-up step %d are off by about %.0f%% of their size; a float32 target "
                    "(models.target.dtype) or influence.method: exact is more accurate",
                    plan.checkpoint,
                    100 * worst,
                )
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps([plan.to_json() for plan in plans]))
        self.target.load_checkpoint(self.checkpoints[-1])
        return plans

    def _measure(self, checkpoint: Checkpoint, directions: Directions, encoded: list[Encoded]) -> tuple[Step, ...]:
        """The step of each subtask's direction, measured on a few questions of short to long."""
        self.target.load_checkpoint(checkpoint)
        step = step_directions(self.target, checkpoint, directions, self.estimator)
        order = sorted(encoded, key=lambda item: len(item.input_ids))
        places = sorted({round(i * (len(order) - 1) / max(1, _PROBES - 1)) for i in range(_PROBES)})
        probes = list(self.target.batches([order[i] for i in places], self.batch_tokens // 2))

        def losses(points: list[dict[str, torch.Tensor]]) -> torch.Tensor:
            values = self._twins.moved(points)
            return torch.cat([_sample_losses(*self._losses(batch, values), batch) for batch in probes], dim=1)

        here = losses([{}])[0]
        origin = length(self.target.parameters) or 1.0
        # The step that balances curvature of order one against rounding of the model's dtype: its cube root.
        relative = max(torch.finfo(p.dtype).eps for p in self.target.model.parameters() if p.is_floating_point())
        steps = []
        for k in range(len(directions.subtasks)):
            size = length({name: value[k] for name, value in step.items()})

            def both(epsilon: float, k: int = k) -> tuple[torch.Tensor, torch.Tensor]:
                found = losses([_scaled(step, k, epsilon), _scaled(step, k, -epsilon)])
                return found[0], found[1]

            start = relative ** (1 / 3) * origin / (size or 1.0)
            steps.append(measure_step(both, here, start=start, length=size))
        return tuple(steps)


class TokenSums:
    """Adds up derivatives of label tokens over checkpoints.

    Args:
        encoded: The samples, in the caller's order.
        subtasks: Names of the columns.
    """

    def __init__(self, encoded: Sequence[Encoded], subtasks: tuple[str, ...]) -> None:
        self._encoded = encoded
        self._subtasks = subtasks
        self._shares = [torch.zeros(e.label_tokens, len(subtasks), dtype=torch.float64) for e in encoded]
        self._loss = torch.zeros(len(encoded), dtype=torch.float64)

    def add(self, plan: Plan, indices: Sequence[int], losses: torch.Tensor, rows: torch.Tensor) -> None:
        """Adds one batch at one checkpoint.

        Args:
            plan: The checkpoint's.
            indices: Which sample each row is.
            losses: [points, N], of the batch's label tokens in row-major order.
            rows: [N].
        """
        derivatives, here = plan.read(losses)
        norm = plan.reference_norm
        for row, index in enumerate(indices):
            mine = rows == row
            weights = torch.tensor(self._encoded[index].token_weights, dtype=torch.float64)
            if norm > 0:
                self._shares[index] += plan.weight / norm * weights.unsqueeze(1) * derivatives[mine]
            self._loss[index] += plan.weight * (weights * here[mine]).sum()

    def scores(self, across: str, *, token_shares: bool) -> Scores:
        """All of it.

        Raises:
            ModelError: A score is not finite.
        """
        n = len(self._encoded)
        by_subtask = torch.zeros(n, len(self._subtasks), dtype=torch.float64)
        for i, share in enumerate(self._shares):
            by_subtask[i] = share.sum(0)
        bad = [self._encoded[i].id for i in (~torch.isfinite(by_subtask).all(dim=1)).nonzero().flatten().tolist()]
        if bad:
            raise ModelError(f"the influence of samples {', '.join(map(repr, bad))} is not finite; look at their text")
        total = torch.zeros(0, dtype=torch.float64)
        if n:
            total = by_subtask.mean(dim=1) if across == "mean" else by_subtask.max(dim=1).values
        shares = None
        if token_shares and across == "mean":
            shares = tuple(share.mean(dim=1) for share in self._shares)
        elif token_shares:
            # The shares of the subtask that the total is.
            shares = tuple(s[:, int(by_subtask[i].argmax())] for i, s in enumerate(self._shares))
        return Scores(
            ids=tuple(item.id for item in self._encoded),
            subtasks=self._subtasks,
            total=total,
            by_subtask=by_subtask,
            gradient_norm=None,
            loss=self._loss,
            label_tokens=torch.tensor([item.label_tokens for item in self._encoded], dtype=torch.int64),
            token_shares=shares,
        )


def linear_estimator(name: str) -> Estimator:
    """The estimator of this name, which has to be linear.

    Raises:
        RecipeError: There is none, or it is not linear.
    """
    found = estimator_of(name)
    if not found.linear:
        linear = " or ".join(e.name for e in ESTIMATORS.values() if e.linear)
        raise RecipeError(
            f"influence.estimator: {name} is not linear in the gradient, so its score is no derivative of the loss; "
            f"twin scoring takes {linear}; set influence.method to exact to keep {name}"
        )
    return found


def _scaled(step: dict[str, torch.Tensor], k: int | None, epsilon: float) -> dict[str, torch.Tensor]:
    return {} if k is None else {name: value[k] * epsilon for name, value in step.items()}


def _sample_losses(losses: torch.Tensor, rows: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Losses of label tokens [points, N] -> of samples [points, B]."""
    places = (batch.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    weights = batch.token_weights(places[0], places[1] + 1).to(losses)
    return torch.zeros(len(losses), len(batch), dtype=losses.dtype).index_add_(1, rows, losses * weights)


def _mean(directions: Directions) -> Directions:
    vectors = {name: vector.mean(dim=0, keepdim=True) for name, vector in directions.vectors.items()}
    return replace(directions, subtasks=("mean",), vectors=vectors)
