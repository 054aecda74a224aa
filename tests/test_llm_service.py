"""Models behind an HTTP service: what is sent, what is kept, and every way in which a service fails."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llm_helpers import KEY, Answer, Service, refused, said, service

from optimsyn.base.errors import BudgetError, ModelError, ServiceError
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.hosted import failures
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.replies import Budget, ReplyCache
from optimsyn.recipe.recipe import ModelSpec

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
HELLO = Call.of("Hello")


@pytest.fixture
def served() -> Iterator[Service]:
    with service() as running:
        yield running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("LOCAL_SERVICE_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def model(base: str, cache: ReplyCache | None = None, budget: Budget | None = None, **spec: Any) -> LanguageModel:
    values = {"name": "openai/some-model", "api_base": base, "api_key_env": "LOCAL_SERVICE_KEY", "retries": 2, **spec}
    return load_language_model(ModelSpec.model_validate(values), cache, budget=budget)


async def failure_of(asked: LanguageModel, call: Call = HELLO) -> str:
    with pytest.raises(ServiceError) as caught:
        await asked.complete(call)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # a traceback in a notebook would print what it holds
    assert asked.failure is caught.value
    return str(caught.value)


async def test_what_is_sent_and_what_comes_back(served: Service, tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "r.sqlite")
    asked = model(served.base, cache)
    call = Call.of("Hello", schema=SCHEMA, schema_name="pair", temperature=0.3, max_tokens=50, seed=4, stop=("\n\n",))
    reply = await asked.complete(call)
    assert (reply.text, reply.input_tokens, reply.output_tokens, reply.model) == ("reply 0", 7, 3, "served-model")
    assert reply.seconds > 0
    sent = served.requests[0]
    assert sent["messages"] == [{"role": "user", "content": "Hello"}]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("some-model", 0.3, 50)
    assert (sent["seed"], sent["stop"]) == (4, ["\n\n"])
    assert sent["response_format"]["json_schema"] == {"name": "pair", "schema": SCHEMA, "strict": True}
    assert served.keys == [f"Bearer {KEY}"]

    again = model(served.base.replace("127.0.0.1", "localhost"), ReplyCache(tmp_path / "r.sqlite"))
    assert await again.complete(call) == reply
    assert len(served.requests) == 1
    assert cache.totals().tokens == 10


async def test_every_field_of_a_call_makes_another_request(served: Service) -> None:
    asked = model(served.base, ReplyCache(":memory:"))
    calls = [
        HELLO,
        Call.of("Hello!"),
        Call.of("Hello", seed=1),
        Call.of("Hello", seed=2),
        Call.of("Hello", temperature=0.1),
        Call.of("Hello", max_tokens=20),
        Call.of("Hello", stop=("x",)),
        Call.of("Hello", schema=SCHEMA),
        Call.of([{"role": "system", "content": "Hello"}]),
    ]
    assert len({asked.key(call) for call in calls}) == len(calls)
    assert asked.key(HELLO) == asked.key(Call.of("Hello", temperature=asked.spec.temperature))
    assert asked.key(HELLO) != model(served.base, name="openai/other").key(HELLO)


async def test_equal_calls_under_way_are_sent_once_and_others_bounded(served: Service) -> None:
    served.answer = lambda number, request: Answer(body=said(request["messages"][0]["content"]).body, delay_s=0.1)
    asked = model(served.base, ReplyCache(":memory:"), concurrency=3)
    replies = await asyncio.gather(*[asked.complete(Call.of(f"call {i % 6}")) for i in range(24)])
    assert [reply.text for reply in replies] == [f"call {i % 6}" for i in range(24)]
    assert len(served.requests) == 6
    assert served.most_busy <= 3


async def test_a_caller_that_gives_up_wastes_no_request(served: Service) -> None:
    served.answer = lambda number, request: Answer(body=said("late").body, delay_s=0.2)
    cache = ReplyCache(":memory:")
    asked = model(served.base, cache)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asked.complete(HELLO), 0.1)
    assert (await asked.complete(HELLO)).text == "late"
    assert len(served.requests) == 1


async def test_a_wrong_key_fails_at_once_and_is_not_shown(served: Service) -> None:
    served.answers(refused(401, f"Incorrect API key provided: {KEY}"))
    cache = ReplyCache(":memory:")
    message = await failure_of(model(served.base, cache))
    assert "openai/some-model" in message and served.base in message
    assert "401" in message and "api_key_env" in message
    assert len(served.requests) == 1
    assert cache.totals().replies == 0


async def test_calls_that_waited_for_a_failed_service_are_not_sent(served: Service) -> None:
    served.answers(refused(401, "no"))
    asked = model(served.base, concurrency=1)
    results = await asyncio.gather(*[asked.complete(Call.of(f"{i}")) for i in range(5)], return_exceptions=True)
    assert all(isinstance(result, ServiceError) for result in results)
    assert len(served.requests) == 1
    served.answers(said("well again"))
    assert (await asked.complete(HELLO)).text == "well again"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refused(403, "not yours"), "403"),
        (refused(404, "no such model"), "no such model"),
        (refused(400, "maximum context length is 10 tokens"), "maximum context length"),
        (refused(402, "pay first"), "402"),
        (refused(429, "You exceeded your current quota: insufficient_quota"), "billing"),
    ],
)
async def test_refusals_are_not_repeated(served: Service, answer: Answer, words: str) -> None:
    served.answers(answer)
    assert words in await failure_of(model(served.base))
    assert len(served.requests) == 1


async def test_a_rate_limit_is_waited_out_as_long_as_it_says(served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noted)
    monkeypatch.setattr("optimsyn.llm.language_model.time", SimpleNamespace(monotonic=lambda: sum(waits)))
    served.answers(refused(429, "slow down", Retry_After="20"), said("ok"))
    assert (await model(served.base).complete(HELLO)).text == "ok"
    assert len(served.requests) == 2
    assert sum(waits) == pytest.approx(20)


async def test_a_rate_limit_that_asks_for_an_hour_stops_the_run(served: Service) -> None:
    served.answers(refused(429, "slow down", Retry_After="3600"))
    assert "3600 seconds" in await failure_of(model(served.base))
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refused(429, "slow down"), "too many requests"),
        (refused(500, "boom"), "HTTP 500"),
        (Answer(503, "<html>busy</html>", {"Content-Type": "text/html"}), "HTTP 503"),
        (Answer(200, "<html>Log in</html>", {"Content-Type": "text/html"}), "not what the API promises"),
        (Answer(200, "garbage {"), "not what the API promises"),
        (Answer(200, "{}"), "not what the API promises"),
        (Answer(200, '{"object": "chat.completion", "choices": []}'), "no choices"),
    ],
)
async def test_what_may_pass_is_tried_again_and_then_told(served: Service, answer: Answer, words: str) -> None:
    served.answers(answer)
    message = await failure_of(model(served.base))
    assert words in message and "3 tries" in message and "What to do:" in message
    assert len(served.requests) == 3
    served.answers(*[answer] * 4, said("ok"))
    assert (await model(served.base).complete(HELLO)).text == "ok"


async def test_a_dead_port_is_told_as_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    message = await failure_of(model(base))
    assert "connection failed" in message and base in message and "3 tries" in message


async def test_a_silent_service_is_left_after_the_time_out(served: Service) -> None:
    served.answers(Answer(delay_s=1.0))
    assert "0.2 seconds" in await failure_of(model(served.base, timeout_s=0.2, retries=0))


async def test_text_that_is_garbage_is_a_reply(served: Service) -> None:
    served.answers(said("%%% \x07 lorem \ud83d"))
    reply = await model(served.base, ReplyCache(":memory:")).complete(Call.of("Hello", schema=SCHEMA))
    assert reply.text.startswith("%%%")
    assert len(served.requests) == 1


async def test_an_empty_reply_is_tried_again_with_another_seed_and_all_are_counted(served: Service) -> None:
    served.answers(said(""), said(None), said("at last"))
    reply = await model(served.base).complete(Call.of("Hello", seed=1))
    assert (reply.text, reply.input_tokens, reply.output_tokens) == ("at last", 21, 9)
    assert len({request["seed"] for request in served.requests}) == 3
    served.answers(said(" "))
    assert (await model(served.base).complete(HELLO)).text == " "
    cut_off = len(served.requests)
    served.answers(said("", finish="length"))
    assert (await model(served.base).complete(HELLO)).finish_reason == "length"
    assert len(served.requests) == cut_off + 1


async def test_a_server_without_schemas_is_asked_without_one_from_then_on(served: Service) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        return refused(400, "response_format is not supported") if "response_format" in request else said("plain")

    served.answer = answer
    asked = model(served.base)
    assert asked.structured
    calls = [Call.of("Hello", schema=SCHEMA, seed=i) for i in range(4)]
    assert {reply.text for reply in await asyncio.gather(*map(asked.complete, calls))} == {"plain"}
    assert not asked.structured
    before = len(served.requests)
    await asked.complete(Call.of("Hello", schema=SCHEMA, seed=9))
    assert len(served.requests) == before + 1
    assert "response_format" in await failure_of(
        model(served.base, structured_output=True), Call.of("x", schema=SCHEMA)
    )


async def test_a_key_that_the_server_repeats_reaches_no_file(served: Service, tmp_path: Path) -> None:
    served.answers(said(f"your key is {KEY}"))
    reply = await model(served.base, ReplyCache(tmp_path / "r.sqlite")).complete(HELLO)
    assert reply.text == "your key is [redacted]"
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("variable", ["LOCAL_SERVICE_KEY", "OPENAI_API_KEY"])
async def test_a_key_in_any_field_of_a_reply_reaches_no_file(
    served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    key = "plain-words-as-a-key"
    monkeypatch.setenv(variable, key)
    named = variable if variable == "LOCAL_SERVICE_KEY" else None
    answer = said(f"your key is {key}", finish=key)
    served.answers(Answer(200, answer.body.replace("served-model", f"model of {key}")))
    reply = await model(served.base, ReplyCache(tmp_path / "r.sqlite"), api_key_env=named).complete(HELLO)
    assert served.keys == [f"Bearer {key}"]
    assert (reply.text, reply.model) == ("your key is [redacted]", "model of [redacted]")
    assert all(key.encode() not in file.read_bytes() for file in tmp_path.iterdir())


async def test_negative_counts_of_tokens_give_no_budget_back(served: Service) -> None:
    served.answers(said("x", prompt_tokens=-5, completion_tokens=-3))
    reply = await model(served.base).complete(HELLO)
    assert (reply.input_tokens, reply.output_tokens) == (1, 1)  # "Hello" and "x", counted here
    assert reply.estimated


async def test_a_reply_that_litellm_cannot_read_is_told_without_its_traceback(served: Service) -> None:
    body = json.loads(said("x").body)
    body["choices"][0]["message"] = None
    served.answers(Answer(200, json.dumps(body)))
    text = await failure_of(model(served.base, retries=0))
    assert "not what the API promises" in text
    assert "Traceback" not in text
    assert "api_base" in text


async def test_a_budget_is_never_passed(served: Service) -> None:
    cache = ReplyCache(":memory:")
    asked = model(served.base, cache, Budget(cache, requests=2))
    results = await asyncio.gather(*[asked.complete(Call.of(f"{i}")) for i in range(6)], return_exceptions=True)
    assert sum(isinstance(result, BudgetError) for result in results) == 4
    assert len(served.requests) == 2
    assert isinstance(asked.failure, BudgetError)
    with pytest.raises(BudgetError):
        asked.raise_failure()
    asked.raise_failure()
    kept = next(call for i in range(6) if cache.get(asked.key(call := Call.of(f"{i}"))))
    assert (await asked.complete(kept)).text.startswith("reply")


async def test_a_key_variable_that_is_not_set_is_named(served: Service) -> None:
    with pytest.raises(ServiceError, match="NOT_SET_HERE"):
        model(served.base, api_key_env="NOT_SET_HERE")


async def test_servers_without_a_key_and_with_any_model_name(served: Service) -> None:
    asked = model(served.base, name="Qwen/Qwen3-0.6B", api_key_env=None)
    await asked.complete(HELLO)
    assert served.requests[0]["model"] == "Qwen/Qwen3-0.6B"


def test_an_adapter_needs_weights(served: Service, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="adapter"):
        load_language_model(ModelSpec(name="openai/some-model", api_base=served.base), adapter=tmp_path)
