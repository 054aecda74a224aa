"""By what rules a warm-up ends and chooses its rate, on losses that are written by hand: no model takes part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from scipy import stats

from optimsyn.base.errors import ModelError
from optimsyn.target.warm_up.checkpoints import Checkpoint, DivergedError
from optimsyn.target.warm_up.curve import Losses, Search, change, choose_rate, overfits, settled
from optimsyn.target.warm_up.search import Bench, Plan, run


def losses(end: Sequence[float], unseen: Sequence[float] = (3.0, 3.0, 3.0), content: float = 2.0) -> Losses:
    return Losses(tuple(end), (1.0,) * len(end), (content,) * len(end), tuple(unseen))


def levels(*values: float) -> list[Losses]:
    return [losses((value + 0.1, value - 0.1, value)) for value in values]


@pytest.mark.parametrize(
    ("history", "is_settled"),
    [
        (levels(6, 3, 0.5, 0.3), False),
        # Little is left, so that no further step can change much.
        (levels(6, 3, 0.9, 0.25), True),
        (levels(0.6, 0.25), False),
        (levels(6, 3, 0.5, 0.3, 0.2), True),
        (levels(6, 3, 3.1, 2.9), True),
        (levels(0.1, 0.1), False),
        (levels(0.1, 0.1, 0.12), True),
        # High and still: nothing was learned yet.
        (levels(6, 6, 6), False),
        (levels(6, 5.99, 5.98, 5.97), False),
        (levels(0.4, 0.3, 0.2), False),
        # The same move, but no two questions agree on it.
        ([losses((0.4, 0.4, 0.4)), losses((0.3, 0.3, 0.3)), losses((0.9, 0.0, 0.0))], True),
    ],
)
def test_the_form_has_settled_when_it_stands_still_where_it_is_learned(history: list[Losses], is_settled: bool) -> None:
    assert bool(settled(history)) is is_settled


def test_noise_is_that_of_a_paired_t_test() -> None:
    before, after = (3.0, 1.0, 2.0, 5.0), (3.4, 1.1, 2.5, 5.1)
    found = change(before, after)
    reference = stats.ttest_rel(after, before)
    assert found.mean / found.error == pytest.approx(reference.statistic)
    start = losses((1.0,), before)
    assert (stats.ttest_rel(after, before, alternative="greater").pvalue < 0.05) == bool(
        overfits([start, losses((1.0,), after)])
    )
    assert not overfits([start, losses((1.0,), (3.4, 1.1, 2.5, 4.3))]), "a rise within the noise"
    assert not overfits([start, losses((1.0,), before)])
    assert not overfits([losses((1.0,), (1.0,)), losses((1.0,), (9.0,))]), "one sample tells nothing of its noise"
    lowest = losses((1.0,), [value - 1 for value in before])
    assert overfits([start, lowest, losses((1.0,), [value - 0.5 + 0.01 * value for value in before])])


def test_without_an_end_of_text_the_first_token_is_the_form_and_without_unseen_pairs_questions_are_the_content() -> (
    None
):
    bare = Losses((), (0.4, 0.3), (2.0, 3.0), ())
    assert bare.form == (0.4, 0.3)
    assert bare.held_out == (2.0, 3.0)
    assert "first token" in settled([bare, bare, bare])
    worse = bare._replace(content=(2.5, 3.51))
    assert "2 questions" in overfits([bare, worse])


def test_the_best_rate_is_taken_and_those_that_make_it_worse_are_dropped() -> None:
    start = losses((6.0, 6.1, 5.9))
    slow, good, wild = losses((5.0, 5.1, 4.9)), losses((3.0, 3.1, 2.9)), losses((1.0, 1.1, 0.9), (7.0, 7.2, 6.9))
    broken = losses((math.nan, 1.0, 1.0))
    tried = {1e-4: slow, 2e-4: good, 4e-4: wild, 8e-4: broken, 1.6e-3: None}
    lr, dropped = choose_rate(start, tried, 2e-4)
    assert lr == 2e-4
    assert dropped == {
        4e-4: "what was not trained on got worse from the start",
        8e-4: "a loss was not finite",
        1.6e-3: "a loss was not finite",
    }
    # As good within the noise: the one of the fine-tuning.
    noisy = losses((2.0, 3.9, 3.0))
    assert choose_rate(start, {2e-4: good, 4e-4: noisy}, 2e-4)[0] == 2e-4
    assert choose_rate(start, {2e-4: good, 4e-4: noisy}, 4e-4)[0] == 4e-4
    risen = losses((6.5, 6.6, 6.4))
    assert choose_rate(start, {2e-4: risen}, 2e-4) == (None, {2e-4: "the loss rose"})


def test_pairs_are_held_out_where_enough_are_left() -> None:
    search = Search(held_out=0.2, most_unseen=5)
    assert [tuple(map(len, search.split(range(n)))) for n in (1, 5, 6, 14, 24, 100)] == [
        (1, 0),
        (5, 0),
        (4, 2),
        (11, 3),
        (19, 5),
        (95, 5),
    ]
    train, unseen = search.split(range(100), train=50)
    assert (list(train), list(unseen)) == (list(range(50)), list(range(95, 100)))
    assert Search(held_out=0).split(range(9)) == (range(9), range(9, 9))
    assert (Search(every=4).least_steps, Search(every=8).least_steps, Search(max_steps=3).least_steps) == (12, 16, 3)


class Scripted:
    """A training whose looks are written beforehand: what the rules make of them, without any model."""

    def __init__(self, looks: dict[float, Sequence[Losses]], every: int = 4, broken: Sequence[float] = ()) -> None:
        self.scripts, self.every, self.broken = looks, every, broken
        self.lr, self.steps, self.told = 0.0, 0, 0
        self.losses: list[float] = []

    def begin(self, lr: float) -> Any:
        self.lr, self.steps, self.losses, self.told = lr, 0, [], 0
        return self

    def step(self) -> None:
        self.steps += 1
        if self.lr in self.broken:
            raise DivergedError("nan")
        self.losses.append(float(self.steps))

    def look(self) -> Losses:
        script = self.scripts.get(self.lr, self.scripts[0.0])
        return script[min(math.ceil(self.steps / self.every), len(script) - 1)]

    def checkpoint(self) -> Checkpoint:
        since, self.told = tuple(self.losses[self.told :]), self.steps
        return Checkpoint(self.steps, self.lr, {}, {}, {}, losses=since)

    def run(self, *, lr: float | None = None, checkpoints: int = 1, max_steps: int = 24) -> Any:
        plan = Plan(None, lr, Search(max_steps, self.every), 4, checkpoints, 1.0, 0, 2048)
        return run(Bench(self.begin, self.look), plan)


def test_the_checkpoint_is_the_look_before_the_rise_but_never_before_the_fewest_steps() -> None:
    good, worse = [2.9, 3.0, 3.1], [3.5, 3.6, 3.65]
    falling = [losses((level,) * 3, good) for level in (9, 8, 7, 6, 5)]
    late = Scripted({0.0: [*falling, losses((4.0,) * 3, worse)]})
    kept, curve = late.run(lr=1e-3, checkpoints=2)
    assert (curve.stopped, curve.steps, [c.step for c in kept]) == ("overfits", 16, [8, 16])
    assert [look.step for look in curve.looks] == [0, 4, 8, 12, 16, 20]
    assert kept[0].losses + kept[1].losses == curve.losses == tuple(map(float, range(1, 17)))
    early = Scripted({0.0: [falling[0], losses((8.0,) * 3, worse)]})
    kept, curve = early.run(lr=1e-3)
    assert (curve.stopped, curve.steps, [c.step for c in kept]) == ("overfits", 12, [12])
    # A rise that is gone again by the first look that counts is none.
    passing = Scripted({0.0: [falling[0], losses((8.0,) * 3, worse), *falling[2:]]})
    assert passing.run(lr=1e-3, max_steps=16)[1].stopped == "most steps"
    assert passing.run(lr=1e-3, max_steps=6)[1].steps == 6


def test_rates_that_diverge_are_dropped_and_lower_ones_are_tried() -> None:
    start, good = losses((6.0, 6.1, 5.9)), losses((3.0, 3.1, 2.9))
    worse = losses((7.0, 7.2, 7.1))
    some = Scripted({0.0: [start, worse], 1e-4: [start, good]}, broken=[4e-4])
    _, curve = some.run()
    assert curve.lr == 1e-4
    assert [(rate.lr, rate.dropped, rate.judged is None) for rate in curve.rates] == [
        (1e-4, "", False),
        (2e-4, "the loss rose", False),
        (4e-4, "a loss was not finite", True),
    ]
    _, curve = Scripted({0.0: [start, worse], 5e-5: [start, good]}).run()
    assert (curve.lr, len(curve.rates)) == (5e-5, 4)
    _, curve = Scripted({0.0: [start, worse]}, broken=[1e-4, 2e-4, 4e-4]).run()
    assert (curve.lr, len(curve.rates)) == (1.25e-5, 6)
    assert "every rate made things worse" in curve.why_lr


def test_what_is_not_finite_is_told() -> None:
    start, broken = losses((6.0, 6.1, 5.9)), losses((math.nan, 6.0, 6.0))
    with pytest.raises(ModelError, match="not finite before the first step"):
        Scripted({0.0: [broken]}).run()
    with pytest.raises(ModelError, match=r"every learning rate from .* to 0.0004 a loss was not finite"):
        Scripted({0.0: [start, broken]}).run()
    with pytest.raises(ModelError, match="step 8: a held-out loss is not finite; lower warm_up.lr"):
        Scripted({0.0: [start, start, broken]}).run(lr=1e-3)
