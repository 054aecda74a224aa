"""A small real counterfactual for a look at the reward: train on some pairs and measure the loss.

Subsets of the pairs (the best and the worst by reward, and random ones) are each trained on from the warm checkpoint,
with its moments, as fine-tuning does (`optimsyn.influence.trainings`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import t

from optimsyn.base.statistics import Array, spearman
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.trainings import Trainings, TrainingSettings, schedule
from optimsyn.recipe.sections.influence import Influence
from optimsyn.reward.look.options import LookOptions
from optimsyn.reward.look.record import Interval, TrainedOn
from optimsyn.target.encoding import counted
from optimsyn.target.target import Target

Item = Pair | Question | Sample

MAX_GRAD_NORM = 1.0
"""Fine-tuning clips to this norm."""

_DRAWS = 1000


def trainings_of(
    target: Target, pairs: Sequence[Item], questions: Sequence[Question | Sample], config: Influence, lr: float
) -> Trainings:
    """Trainings on these pairs from the last checkpoint, as fine-tuning does, measured by these questions.

    Args:
        target: A warmed-up target.
        pairs: To train on, with every token, also the one that ends the text.
        questions: To measure the loss on.
        config: Which tokens of the questions count, and the tokens in one batch.
        lr: Learning rate.
    """
    encoded = [target.encode(pair) for pair in pairs]
    asked = [counted(target.encode(question), config.tokens, "question") for question in questions]
    longest = max(len(item.input_ids) for item in [*encoded, *asked])
    return Trainings(
        target,
        target.checkpoints[-1],
        encoded,
        asked,
        TrainingSettings(lr, max_grad_norm=MAX_GRAD_NORM),
        rows=max(1, config.batch_tokens // longest),
    )


def train_on_subsets(
    trainings: Trainings,
    scores: Sequence[float],
    options: LookOptions,
    *,
    held_out: bool,
    lengths: Sequence[float] | None = None,
    report: Callable[[int], None] | None = None,
) -> TrainedOn:
    """Trains on the best third, the worst third and random thirds of the pairs.

    The adapter ends at the checkpoint of the trainings.

    Args:
        trainings: Of the pairs, four or more, and of the questions whose loss is measured (`trainings_of`).
        scores: What the pairs are ranked by.
        options: Sizes and seed. The random subsets split the pairs evenly, several times over.
        held_out: Whether the questions had no part in the scores; only noted.
        lengths: What the sums over the answers' tokens are divided by in the questions' losses. With them the
            probability of another answer is measured, 1 - P, in place of the loss.
        report: Called with the number of trainings of each group when it is done.

    Raises:
        ModelError: A loss is not finite.
    """
    count, seed = len(scores), options.seed
    size = max(2, count // 3)
    order = sorted(range(count), key=lambda i: -scores[i])
    subsets = [
        sorted(order[:size]),
        sorted(order[-size:]),
        *_random_subsets(count, size, options.random_subsets, seed),
    ]
    batch_size = min(options.batch_size, size)
    start = _measured(trainings.start(), lengths)
    schedules = [schedule(members, options.steps, batch_size, seed + number) for number, members in enumerate(subsets)]
    losses = _measured(trainings.run(schedules, [options.steps], report)[:, 0], lengths)
    means = np.asarray([np.mean([scores[i] for i in members]) for members in subsets])
    agreement, difference = subset_intervals(means, start, losses, seed)
    return TrainedOn(
        subsets=len(subsets),
        members=size,
        steps=options.steps,
        batch_size=batch_size,
        lr=trainings.lr,
        questions=len(start),
        held_out=held_out,
        start=float(start.mean()),
        top=float(losses[0].mean()),
        bottom=float(losses[1].mean()),
        random=float(losses[2:].mean()) if len(subsets) > 2 else None,
        agreement=agreement,
        difference=difference,
        by="loss" if lengths is None else "miss",
    )


def _measured(losses: torch.Tensor, lengths: Sequence[float] | None) -> Array:
    """Losses [..., Q], or 1 - P."""
    values = np.asarray(losses.numpy(), dtype=np.float64)
    return values if lengths is None else -np.expm1(-np.asarray(lengths) * values)


def _random_subsets(count: int, size: int, wanted: int, seed: int) -> list[list[int]]:
    """Parts of random partitions, so that every pair is trained on about as often as every other."""
    generator = random.Random(f"look {seed}")
    subsets: list[list[int]] = []
    while len(subsets) < wanted:
        order = list(range(count))
        generator.shuffle(order)
        subsets += [sorted(order[i : i + size]) for i in range(0, count - size + 1, size)]
    return subsets[:wanted]


def subset_intervals(means: Array, start: Array, losses: Array, seed: int) -> tuple[Interval, Interval]:
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
    defined = agreements[~np.isnan(agreements)]
    agreement = Interval(None, None, None)
    # Few subsets give no interval.
    if not np.isnan(value) and len(defined) > _DRAWS // 2 and count > 3:
        agreement = Interval(value, *_ends(defined))
    between = losses[1] - losses[0]
    difference = Interval(float(between.mean()), None, None)
    if questions > 1 and count > 3:
        # Other pairs of the same score lead to other losses; random subsets show how far apart.
        by_pairs = math.sqrt(2) * float(losses[2:].mean(-1).std(ddof=1)) * float(t.ppf(0.975, count - 3))
        low, high = _ends(between[asked].mean(-1))
        middle = float(between.mean())
        below, above = math.hypot(middle - low, by_pairs), math.hypot(high - middle, by_pairs)
        difference = Interval(middle, middle - below, middle + above)
    return agreement, difference


def _ends(draws: Array) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
