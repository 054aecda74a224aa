"""The size of a difference and its uncertainty, where questions and seeds are both random and crossed.

A paired difference belongs to a seed and to a group of questions (those of one document). The model is

    d(s, g) = μ + a_s + b_g + c_sg        seeds a, groups b, both and the question itself c, all random

so the variance of the mean is estimated from the mean squares of seeds, of groups and of both (Searle, Casella and
McCulloch 1992, chapter 4; as a quasi-F for language material in Clark 1973), with components below 0 set to 0, which
only widens an interval. Degrees of freedom are Satterthwaite's (1946), so an interval is as wide as that of a t-test
over seeds where seeds dominate, and as that of one over groups where questions do. Beside it stands the pigeonhole
bootstrap over seeds and groups (Owen 2007), whose percentiles are too narrow for few seeds: `docs/howto/study.md` has
the coverage of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Differences:
    """Paired differences of one domain.

    Attributes:
        values: [n], one for each question and seed.
        seeds: [n], seed of each.
        groups: [n], group of the question of each.
    """

    values: tuple[float, ...]
    seeds: tuple[int, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Spread:
    """The mean difference of a domain and the parts of its variance.

    Attributes:
        mean: Each seed counts the same, and each question within a seed.
        of_seeds: Variance of the mean by the spread of seeds, which holds `of_both` as well; 0 with one seed.
        of_groups: The same by the spread of groups; 0 with one group.
        of_both: The part of seed and group together, and of single questions.
        seeds: How many.
        groups: How many, in effect: fewer if they differ in size.
        questions: Questions of a seed, on average.
    """

    mean: float
    of_seeds: float
    of_groups: float
    of_both: float
    seeds: int
    groups: float
    questions: float

    @property
    def variance(self) -> float:
        """Of the mean."""
        return max(self.of_seeds, self.of_both) + max(self.of_groups, self.of_both) - self.of_both


@dataclass(frozen=True)
class Effect:
    """A difference with its interval and test.

    Attributes:
        value: The difference.
        low: Lower end; None where no spread can be estimated.
        high: Upper end, or None.
        p: Two-sided, of no difference; None as above.
        df: Degrees of freedom.
        bootstrap_low: Lower end of the two-way percentile bootstrap.
        bootstrap_high: Its upper end.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    df: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None


class _Cells:
    """Means and weights of the cells of seed and group, [seeds, groups]; the weights of a seed add up to 1/seeds."""

    def __init__(self, data: Differences) -> None:
        values = np.asarray(data.values, dtype=np.float64)
        seeds, s = np.unique(np.asarray(data.seeds), return_inverse=True)
        groups, g = np.unique(np.asarray(data.groups), return_inverse=True)
        shape = (len(seeds), len(groups))
        self.counts: Array = np.zeros(shape)
        sums: Array = np.zeros(shape)
        np.add.at(self.counts, (s, g), 1.0)
        np.add.at(sums, (s, g), values)
        self.means: Array = np.divide(sums, self.counts, out=np.zeros(shape), where=self.counts > 0)
        self.weights: Array = self.counts / self.counts.sum(1, keepdims=True) / shape[0]


def spread(data: Differences) -> Spread:
    """Mean and parts of the variance of a domain's differences; at least one."""
    cells = _Cells(data)
    means, weights, counts = cells.means, cells.weights, cells.counts
    n_seeds, n_groups = means.shape
    mean = float((weights * means).sum())
    by_group = weights.sum(0)
    seed_means = (weights * means).sum(1) / weights.sum(1)
    group_means = (weights * means).sum(0) / by_group
    of_seeds = float(((seed_means - mean) ** 2).sum()) / (n_seeds * (n_seeds - 1)) if n_seeds > 1 else 0.0
    of_groups = 0.0
    if n_groups > 1:
        of_groups = n_groups / (n_groups - 1) * float(((by_group * (group_means - mean)) ** 2).sum())
    filled = counts > 0
    free = int(filled.sum()) - n_seeds - n_groups + 1
    of_both = 0.0
    if free > 0 and n_seeds > 1 and n_groups > 1:
        rest = means - seed_means[:, None] - group_means[None, :] + mean
        of_both = int(filled.sum()) / free * float((np.where(filled, weights * rest, 0.0) ** 2).sum())
    # The number of groups of one size with the same variance.
    effective = float((by_group**2).sum() ** 2 / (by_group**4).sum()) if n_groups > 1 else 1.0
    return Spread(mean, of_seeds, of_groups, of_both, n_seeds, effective, float(counts.sum()) / n_seeds)


def effect(domains: Sequence[Differences], *, confidence: float = 0.95, seed: int = 0) -> Effect:
    """The mean over domains, each counted the same, with interval, test and bootstrap.

    Domains are fixed (the result is about these), and their seeds are independent draws.

    Args:
        domains: At least one, none empty.
        confidence: Coverage of the intervals.
        seed: Of the bootstrap.

    Raises:
        ValueError: A domain is empty or holds a number that is not finite.
    """
    for data in domains:
        if not data.values or not all(map(math.isfinite, data.values)):
            raise ValueError("effect: a domain has no differences, or one that is not finite")
    spreads = [spread(data) for data in domains]
    value = math.fsum(each.mean for each in spreads) / len(spreads)
    test = t_interval(spreads, confidence)
    if test is None:
        return Effect(value, None, None, None, None, None, None)
    half, p, df = test
    draws = np.mean([_resampled(data, np.random.default_rng([seed, place])) for place, data in enumerate(domains)], 0)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Effect(value, value - half, value + half, p, df, float(low), float(high))


def t_interval(spreads: Sequence[Spread], confidence: float) -> tuple[float, float, float] | None:
    """Half the interval, the two-sided p and the degrees of freedom of the mean over domains.

    None where a domain has a single seed, since the spread over seeds is then unknown, or nothing varies.
    """
    from scipy import stats

    if any(each.seeds < 2 for each in spreads):
        return None
    variance = math.fsum(each.variance for each in spreads) / len(spreads) ** 2
    if variance <= 0:
        return None
    df = satterthwaite(spreads)
    value = math.fsum(each.mean for each in spreads) / len(spreads)
    error = math.sqrt(variance)
    return float(stats.t.ppf((1 + confidence) / 2, df)) * error, float(2 * stats.t.sf(abs(value) / error, df)), df


def satterthwaite(spreads: Sequence[Spread]) -> float:
    """Degrees of freedom of the sum of the domains' variances."""
    total = math.fsum(each.variance for each in spreads) ** 2
    parts = []
    for each in spreads:
        seeds, groups = each.seeds - 1, max(each.groups - 1, 1.0)
        parts += [each.of_seeds**2 / seeds, each.of_groups**2 / groups, each.of_both**2 / (seeds * groups)]
    return total / math.fsum(parts)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """P-values adjusted for all of them together by Holm's step-down method (1979)."""
    ordered = sorted(ps, key=lambda name: ps[name])
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - place) * ps[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in ps}


def _resampled(data: Differences, generator: np.random.Generator) -> Array:
    """Means of a domain under the pigeonhole bootstrap: seeds and groups drawn independently, with replacement."""
    cells = _Cells(data)
    n_seeds, n_groups = cells.means.shape
    seeds = generator.multinomial(n_seeds, [1 / n_seeds] * n_seeds, RESAMPLES)
    groups = generator.multinomial(n_groups, [1 / n_groups] * n_groups, RESAMPLES)
    above = np.einsum("bs,sg,bg->b", seeds, cells.weights * cells.means, groups, optimize=True)
    below = np.einsum("bs,sg,bg->b", seeds, cells.weights, groups, optimize=True)
    # A draw without any question, possible where seeds have different ones, says nothing.
    means: Array = np.divide(above, below, out=np.full(RESAMPLES, spread(data).mean), where=below > 0)
    return means
