"""A small real counterfactual for a look at the reward: training on some pairs, and what the loss says afterwards.

Subsets of the pairs (the best and the worst by reward, and random ones) are each trained on from the warm checkpoint,
with its moments, as fine-tuning does: AdamW without weight decay, every token of an answer, clipped gradients.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import t

from optimsyn.data.records import Pair, Question, Sample
from optimsyn.data.reward_look import Interval, TrainedOn
from optimsyn.errors import ModelError
from optimsyn.influence.counterfactual import AdamState
from optimsyn.influence.fidelity_statistics import Array, spearman
from optimsyn.models.encoding import Encoded, counted
from optimsyn.models.target import Target
from optimsyn.recipe_models import CountedTokens

Item = Pair | Question | Sample

MAX_GRAD_NORM = 1.0
"""Fine-tuning clips to this norm."""

_DRAWS = 1000


def train_on_subsets(
    target: Target,
    pairs: Sequence[Item],
    scores: Sequence[float],
    questions: Sequence[Question | Sample],
    *,
    held_out: bool,
    tokens: CountedTokens,
    random_subsets: int,
    steps: int,
    batch_size: int,
    lr: float,
    batch_tokens: int,
    seed: int,
    report: Callable[[int], None] | None = None,
) -> TrainedOn:
    """Trains on the best third, the worst third and random thirds of the pairs.

    The adapter is left at the last checkpoint.

    Args:
        target: A warmed-up target.
        pairs: Four or more.
        scores: What they are ranked by.
        questions: Whose loss is measured.
        held_out: Whether these had no part in the scores; only noted.
        tokens: Which tokens of the questions count.
        random_subsets: How many beside the two; they split the pairs evenly, several times over.
        steps: Optimiser steps on each subset.
        batch_size: Pairs a step.
        lr: Learning rate.
        batch_tokens: Tokens that go through the model at once.
        seed: Of the subsets, of the order within and of the intervals.
        report: Called with 1 after each training.

    Raises:
        ModelError: A loss is not finite.
    """
    size = max(2, len(pairs) // 3)
    order = sorted(range(len(pairs)), key=lambda i: -scores[i])
    subsets = [sorted(order[:size]), sorted(order[-size:]), *_random_subsets(len(pairs), size, random_subsets, seed)]
    trainer = _Trainer(target, pairs, questions, tokens, batch_tokens)
    start = trainer.losses()
    after = []
    for number, members in enumerate(subsets):
        trainer.train(members, steps=steps, batch_size=batch_size, lr=lr, seed=seed + number)
        after.append(trainer.losses())
        if report is not None:
            report(1)
    target.load_checkpoint(target.checkpoints[-1])
    losses = np.stack(after)
    means = np.asarray([np.mean([scores[i] for i in members]) for members in subsets])
    agreement, difference = _intervals(means, start, losses, seed)
    return TrainedOn(
        subsets=len(subsets),
        members=size,
        steps=steps,
        batch_size=min(batch_size, size),
        lr=lr,
        questions=len(questions),
        held_out=held_out,
        start=float(start.mean()),
        top=float(losses[0].mean()),
        bottom=float(losses[1].mean()),
        random=float(losses[2:].mean()) if len(subsets) > 2 else None,
        agreement=agreement,
        difference=difference,
    )


def _random_subsets(count: int, size: int, wanted: int, seed: int) -> list[list[int]]:
    """Parts of random partitions, so that every pair is trained on about as often as every other."""
    generator = random.Random(f"look {seed}")
    found: list[list[int]] = []
    while len(found) < wanted:
        order = list(range(count))
        generator.shuffle(order)
        found += [sorted(order[i : i + size]) for i in range(0, count - size + 1, size)]
    return found[:wanted]


def _intervals(means: Array, start: Array, losses: Array, seed: int) -> tuple[Interval, Interval]:
    """Rank agreement over subsets, and bottom minus top, each with its interval.

    Args:
        means: Mean score of each of S subsets.
        start: Loss of each of Q questions before.
        losses: [S, Q] after.
        seed: Of the resampling.
    """
    generator = np.random.default_rng(seed)
    count, questions = losses.shape
    decreases = start - losses
    asked = generator.integers(questions, size=(_DRAWS, questions))
    # [S, draws]: the mean over the resampled questions.
    resampled = decreases[:, asked].mean(-1)
    chosen = generator.integers(count, size=(_DRAWS, count))
    agreements = spearman(means[chosen], np.take_along_axis(resampled.T, chosen, axis=1))
    value = float(spearman(means, decreases.mean(-1)))
    known = agreements[~np.isnan(agreements)]
    agreement = Interval(None, None, None)
    # Of few subsets nothing but the value can be said.
    if not np.isnan(value) and len(known) > _DRAWS // 2 and count > 3:
        agreement = Interval(value, *_ends(known))
    between = losses[1] - losses[0]
    difference = Interval(float(between.mean()), None, None)
    if questions > 1 and count > 3:
        # Other pairs of the same worth would have ended elsewhere: random subsets tell how far apart two ends lie then.
        by_pairs = math.sqrt(2) * float(losses[2:].mean(-1).std(ddof=1)) * float(t.ppf(0.975, count - 3))
        low, high = _ends(between[asked].mean(-1))
        middle = float(between.mean())
        below, above = math.hypot(middle - low, by_pairs), math.hypot(high - middle, by_pairs)
        difference = Interval(middle, middle - below, middle + above)
    return agreement, difference


def _ends(draws: Array) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


class _Trainer:
    """Trains the target from its last warm-up checkpoint, again and again."""

    def __init__(
        self,
        target: Target,
        pairs: Sequence[Item],
        questions: Sequence[Question | Sample],
        tokens: CountedTokens,
        batch_tokens: int,
    ) -> None:
        self._target = target
        self._start = AdamState.of(target, target.checkpoints[-1])
        # Training learns every token, also the one that ends the text.
        self._pairs = [target.encode(pair) for pair in pairs]
        self._questions = [counted(target.encode(question), tokens, "question") for question in questions]
        self._batch_tokens = batch_tokens
        self._put(self._start.weights)

    def train(self, members: Sequence[int], *, steps: int, batch_size: int, lr: float, seed: int) -> None:
        """Leaves the adapter after so many steps on these pairs."""
        from optimsyn.models.warm_up import epochs

        state = self._start
        batches = epochs(len(members), batch_size, seed)
        for _ in range(steps):
            self._put(state.weights)
            gradient = self._gradient([self._pairs[members[i]] for i in next(batches)])
            state = state.step(gradient, lr=lr, max_grad_norm=MAX_GRAD_NORM)
        self._put(state.weights)

    def losses(self) -> Array:
        """The loss of each question as the adapter is now, in nats.

        Raises:
            ModelError: One is not finite.
        """
        found = torch.zeros(len(self._questions), dtype=torch.float64)
        with self._target.scoring(), torch.no_grad():
            for batch in self._target.batches(self._questions, self._batch_tokens):
                found[batch.indices] = self._target.losses(batch).double().cpu()
        if not bool(torch.isfinite(found).all()):
            raise ModelError(
                "a look at the reward: after training on a few pairs the loss of a validation question is not finite; "
                "lower fine_tune.lr"
            )
        return np.asarray(found.numpy(), dtype=np.float64)

    def _gradient(self, items: Sequence[Encoded]) -> torch.Tensor:
        """[P], of the mean over samples of their mean token loss."""
        parameters = list(self._target.parameters.values())
        total = torch.zeros_like(self._start.weights)
        with self._target.scoring():
            for batch in self._target.batches(items, self._batch_tokens):
                parts = torch.autograd.grad(self._target.losses(batch).sum(), parameters, allow_unused=True)
                known = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, parts, strict=True)]
                total += torch.cat([part.flatten().to(total) for part in known])
        return total / len(items)

    def _put(self, weights: torch.Tensor) -> None:
        """Puts flat weights [P] into the model."""
        offset = 0
        with torch.no_grad():
            for parameter in self._target.parameters.values():
                part = weights[offset : offset + parameter.numel()]
                parameter.copy_(part.view_as(parameter))
                offset += parameter.numel()
