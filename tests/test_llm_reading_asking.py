"""Asking once: more room for a cut reply, every outcome on record, a stop where hardly anything can be judged."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from optimsyn.base.errors import BudgetError, Outcome, ReplyError, ServiceError
from optimsyn.llm.dspy_bridge import make_lm
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.hosted.litellm_model import LiteLLMModel
from optimsyn.llm.language_model import Call
from optimsyn.llm.outcome_log import Lately, OutcomeLog
from optimsyn.llm.replies import Budget, Reply, ReplyCache
from optimsyn.programs.pair import PairWriter, TaskShape
from optimsyn.programs.rubric import RubricWriter
from optimsyn.recipe.recipe import ModelSpec
from optimsyn.runs.outcomes import run_notes
from tests.llm_helpers import KEY, Answer, Service, refused, said, service
from tests.programs_helpers import passage

GOOD = json.dumps({"quote": "", "question": "Who gave 600 books?", "answer": "Edith Crane"})
CUT = '{"quote": "", "question": "Who gave 600 books?", "answer": "Edi'


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("READING_TEST_KEY", KEY)
    with service() as state:
        yield state


@pytest.fixture
def cache(tmp_path: Path) -> ReplyCache:
    return ReplyCache(tmp_path / "replies.sqlite")


def writer(served: Service, cache: ReplyCache | None = None, **fields: Any) -> PairWriter:
    budget = fields.pop("budget", None)
    spec = {"api_base": served.base, "api_key_env": "READING_TEST_KEY", "retries": 0, **fields}
    model = load_language_model(ModelSpec(name="openai/served-model", **spec), cache, budget=budget)
    return PairWriter(model, TaskShape())


def message(**fields: Any) -> Answer:
    """A completion whose message has these fields."""
    body = json.loads(said(None).body)
    body["choices"][0]["finish_reason"] = fields.pop("finish", "stop")
    body["choices"][0]["message"] |= fields
    return Answer(200, json.dumps(body))


def by_room(least: int, cut: Answer, whole: Answer) -> Callable[[int, dict[str, Any]], Answer]:
    """A service that needs so many tokens."""
    return lambda number, request: whole if request["max_tokens"] >= least else cut


async def wrote(pair_writer: PairWriter, seed: int = 1) -> str:
    return (await pair_writer.awrite(passage(), None, seed=seed, variant="x")).answer


async def test_a_cut_reply_is_asked_for_again_once_with_more_room(served: Service, cache: ReplyCache) -> None:
    served.answer = by_room(800, said(CUT, finish="length"), said(GOOD))
    assert await wrote(writer(served, cache)) == "Edith Crane"
    assert [request["max_tokens"] for request in served.requests] == [400, 800]
    assert cache.outcomes.counts() == {"generator": {"read": 1, "asked_again": 1}}
    # Read again, it costs nothing and counts once.
    assert await wrote(writer(served, cache)) == "Edith Crane"
    assert len(served.requests) == 2
    assert cache.outcomes.counts() == {"generator": {"read": 1, "asked_again": 1}}


async def test_what_stays_cut_names_the_field_to_raise(served: Service, cache: ReplyCache) -> None:
    served.answers(message(content=None, reasoning_content="Let me see …", finish="length"))
    with pytest.raises(
        ReplyError, match=r"went to reasoning \(at most 800 .* Raise models.generator.max_tokens"
    ) as one:
        await wrote(writer(served, cache))
    assert one.value.outcome is Outcome.CUT and one.value.replies == 2
    assert len(served.requests) == 2
    served.answers(said(CUT, finish="length"))
    with pytest.raises(ReplyError, match="Raise models.rubric.max_tokens"):
        await RubricWriter(writer(served, cache).model, "Ask.").aforward(passage=passage(), kind="free", seed=1)
    assert cache.outcomes.counts() == {
        "generator": {"cut": 1, "asked_again": 1},
        "rubric": {"cut": 1, "asked_again": 1},
    }


@pytest.mark.parametrize(("again", "asked"), [(None, [400, 800]), (1000, [400, 1000]), (400, [400])])
async def test_the_recipe_says_how_much_more(served: Service, again: int | None, asked: list[int]) -> None:
    served.answers(said(CUT, finish="length"))
    with pytest.raises(ReplyError):
        await wrote(writer(served, max_tokens_again=again))
    assert [request["max_tokens"] for request in served.requests] == asked


async def test_a_service_without_more_room_has_not_failed(served: Service, cache: ReplyCache) -> None:
    too_many = refused(400, "max_tokens is too large: 800; this model takes at most 512 completion tokens")
    served.answer = by_room(800, said(CUT, finish="length"), too_many)
    pair_writer = writer(served, cache)
    with pytest.raises(ReplyError) as caught:
        await wrote(pair_writer)
    assert caught.value.outcome is Outcome.CUT
    assert pair_writer.model.failure is None
    served.answers(said(GOOD))
    assert await wrote(pair_writer, seed=2) == "Edith Crane"


async def test_more_room_stays_within_the_budget(served: Service, cache: ReplyCache) -> None:
    served.answers(said(CUT, finish="length"))
    with pytest.raises(BudgetError, match=r"limits.requests"):
        await wrote(writer(served, cache, budget=Budget(cache, requests=1)))
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    ("answer", "outcome", "asked"),
    [
        (message(content=None, refusal="I can't help with that."), Outcome.REFUSAL, 1),
        (message(content=None, finish="content_filter"), Outcome.REFUSAL, 1),
        (said("Es tut mir leid, dabei kann ich nicht helfen."), Outcome.REFUSAL, 1),
        (
            message(
                content=None,
                tool_calls=[{"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}],
                finish="tool_calls",
            ),
            Outcome.TOOL_CALL,
            1,
        ),
        (message(content=None, reasoning_content="It is Edith Crane."), Outcome.EMPTY, 1),
        (said(None), Outcome.EMPTY, 1),
        (said("[" * 500), Outcome.INVALID, 1),
        (said("no pair"), Outcome.INVALID, 1),
        (message(content=None, reasoning_content=GOOD), Outcome.READ, 1),
        (said(GOOD.replace("Crane", "Crane\\ud83d")), Outcome.READ, 1),
        (said(GOOD.replace("Crane", "Crane\ud83d")), Outcome.READ, 1),
        (said(GOOD + " " * 3_000_000), Outcome.READ, 1),
    ],
)
async def test_what_a_service_sends_is_told_apart(
    served: Service, cache: ReplyCache, answer: Answer, outcome: Outcome, asked: int
) -> None:
    served.answers(answer)
    for _ in range(2):  # the second time out of the cache
        if outcome is Outcome.READ:
            assert await wrote(writer(served, cache)) == "Edith Crane"
        else:
            with pytest.raises(ReplyError) as caught:
                await wrote(writer(served, cache))
            assert caught.value.outcome is outcome
    assert len(served.requests) == asked
    assert cache.outcomes.counts() == {"generator": {outcome.value: 1}}


async def test_a_service_that_sends_nothing_to_judge_stops_the_run(served: Service, cache: ReplyCache) -> None:
    served.answers(message(content=None, refusal="I can't help with that."))
    pair_writer = writer(served, cache)
    with pytest.raises(ServiceError, match=r"models.generator .* 20 of the last 20 .* \(refusal 20x\).*another model"):
        for seed in range(40):
            with pytest.raises(ReplyError):
                await wrote(pair_writer, seed)
    assert len(served.requests) == 20
    # The cause was fixed: the same requests are sent again.
    served.answers(said(GOOD))
    assert [await wrote(pair_writer, seed) for seed in range(3)] == ["Edith Crane"] * 3
    assert len(served.requests) == 23


def test_one_bad_reply_in_four_stops_nobody() -> None:
    lately = Lately()
    for index in range(200):
        outcome = Outcome.READ if index % 4 else Outcome.CUT
        assert lately.add(outcome, [str(index)]) is None
    for index in range(50):
        found = lately.add(Outcome.INVALID if index % 3 == 0 else Outcome.CUT, [str(index)])
        if found is not None:
            break
    else:
        found = None
    assert found is None, "two in three are not three in four"
    tries = [lately.add(Outcome.EMPTY, [f"e{index}"]) for index in range(24)]
    assert [one for one in tries if one] and next(one for one in tries if one).asked <= 24


def test_counts_are_of_requests_and_survive_processes(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    assert OutcomeLog(path).counts() == {}
    ReplyCache(path).close()
    log = OutcomeLog(path)
    log.note("a", "generator", Outcome.CUT, asked_again=True)
    log.note("b", "generator", Outcome.READ)
    log.note("c", "rubric", Outcome.REFUSAL)
    OutcomeLog(path).note("a", "generator", Outcome.READ, asked_again=True)
    assert log.counts() == {"generator": {"read": 2, "asked_again": 1}, "rubric": {"refusal": 1}}
    assert list(log.counts()["generator"]) == ["read", "asked_again"]


async def test_old_and_damaged_rows_stop_nobody(
    served: Service, cache: ReplyCache, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache of an older version has no outcomes and fewer fields; a damaged row is told and asked for again."""
    served.answers(said(GOOD))
    await wrote(writer(served, cache))
    with sqlite3.connect(cache.path) as db:
        db.execute("DROP TABLE outcomes")
        old = {"text": GOOD.replace("Crane", "Crane\\udc9f"), "finish_reason": "stop"}
        db.execute("UPDATE replies SET reply = ?", (json.dumps(old),))
    again = ReplyCache(cache.path)
    assert await wrote(writer(served, again)) == "Edith Crane"
    assert len(served.requests) == 1
    for damage in (b"{", b"\xff\xfe", b'{"text": 5}', b'{"text": "\\ud83d"}'):
        with sqlite3.connect(cache.path) as db:
            db.execute("UPDATE replies SET reply = CAST(? AS TEXT) WHERE key NOT LIKE '% %'", (damage,))
        before = len(served.requests)
        with caplog.at_level(logging.WARNING):
            assert await wrote(writer(served, again)) == "Edith Crane"
        if len(served.requests) > before:
            assert "damaged; it is set aside" in caplog.text
        assert await wrote(writer(served, again)) == "Edith Crane"
        assert len(served.requests) <= before + 1
    assert again.totals().replies == 1 + len(served.requests) - 1
    # A log that nobody reads is not all: what was bought again is counted beside what came of the requests.
    bought_again = len(served.requests) - 1
    assert bought_again > 0
    assert again.outcomes.counts() == {"generator": {"read": 1, "damaged": bought_again}}
    (note,) = run_notes({}, again.outcomes.counts())
    assert note.startswith(f"{bought_again} kept repl") and "bought again" in note
    assert ReplyCache(cache.path).outcomes.counts() == again.outcomes.counts()


async def test_dspy_warns_of_no_cut_reply(
    served: Service, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    served.answers(said(CUT, finish="length"))
    logger = logging.getLogger("dspy")
    logger.addHandler(caplog.handler)
    try:
        for seed in range(5):
            with pytest.raises(ReplyError):
                await wrote(writer(served), seed)
    finally:
        logger.removeHandler(caplog.handler)
    printed = "".join(capfd.readouterr()) + caplog.text
    assert "truncated" not in printed


def test_a_program_of_dspys_own_gets_whole_texts_without_thinking(served: Service, cache: ReplyCache) -> None:
    class Rewrite(dspy.Signature):
        """Rewrite it."""

        text: str = dspy.InputField()
        better: str = dspy.OutputField()

    model = writer(served, cache).model
    program = dspy.Predict(Rewrite)
    program.set_lm(make_lm(model))
    field = "[[ ## better ## ]]\n{}\n\n[[ ## completed ## ]]"
    served.answers(said(f"<think>{field.format('Draft.')}</think>{field.format('Ask for the dose.')}"))
    assert program(text="x").better == "Ask for the dose."
    served.answers(said(field.format("Ask for")[:-10], finish="length"))
    with pytest.raises(ReplyError) as caught:
        program(text="y")
    assert caught.value.outcome is Outcome.CUT
    assert cache.outcomes.counts() == {"reflection": {"read": 1, "cut": 1, "asked_again": 1}}


async def test_equal_models_hear_alike(cache: ReplyCache) -> None:
    """`more_room` is part of no key but the number of tokens."""
    spec = ModelSpec(name="openai/served-model", api_base="http://127.0.0.1:1/v1")
    model = LiteLLMModel(spec, cache)
    call = Call.of("x", max_tokens=400)
    roomier = model.more_room(call, Reply(text=""))
    assert roomier is not None and roomier.max_tokens == 800 and roomier.roomier
    assert model.key(roomier) == model.key(Call.of("x", max_tokens=800))
