"""What a service says about its tokens is believed as far as texts and limits explain it; else they are counted."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from llm_helpers import KEY, Answer, Service, said, service

from optimsyn.base.errors import Outcome
from optimsyn.base.terminal.labels import outcome_table
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.hosted import failures
from optimsyn.llm.hosted.capabilities import FREE
from optimsyn.llm.hosted.service_memory import read_services
from optimsyn.llm.hosted.usage import Exchange, Tokens, believable_cost, tokens_of
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.replies import Budget, ReplyCache
from optimsyn.recipe.recipe import ModelSpec
from optimsyn.runs.outcomes import run_notes

TEXT = "The dose is five milligrams, once a day."
QUESTION = "What is the dose that the passage names for adults, and how often is it taken?"
PRICES = {"input": 2.0, "output": 10.0, "cached_input": 0.5}


@pytest.fixture
def served() -> Iterator[Service]:
    with service() as running:
        yield running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("LOCAL_SERVICE_KEY", KEY)


def model(base: str, cache: ReplyCache | None = None, budget: Budget | None = None, **spec: Any) -> LanguageModel:
    values = {"name": "openai/some-model", "api_base": base, "api_key_env": "LOCAL_SERVICE_KEY", "retries": 1, **spec}
    return load_language_model(ModelSpec.model_validate(values), cache, budget=budget)


def telling(usage: str | None, text: str = TEXT, finish: str = "stop") -> Answer:
    """A reply with this JSON as its usage; None: without any."""
    body = json.loads(said(text, finish=finish).body)
    body["usage"] = "@"
    if usage is None:
        del body["usage"]
    return Answer(200, json.dumps(body).replace('"@"', str(usage)))


def counted(text: str) -> int:
    """Tokens in the vocabulary that stands in for unknown ones, counted by its own library."""
    return len(tiktoken.get_encoding("cl100k_base").encode(text))


IMPLAUSIBLE = [
    '{"prompt_tokens": 1000000000000, "completion_tokens": 1000000000000, "total_tokens": 2000000000000}',
    '{"prompt_tokens": 1e30, "completion_tokens": 1e30}',
    '{"prompt_tokens": ' + "9" * 60 + ', "completion_tokens": ' + "9" * 60 + "}",
    '{"prompt_tokens": -5, "completion_tokens": -3}',
    '{"prompt_tokens": NaN, "completion_tokens": NaN}',
    '{"prompt_tokens": Infinity, "completion_tokens": -Infinity}',
    '{"prompt_tokens": "many", "completion_tokens": "NaN"}',
    '{"prompt_tokens": [1], "completion_tokens": {"a": 1}}',
    '{"prompt_tokens": 7.5, "completion_tokens": 3.2}',
    '{"prompt_tokens": null, "completion_tokens": null}',
    '{"prompt_tokens": 0, "completion_tokens": 0}',
    '"lots"',
    "[1, 2]",
    "5",
    "{}",
    "null",
    None,
]


@pytest.mark.parametrize("usage", IMPLAUSIBLE)
async def test_usage_that_cannot_be_true_is_counted_from_the_texts(
    served: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture, usage: str | None
) -> None:
    served.answers(telling(usage))
    cache = ReplyCache(tmp_path / "replies.sqlite")
    asked = model(served.base, cache, Budget(cache, cost_usd=1.0, tokens=5000), prices=PRICES)
    replies = [await asked.complete(Call.of(QUESTION, seed=number, max_tokens=60)) for number in range(3)]
    assert len(served.requests) == 3  # none was asked for twice, and no cap was met
    right = (counted(QUESTION), counted(TEXT))
    assert {(reply.input_tokens, reply.output_tokens) for reply in replies} == {right}
    cost = (right[0] * 2.0 + right[1] * 10.0) / 1e6
    assert all(reply.text == TEXT and reply.estimated for reply in replies)
    assert replies[0].cost_usd == pytest.approx(cost)
    totals = cache.totals()
    assert (totals.input_tokens, totals.output_tokens) == (3 * right[0], 3 * right[1])
    assert totals.cost_usd == pytest.approx(3 * cost)
    # Told once, remembered, and counted.
    assert sum("cannot be true" in r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING) == 1
    services = read_services(tmp_path / "services.json")
    (answers,) = services.values()
    assert "prompt_tokens" in answers["usage"] and "completion_tokens" in answers["usage"]
    assert cache.outcomes.counts() == {"other": {"estimated": 3}}
    notes = run_notes(services, cache.outcomes.counts())
    assert any("cannot be true" in note for note in notes) and any("of 3 replies" in note for note in notes)
    cache.outcomes.note(asked.key(Call.of(QUESTION, seed=0, max_tokens=60)), "generator", Outcome.READ)
    assert cache.outcomes.counts() == {"generator": {"read": 1, "estimated": 1}, "other": {"estimated": 2}}
    columns, rows = outcome_table(cache.outcomes.counts())
    assert columns[-1] == "tokens not reported, estimated" and [counts[-1] for _, counts in rows] == [1, 2]


PLAUSIBLE = [
    ('{"prompt_tokens": 19, "completion_tokens": 9}', (19, 9, 0)),
    ('{"prompt_tokens": 19.0, "completion_tokens": "9"}', (19, 9, 0)),
    # Thoughts that are not shown count within the limit.
    ('{"prompt_tokens": 19, "completion_tokens": 400}', (19, 400, 0)),
    ('{"prompt_tokens": 19, "completion_tokens": 390, "completion_tokens_details": {"reasoning_tokens": 380}}', (19, 390, 380)),  # noqa: E501
    # Beside the limit, where the service says so.
    ('{"prompt_tokens": 19, "completion_tokens": 5000, "completion_tokens_details": {"reasoning_tokens": 4990}}', (19, 5000, 4990)),  # noqa: E501
    # Instructions, a template or tools of the service's own.
    ('{"prompt_tokens": 2600, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 2500}}', (2600, 9, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("usage", "right"), PLAUSIBLE)
async def test_usage_that_can_be_true_is_taken_as_it_is(
    served: Service, tmp_path: Path, usage: str, right: tuple[int, int, int]
) -> None:
    served.answers(telling(usage))
    cache = ReplyCache(tmp_path / "replies.sqlite")
    reply = await model(served.base, cache, prices=PRICES).complete(Call.of(QUESTION))
    assert (reply.input_tokens, reply.output_tokens, reply.reasoning_tokens) == right
    assert not reply.estimated
    assert "estimated" not in json.dumps(cache.outcomes.counts())
    assert not (tmp_path / "services.json").exists() or "usage" not in next(
        iter(read_services(tmp_path / "services.json").values())
    )


@pytest.mark.parametrize(
    "cost", ["NaN", "Infinity", "-3", "1e12", '"free"'], ids=["nan", "infinite", "negative", "huge", "text"]
)
async def test_a_cost_that_cannot_be_true_is_unknown_or_reckoned_by_the_prices(served: Service, cost: str) -> None:
    usage = '{"prompt_tokens": 19, "completion_tokens": 9, "cost": %s}'
    name = "openrouter/openai/some-model"
    served.answers(telling(usage % cost))
    unknown = await model(served.base, name=name).complete(Call.of(QUESTION))
    assert unknown.cost_usd is None
    assert (unknown.input_tokens, unknown.output_tokens) == (19, 9)
    priced = await model(served.base, name=name, prices=PRICES).complete(Call.of(QUESTION))
    assert priced.cost_usd == pytest.approx((19 * 2.0 + 9 * 10.0) / 1e6)
    # What can be true, and nobody else says, is taken.
    served.answers(telling(usage % "0.00002"))
    assert (await model(served.base, name=name).complete(Call.of(QUESTION))).cost_usd == pytest.approx(0.00002)


async def test_a_reply_of_unlikely_details_is_paid_by_the_prices(served: Service) -> None:
    usage = '{"prompt_tokens": 19, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": -1000000000000}}'
    served.answers(telling(usage))
    reply = await model(served.base, prices=PRICES).complete(Call.of(QUESTION))
    assert reply.cost_usd == pytest.approx((19 * 2.0 + 9 * 10.0) / 1e6)


def test_what_was_cut_has_used_up_its_limit() -> None:
    exchange = Exchange("Hello", "some words", limit=50, cut=True)
    assert tokens_of(None, exchange, len).output == 50


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
    st.integers(-10**40, 10**40), st.dictionaries(st.text(max_size=2), st.none(), max_size=1),
)  # fmt: skip


@given(anything, anything, anything, anything, st.text(max_size=40), st.text(max_size=40))
def test_no_usage_makes_counts_that_cannot_be(
    read: Any, written: Any, thought: Any, cached: Any, asked: str, said_: str
) -> None:
    usage = SimpleNamespace(
        prompt_tokens=read,
        completion_tokens=written,
        completion_tokens_details=SimpleNamespace(reasoning_tokens=thought),
        prompt_tokens_details=SimpleNamespace(cached_tokens=cached),
    )
    found = tokens_of(usage, Exchange(asked, said_, limit=100), len)
    assert 1 <= found.input <= len(asked.encode()) + 16_384
    assert 0 <= found.reasoning <= found.output <= max(100, len(said_.encode())) + 64 + 131_072
    assert 0 <= found.cached <= found.input
    assert len(found.doubt) < 400
    assert FREE.cost(found.input, found.output, found.cached) == 0.0


def test_costs_are_believed_as_far_as_list_prices_explain_them() -> None:
    spec, tokens = ModelSpec(name="openai/gpt-4.1-mini"), Tokens(1000, 100)
    assert believable_cost(spec, 0.0006, tokens) == 0.0006
    assert believable_cost(spec, 0.03, tokens) == 0.03  # a fee for a search, say
    for cost in (float("nan"), float("inf"), -0.1, 50.0, True, None, "1"):
        assert believable_cost(spec, cost, tokens) is None
    assert believable_cost(ModelSpec(name="openai/nobody-knows"), 1e6, tokens) is None
