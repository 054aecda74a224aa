"""Comparison of two policies by their rewards on the same held passages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from optimsyn.base.seeds import shuffled
from optimsyn.recipe.sections.optimizers import PolicyOptimizer

_RESAMPLES = 2000


def held_ids(config: PolicyOptimizer, passages: Sequence[str], seed: int) -> set[str]:
    """The ids of the passages that a training in rounds never trains on.

    Args:
        config: The recipe's section `optimizers.policy`.
        passages: The ids of all passages.
        seed: Of the training.
    """
    return set(shuffled(list(passages), seed, "held")[: config.held(len(passages))])


@dataclass(frozen=True)
class Gain:
    """The mean difference of two policies' rewards over passages.

    Attributes:
        mean: It; 0 without passages.
        error: Its standard error; 0 with fewer than two passages.
        low: Lower end of its 95% bootstrap interval; None with fewer than two passages.
        high: Its upper end.
        passages: How many it is a mean over.
    """

    mean: float
    error: float
    low: float | None
    high: float | None
    passages: int


def compared(after: Mapping[str, float], before: Mapping[str, float]) -> Gain:
    """What a policy gained, from the mean reward of each passage; passages that one of the two lacks are left out."""
    import numpy as np
    from scipy.stats import bootstrap

    gains = [after[passage] - before[passage] for passage in after if passage in before]
    if len(gains) < 2:
        return Gain(fmean(gains) if gains else 0.0, 0.0, None, None, len(gains))
    mean, error = fmean(gains), stdev(gains) / math.sqrt(len(gains))
    if error == 0:
        return Gain(mean, error, mean, mean, len(gains))
    interval = bootstrap((gains,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=0).confidence_interval
    return Gain(mean, error, float(interval.low), float(interval.high), len(gains))


def end_of(gain: Gain, number: int, best: int, *, better: bool) -> str:
    """Why a training ended with a round that gained no more than one standard error."""
    other = "untrained policy" if best == 0 else f"policy of round {best}"
    kept = f"the adapter of round {number} is kept" if better else f"the {other} is kept"
    return (
        f"round {number} earned {gain.mean:+.4f} against the {other} on {gain.passages} held passages, within one "
        f"standard error ({gain.error:.4f}); {kept}"
    )
