"""Power: which difference a number of seeds can find, and how many seeds a difference needs, from a pilot's spread.

Closed form: the variance of the mean for other numbers of seeds and questions from the pilot's parts (`Spread`), and
the power of a two-sided t-test with Satterthwaite's degrees of freedom by the noncentral t distribution (Cohen 1988).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optimsyn.study.arms.effects import Spread, satterthwaite

POWER = 0.8
_MOST_SEEDS = 200


@dataclass(frozen=True)
class Components:
    """Standard deviations behind a domain's mean difference.

    Attributes:
        seed: Of the effect between seeds.
        group: Of the effect between groups of questions.
        rest: Of seed and group together and of single questions, for one group in one seed.
        groups: Groups of questions in the pilot.
    """

    seed: float
    group: float
    rest: float
    groups: float


def components(each: Spread) -> Components:
    """The parts of a pilot's variance as standard deviations; those below 0 are 0."""
    seed = math.sqrt(max(0.0, each.of_seeds - each.of_both) * each.seeds)
    group = math.sqrt(max(0.0, each.of_groups - each.of_both) * each.groups)
    return Components(seed, group, math.sqrt(each.of_both * each.seeds * each.groups), each.groups)


def planned(each: Components, seeds: int, *, questions: float = 1.0) -> Spread:
    """The expected spread with other numbers of seeds and of questions (a multiple of the pilot's groups)."""
    groups = each.groups * questions
    both = each.rest**2 / (seeds * groups)
    return Spread(0.0, each.seed**2 / seeds + both, each.group**2 / groups + both, both, seeds, groups, 0.0)


def power_of(difference: float, spreads: Sequence[Spread], *, alpha: float = 0.05) -> float:
    """The chance that the test finds a true difference of the mean over domains."""
    from scipy import stats

    variance = math.fsum(each.variance for each in spreads) / len(spreads) ** 2
    if variance <= 0:
        return 1.0
    df, shift = satterthwaite(spreads), abs(difference) / math.sqrt(variance)
    edge = float(stats.t.ppf(1 - alpha / 2, df))
    power = float(stats.nct.sf(edge, df, shift)) + float(stats.nct.cdf(-edge, df, shift))
    # Far out the noncentral t distribution is not a number.
    return power if math.isfinite(power) else float(shift > edge)


def detectable(spreads: Sequence[Spread], *, alpha: float = 0.05, power: float = POWER) -> float:
    """The smallest true difference that the test finds with this chance."""
    from scipy import optimize

    error = math.sqrt(math.fsum(each.variance for each in spreads)) / len(spreads)
    if error == 0:
        return 0.0
    high = error
    while power_of(high, spreads, alpha=alpha) < power:
        high *= 2
    found = optimize.brentq(lambda d: power_of(d, spreads, alpha=alpha) - power, 0.0, high, xtol=1e-9 * high)
    return float(found)


def detectable_with(
    domains: Sequence[Components], seeds: int, *, alpha: float = 0.05, power: float = POWER, questions: float = 1.0
) -> float:
    """The smallest difference that so many seeds a domain find; at least two."""
    return detectable([planned(each, seeds, questions=questions) for each in domains], alpha=alpha, power=power)


def seeds_for(
    difference: float, domains: Sequence[Components], *, alpha: float = 0.05, power: float = POWER
) -> int | None:
    """The fewest seeds a domain that find a difference; None if 200 do not, since questions are too few."""
    for seeds in range(2, _MOST_SEEDS + 1):
        if power_of(difference, [planned(each, seeds) for each in domains], alpha=alpha) >= power:
            return seeds
    return None
