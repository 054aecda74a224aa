"""Intervals over crossed seeds and groups hold what they promise; Holm and power agree with known values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from optimsyn.study.arms.effects import Differences, Spread, effect, holm, spread, t_interval
from optimsyn.study.arms.power import (
    Components,
    components,
    detectable,
    detectable_with,
    planned,
    power_of,
    seeds_for,
)


def _drawn(
    generator: np.random.Generator, seeds: int, sd: tuple[float, float, float], *, shift: float = 0.0, groups: int = 40
) -> Differences:
    """Differences with random seeds, groups and questions; groups have one to five questions."""
    sizes = 1 + np.arange(groups) % 5
    of_group = np.repeat(generator.normal(0, sd[1], groups), sizes)
    group = np.repeat(np.arange(groups), sizes)
    values, where, what = [], [], []
    for seed in range(seeds):
        rest = generator.normal(0, sd[2], len(of_group))
        values += list(shift + generator.normal(0, sd[0]) + of_group + rest)
        where += [seed] * len(of_group)
        what += [f"g{each}" for each in group]
    return Differences(tuple(values), tuple(where), tuple(what))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("domains", [1, 5])
@pytest.mark.parametrize("sd", [(0.12, 0.1, 0.5), (0.05, 0.3, 0.5), (0.01, 0.4, 0.5)])
def test_the_interval_covers_no_difference_in_its_share_of_studies(
    seeds: int, domains: int, sd: tuple[float, float, float]
) -> None:
    generator = np.random.default_rng(7)
    covered, studies = 0, 500
    for _ in range(studies):
        spreads = [spread(_drawn(generator, seeds, sd)) for _ in range(domains)]
        test = t_interval(spreads, 0.95)
        assert test is not None
        covered += bool(abs(np.mean([each.mean for each in spreads])) <= test[0])
    assert 0.92 <= covered / studies <= 0.98


def test_a_balanced_design_has_the_mean_squares_of_the_textbook() -> None:
    table = np.random.default_rng(1).normal(size=(4, 6))
    rows, columns = np.indices(table.shape)
    data = Differences(tuple(table.ravel()), tuple(rows.ravel().tolist()), tuple(map(str, columns.ravel())))
    found = spread(data)
    ms_rows, ms_columns = 6 * table.mean(1).var(ddof=1), 4 * table.mean(0).var(ddof=1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    ms_rest = (rest**2).sum() / 15
    assert (found.of_seeds, found.of_groups, found.of_both) == pytest.approx(
        (ms_rows / 24, ms_columns / 24, ms_rest / 24)
    )
    assert (found.mean, found.seeds, found.groups) == pytest.approx((table.mean(), 4, 6))
    parts = components(found)
    assert planned(parts, 4).variance == pytest.approx(found.variance)


def test_seeds_alone_give_the_t_test_and_few_seeds_nothing() -> None:
    values = (0.1, 0.3, 0.5, 0.2)
    # Questions that all agree leave the spread over seeds.
    data = Differences(tuple(np.repeat(values, 5)), tuple(np.repeat(range(4), 5).tolist()), tuple("abcde" * 4))
    found = effect([data])
    t = stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(t.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(t.confidence_interval(0.95)))
    assert found.bootstrap_low is not None
    assert found.bootstrap_low > found.low  # type: ignore[operator]
    alone = effect([Differences((0.1, 0.2), (0, 0), ("a", "b"))])
    assert alone.value == pytest.approx(0.15)
    assert alone.low is alone.p is None
    with pytest.raises(ValueError, match="not finite"):
        effect([Differences((float("nan"),), (0,), ("a",))])


def test_seeds_with_questions_of_their_own_are_no_crossed_design() -> None:
    generator = np.random.default_rng(3)
    values = generator.normal(size=60)
    data = Differences(tuple(values), tuple(np.repeat(range(3), 20).tolist()), tuple(f"g{i}" for i in range(60)))
    found = spread(data)
    assert found.of_both == 0
    assert found.variance >= max(found.of_seeds, found.of_groups)


def test_holm_has_its_known_values() -> None:
    # From statsmodels' multipletests(method="holm").
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_power_is_that_of_the_t_test_and_of_simulated_studies() -> None:
    # One-sample t-test: d = .5, n = 34 has power .808 (Cohen's tables; statsmodels' TTestPower gives .8078).
    only_seeds = [Spread(0.0, 1 / 34, 0.0, 0.0, 34, 1, 1)]
    assert power_of(0.5, only_seeds) == pytest.approx(0.8078, abs=1e-4)
    assert detectable(only_seeds, power=0.8078) == pytest.approx(0.5, abs=1e-3)

    sd = (0.08, 0.2, 0.5)
    generator = np.random.default_rng(11)
    pilots = [components(spread(_drawn(generator, 200, sd))) for _ in range(3)]
    assert np.mean([each.seed for each in pilots]) == pytest.approx(0.08, abs=0.01)
    size = detectable_with(pilots, 4)
    hits = 0
    for _ in range(600):
        spreads = [spread(_drawn(generator, 4, sd, shift=size)) for _ in range(3)]
        half, p, _ = t_interval(spreads, 0.95) or (0.0, 1.0, 0.0)
        assert half > 0
        hits += p < 0.05
    assert hits / 600 == pytest.approx(0.8, abs=0.08)


def test_seeds_needed_are_the_fewest_and_questions_set_a_floor() -> None:
    parts = [Components(0.1, 0.2, 0.5, 50)]
    few = seeds_for(0.15, parts)
    assert few is not None
    assert power_of(0.15, [planned(parts[0], few)]) >= 0.8 > power_of(0.15, [planned(parts[0], few - 1)])
    assert seeds_for(0.01, parts) is None
