"""Rubrics, pairs and scores flow at once, and nothing that comes out depends on which of them comes first."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimize_helpers import BASE_TEXT, PairWriter, RubricModel, Scorer, Shape, make_reward, passages, rubric

from optimsyn.base.errors import ModelError, ReplyError, ServiceError
from optimsyn.base.meter import Meter
from optimsyn.data.records import Pair
from optimsyn.optimize.prompt_task import PromptTask
from optimsyn.programs.rubric import RubricWriter
from optimsyn.recipe.sections.optimizers import PromptOptimizer
from optimsyn.reward.drafting import RubricRequest
from optimsyn.reward.pipeline import in_order
from optimsyn.reward.reward import WINDOW, Judgement

KINDS = ("mechanism", "quantity", "comparison", "forbidden")


def blanks(count: int) -> list[RubricRequest]:
    return [
        RubricRequest(passage=passage, kind="free", seed=i, variant="t") for i, passage in enumerate(passages(count))
    ]


def with_rubric(request: RubricRequest) -> RubricRequest:
    kind = KINDS[request.seed % len(KINDS)]
    return request.under(ReplyError("no rubric") if request.seed % 11 == 10 else rubric(kind))


async def ask(request: RubricRequest) -> RubricRequest:
    return with_rubric(request)


class Slow(PairWriter):
    """Its replies come in an order that a seed decides."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    async def awrite(self, *given: Any, **more: Any) -> Pair:
        for _ in range(self.random.randrange(6)):
            await asyncio.sleep(0)
        return await super().awrite(*given, **more)


class OfBatch(Scorer):
    """A score that depends on the whole batch, as last bits do."""

    def score(self, pairs: Any) -> Any:
        scores = super().score(pairs)
        shift = 1e-6 * sum(map(len, (pair.question for pair in pairs)))
        scores.total = [total + shift for total in scores.total]
        return scores


@given(st.integers(1, 40), st.integers(0, 10**6), st.integers(1, 9), st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_ledger_and_judgements_are_those_of_the_serial_loop(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, window: int, ahead: int
) -> None:
    folder = tmp_path_factory.mktemp("pipeline")
    serial = make_reward(folder / "serial.jsonl", scorer=OfBatch(), window=window)
    expected: list[Judgement] = []
    asked = [with_rubric(request) for request in blanks(count)]
    for start in range(0, count, window):
        expected += asyncio.run(serial.judge(asked[start : start + window]))
    flowing = make_reward(folder / "flowing.jsonl", scorer=OfBatch(), writer=Slow(seed), window=window, ahead=ahead)
    assert asyncio.run(flowing.judge(blanks(count), ask)) == expected
    assert (folder / "flowing.jsonl").read_bytes() == (folder / "serial.jsonl").read_bytes()


def test_pairs_are_written_while_others_are_scored_and_rubrics_while_pairs_are_written() -> None:
    """Scoring the first window waits for a pair of the third; writing the first pair, for the second rubric."""
    third, second = threading.Event(), asyncio.Event()

    class Waiting(Scorer):
        def score(self, pairs: Any) -> Any:
            assert third.wait(60), "no pair was written while the first window was scored"
            return super().score(pairs)

    class Telling(PairWriter):
        async def awrite(self, passage: Any, rubric: Any, *, seed: int, **more: Any) -> Pair:
            if seed == 0:
                await asyncio.wait_for(second.wait(), 60)
            if seed == 2 * WINDOW:
                third.set()
            return await super().awrite(passage, rubric, seed=seed, **more)

    async def telling(request: RubricRequest) -> RubricRequest:
        if request.seed == 1:
            second.set()
        return request.under(rubric())

    reward = make_reward(scorer=Waiting(), writer=Telling())
    assert len(asyncio.run(reward.judge(blanks(3 * WINDOW), telling))) == 3 * WINDOW


def test_no_more_is_under_way_than_asked_for() -> None:
    under_way, most = 0, 0

    async def work(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        return item

    async def run() -> list[int]:
        nonlocal under_way
        results = []
        async for item in in_order(iter(range(50)), work, 7):
            under_way -= 1
            results.append(item)
        return results

    assert asyncio.run(run()) == list(range(50))
    assert most == 7


def test_equal_requests_that_flow_at_once_are_written_once() -> None:
    writer = Slow(3)
    reward = make_reward(writer=writer)
    requests = [request.model_copy(update={"seed": request.seed % 2}) for request in blanks(1) * 40]
    rows = asyncio.run(reward.judge(requests, ask))
    assert len({row.key for row in rows}) == 1
    assert len(writer.written) == 1
    assert reward.scorer.calls == [1]


def test_a_pair_that_is_written_ahead_is_not_written_again() -> None:
    begun, go = threading.Event(), threading.Event()

    class Gated(PairWriter):
        async def awrite(self, *given: Any, **more: Any) -> Pair:
            begun.set()
            await asyncio.to_thread(go.wait, 60)
            return await super().awrite(*given, **more)

    reward = make_reward(writer=Gated())
    requests = [with_rubric(request) for request in blanks(3)]
    reward.write_ahead(requests)
    assert begun.wait(60), "writing ahead does not wait to be judged"
    go.set()
    assert len(asyncio.run(reward.judge(requests))) == 3
    assert max(Counter(reward.pair_writer.written).values()) == 1


def test_what_could_not_be_written_ahead_is_an_error_where_it_is_judged() -> None:
    writer = PairWriter(fail_at=0)
    writer.fails = ServiceError("connection refused")
    reward = make_reward(writer=writer)
    requests = [with_rubric(request) for request in blanks(2)]
    reward.write_ahead(requests)
    with pytest.raises(ServiceError, match="connection refused"):
        asyncio.run(reward.judge(requests))


def test_a_generator_of_garbage_is_stopped_also_where_it_writes_ahead() -> None:
    writer = PairWriter()
    writer.garbage = True
    reward = make_reward(writer=writer, garbage_limit=6)
    requests = [request.under(rubric()) for request in blanks(12)]
    reward.write_ahead(requests[:6])
    with pytest.raises(ServiceError, match="6 replies in a row"):
        for request in requests:  # the limit may be reached while the first is judged
            asyncio.run(reward.judge([request]))
    assert writer.model.set_aside == 6


class Unwritten(PairWriter):
    """Fails at one seed; all others that are begun wait until they are cancelled, or are written."""

    def __init__(self, seed: int, *, wait: bool) -> None:
        super().__init__()
        self.seed = seed
        self.wait = wait
        self.cancelled: list[int] = []

    async def awrite(self, passage: Any, rubric: Any, *, seed: int, **more: Any) -> Pair:
        if seed == self.seed:
            await asyncio.sleep(0)
            raise ServiceError("connection refused")
        if self.wait and seed > self.seed:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(seed)
                raise
        return await super().awrite(passage, rubric, seed=seed, **more)


def test_an_error_keeps_what_was_judged_before_it_and_cancels_the_rest(tmp_path: Path) -> None:
    ledger = tmp_path / "rewards.jsonl"
    writer = Unwritten(WINDOW + 2, wait=True)
    reward = make_reward(ledger, writer=writer, ahead=4 * WINDOW)

    async def judge() -> None:
        with pytest.raises(ServiceError, match="connection refused"):
            await reward.judge([request.under(rubric()) for request in blanks(8 * WINDOW)])
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(judge())
    assert ledger.read_bytes().count(b"\n") == WINDOW
    assert writer.cancelled
    assert len(writer.written) == WINDOW + 2, "what came before it, and nothing more"
    again = make_reward(ledger)
    rows = asyncio.run(again.judge([request.under(rubric()) for request in blanks(8 * WINDOW)]))
    whole = make_reward()
    assert rows == asyncio.run(whole.judge([request.under(rubric()) for request in blanks(8 * WINDOW)]))
    assert len(again.pair_writer.written) == 7 * WINDOW


def test_an_error_of_the_scorer_stops_the_generator() -> None:
    class Broken(Scorer):
        def score(self, pairs: Any) -> Any:
            raise ModelError("no memory")

    reward = make_reward(scorer=Broken(), ahead=2 * WINDOW)
    with pytest.raises(ModelError, match="no memory"):
        asyncio.run(reward.judge([request.under(rubric()) for request in blanks(20 * WINDOW)]))
    assert len(reward.pair_writer.written) <= 3 * WINDOW


def test_a_caller_that_gives_up_leaves_the_pair_to_the_others() -> None:
    begun = asyncio.Event()

    class Gated(PairWriter):
        async def awrite(self, *given: Any, **more: Any) -> Pair:
            if not begun.is_set():
                begun.set()
                await asyncio.Event().wait()
            return await super().awrite(*given, **more)

    reward = make_reward(writer=Gated())
    request = with_rubric(blanks(1)[0])

    async def run() -> list[Judgement]:
        first = asyncio.ensure_future(reward.judge([request]))
        await begun.wait()
        second = asyncio.ensure_future(reward.judge([request]))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    (row,) = asyncio.run(run())
    assert row.valid


def test_a_text_is_judged_in_the_same_batches_whoever_asks(tmp_path: Path) -> None:
    """GEPA's examples are evaluated one by one in threads, and yet scored together."""
    from optimsyn.optimize.prompt import optimize_guiding_text

    judged: list[tuple[int, int]] = [(0, 0)]
    reward = make_reward(tmp_path / "rewards.jsonl", report=lambda now, different: judged.append((now, different)))
    config = PromptOptimizer(metric_calls=40, minibatch=3, passages=6)
    model = RubricModel()
    task = PromptTask(config, RubricWriter(model, BASE_TEXT), reward, passages(6), Shape(), 5, tmp_path)
    optimize_guiding_text(task)
    fresh = [now for (_, before), (now, different) in pairwise(judged) if different > before]
    assert set(fresh) == {3, 6}, "a minibatch, then all passages"
    assert model.requests == config.metric_calls - task.left, "no rubric is asked for twice"


def test_busy_shares_and_means() -> None:
    now = 0.0
    meter = Meter(lambda: now)

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    passes(2)
    with meter.at_work("generator"):
        passes(1)
        with meter.at_work("generator"), meter.at_work("target"):
            passes(2)
        with meter.waiting("generator"):
            passes(4)
        passes(1)
    loads = meter.loads()
    assert (loads["generator"].busy, loads["generator"].mean) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (loads["target"].busy, loads["target"].mean) == (pytest.approx(0.2), pytest.approx(0.2))
    with meter.at_work("target"):
        passes(10)
        assert meter.loads()["target"].busy == pytest.approx(12 / 20), "work under way counts"
