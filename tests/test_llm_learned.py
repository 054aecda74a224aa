"""What a service refuses is left out from then on, told once, and remembered for the next process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from capabilities_helpers import HELLO, model, schema, told
from llm_helpers import KEY, Answer, Service, refused, said, service

from optimsyn.base.errors import DataError, ServiceError
from optimsyn.llm.hosted import failures
from optimsyn.llm.hosted.service_memory import LIMIT_NAMES, Learned, ServiceMemory, read_services, sentences_of
from optimsyn.llm.language_model import Call
from optimsyn.llm.replies import ReplyCache


def asking(number: int, of: int = 0) -> Call:
    return Call.of("Hello", seed=number, schema=schema(of))


@pytest.fixture
def served() -> Iterator[Service]:
    with service() as running:
        yield running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("LOCAL_SERVICE_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def refusing(text: str, *, when: str, status: int = 400) -> Any:
    """A service that refuses each request with a field of this name."""
    return lambda number, request: refused(status, text) if when in request else said("ok")


# What the service says.


@pytest.mark.parametrize(
    ("said_by", "name"),
    [
        ("Unsupported parameter: 'temperature' is not supported with this model.", "temperature"),
        ("`temperature` is deprecated for this model.", "temperature"),
        ("property 'seed' is unsupported", "seed"),
        ("Argument not supported on this model: stop", "stop"),
        ("Unrecognized request argument supplied: reasoning_effort", "reasoning_effort"),
        ("[{'type': 'extra_forbidden', 'loc': ('body', 'top_p'), 'msg': 'Extra inputs are not permitted'}]", "top_p"),
    ],
)
@pytest.mark.parametrize("status", [400, 422])
async def test_a_refused_parameter_is_left_out_from_then_on_and_told_once(
    served: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture, said_by: str, name: str, status: int
) -> None:
    served.answer = refusing(said_by, when=name, status=status)
    spec: dict[str, Any] = {"top_p": 0.9, "reasoning_effort": "low", "concurrency": 2}
    asked = model(served.base, ReplyCache(tmp_path / "replies.sqlite"), **spec)
    calls = [Call.of(f"{i}", seed=i, stop=("\n",)) for i in range(4)]
    assert {reply.text for reply in await asyncio.gather(*map(asked.complete, calls))} == {"ok"}
    assert sum(name in request for request in served.requests) <= 2  # those that were under way at once
    assert told(caplog, f"takes no {name}") == 1
    # Another process of the run, or the run after a kill, does not ask again.
    before = len(served.requests)
    again = model(served.base, ReplyCache(tmp_path / "replies.sqlite"), **spec)
    await again.complete(Call.of("new", seed=1, stop=("\n",)))
    (sent,) = served.requests[before:]
    others = {"temperature", "seed", "stop", "top_p", "reasoning_effort"} - {name}
    assert name not in sent and others <= sent.keys()
    assert told(caplog, f"takes no {name}") == 1
    (answers,) = read_services(tmp_path / "services.json").values()
    assert said_by[:20] in answers["left_out"][name]


async def test_the_longest_reply_is_called_by_its_other_name_from_then_on(
    served: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    served.answer = refusing(words, when="max_tokens")
    asked = model(served.base, ReplyCache(tmp_path / "replies.sqlite"))
    for number in range(3):
        await asked.complete(Call.of(f"{number}", max_tokens=77))
    assert [request.get("max_completion_tokens") for request in served.requests] == [None, 77, 77, 77]
    assert told(caplog, "max_completion_tokens") == 1
    await model(served.base, ReplyCache(tmp_path / "replies.sqlite")).complete(Call.of("new"))
    assert len(served.requests) == 5


@pytest.mark.parametrize("named", ["the one that was sent", "max_output_tokens"])
async def test_a_service_that_takes_neither_name_is_sent_none_and_that_is_told_once(
    served: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture, named: str
) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        sent = next((name for name in LIMIT_NAMES if name in request), None)
        if sent is None:
            return said("ok", finish="length" if number > 3 else "stop")
        return refused(400, f"Unknown parameter: '{sent if named.startswith('the') else named}'.")

    served.answer = answer
    asked = model(served.base, ReplyCache(tmp_path / "replies.sqlite"))
    assert (await asked.complete(HELLO)).text == "ok"
    assert len(served.requests) == 3
    await asked.complete(Call.of("again"))
    assert len(served.requests) == 4
    assert told(caplog, "takes neither max_tokens nor max_completion_tokens") == 1
    # Another process of the run knows; a reply that is cut cannot be given more room.
    later = model(served.base, ReplyCache(tmp_path / "replies.sqlite"))
    reply = await later.complete(Call.of("once more"))
    assert len(served.requests) == 5
    assert set(LIMIT_NAMES).isdisjoint(served.requests[-1])
    assert later.more_room(Call.of("once more"), reply) is None
    (note,) = (text for text in sentences_of(read_services(tmp_path / "services.json")) if "neither" in text)
    assert "openai/some-model" in note


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "none"])
async def test_the_recipe_says_what_the_longest_reply_is_called(served: Service, name: str) -> None:
    served.answers(said("ok"))
    await model(served.base, limit_name=name).complete(HELLO)
    assert {limit: served.requests[0].get(limit) for limit in LIMIT_NAMES if limit in served.requests[0]} == (
        {} if name == "none" else {name: 400}
    )
    if name == "none":
        return
    served.answers(refused(400, f"Unknown parameter: '{name}'."))
    with pytest.raises(ServiceError, match="`limit_name`"):
        await model(served.base, limit_name=name).complete(HELLO)
    assert len(served.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        refused(400, "Bad Request"),
        refused(422, ""),
        refused(400, "something went wrong, error 4711"),
        Answer(400, "Bad Request", {"Content-Type": "text/plain"}),
        Answer(400, "{}"),
    ],
)
async def test_a_refusal_that_names_nothing_tells_what_could_be_left_out(served: Service, answer: Answer) -> None:
    served.answers(answer)
    asked = model(served.base, top_p=0.9, reasoning_effort="low", extra={"top_k": 3})
    asked.field = "models.rubric"
    with pytest.raises(ServiceError) as caught:
        await asked.complete(Call.of("Hello", seed=1, schema=schema()))
    text = str(caught.value)
    for cure in (
        "structured_output: false", "temperature: null", "top_p: null", "send_seed: false", "reasoning_effort: null",
        "limit_name: max_completion_tokens", "limit_name: none", "extra.top_k", "under models.rubric",
    ):  # fmt: skip
        assert cure in text
    # Only what was sent is named.
    with pytest.raises(ServiceError) as caught:
        await model(served.base, temperature=None, limit_name="none").complete(HELLO)
    text = str(caught.value)
    absent = ("temperature", "top_p", "send_seed", "structured_output", "limit_name", "reasoning_effort", "extra")
    assert not any(cure in text for cure in absent)


async def test_a_service_that_takes_hardly_anything_is_asked_for_hardly_anything(served: Service) -> None:
    taken = {"model", "messages", "max_completion_tokens"}

    def answer(number: int, request: dict[str, Any]) -> Answer:
        strange = sorted(request.keys() - taken)
        return refused(400, f"Unknown parameter: '{strange[0]}'.") if strange else said("ok")

    served.answer = answer
    asked = model(served.base, top_p=0.9, reasoning_effort="low")
    call = Call.of("Hello", seed=1, stop=("x",))
    assert (await asked.complete(call)).text == "ok"
    assert set(served.requests[-1]) == taken
    assert (await asked.complete(HELLO)).text == "ok"


@pytest.mark.parametrize(
    ("spec", "words", "field"),
    [
        ({}, "max_tokens is too large: 400. This model supports at most 16 tokens.", "`max_tokens`"),
        ({}, "temperature: Input should be less than or equal to 0.5", "`temperature`"),
        (
            {"reasoning_effort": "minimal"},
            "'reasoning_effort' does not support 'minimal' with this model. Supported values are: 'low', 'high'.",
            "`reasoning_effort`",
        ),
        ({"chat_template_kwargs": {"a": 1}}, "Unknown parameter: 'chat_template_kwargs'.", "`chat_template_kwargs`"),
        ({"extra": {"top_k": 3}}, "Unknown parameter: 'top_k'.", "`extra.top_k`"),
        ({}, "This model's maximum context length is 10 tokens", "documents.passage_words"),
    ],
)
async def test_a_refusal_that_nothing_cures_stops_with_the_field(
    served: Service, spec: dict[str, Any], words: str, field: str
) -> None:
    served.answers(refused(400, words))
    with pytest.raises(ServiceError, match="What to do") as caught:
        await model(served.base, **spec).complete(HELLO)
    assert field in str(caught.value)
    assert len(served.requests) == 1


# Schemas.


async def test_one_refused_schema_in_fifty_costs_that_request_its_schema_alone(
    served: Service, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        odd = "17" in request["messages"][0]["content"] and "response_format" in request
        return refused(400, "Invalid schema for response_format 'reply'") if odd else said("ok")

    served.answer = answer
    asked = model(served.base, concurrency=1)
    for number in range(50):
        call = Call.of(f"question {number}", schema=schema())
        assert (await asked.complete(call)).text == "ok"
    assert len(served.requests) == 51
    assert sum("response_format" not in request for request in served.requests) == 1
    assert asked.structured
    assert told(caplog, "schema") == 0


async def test_a_service_that_refuses_every_schema_is_asked_without_from_then_on(
    served: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served.answer = refusing("Invalid schema for response_format 'reply'", when="response_format")
    asked = model(served.base, ReplyCache(tmp_path / "replies.sqlite"), concurrency=1)
    for number in range(10):
        await asked.complete(asking(number, of=number))
    assert sum("response_format" in request for request in served.requests) == 3
    assert not asked.structured
    assert told(caplog, "takes no JSON schema") == 1
    await model(served.base, ReplyCache(tmp_path / "replies.sqlite")).complete(asking(11))
    assert "response_format" not in served.requests[-1]
    assert told(caplog, "takes no JSON schema") == 1


async def test_one_schema_that_is_always_refused_leaves_the_others_alone(
    served: Service, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        odd = '"a1"' in json.dumps(request.get("response_format", {}))
        return refused(400, "The compiled grammar is too large") if odd else said("ok")

    served.answer = answer
    asked = model(served.base, concurrency=1)
    for number in range(20):
        await asked.complete(asking(number, of=number % 2))
    assert asked.structured
    sent = [json.dumps(request.get("response_format", {})) for request in served.requests]
    assert sum('"a1"' in text for text in sent) == 3
    assert sum('"a0"' in text for text in sent) == 10
    assert told(caplog, "refuses one of several") == 1


async def test_a_refusal_that_goes_on_without_the_schema_was_not_about_it(served: Service) -> None:
    served.answers(refused(400, "the schema of this account does not allow it"))
    asked = model(served.base)
    with pytest.raises(ServiceError, match="schema"):
        await asked.complete(asking(1))
    assert len(served.requests) == 2
    assert asked.structured


async def test_a_server_that_fails_on_a_grammar_is_asked_without_it(served: Service) -> None:
    served.answer = refusing("failed to parse grammar", when="response_format", status=500)
    assert (await model(served.base).complete(asking(1))).text == "ok"
    assert len(served.requests) == 2


async def test_a_recipe_that_insists_on_schemas_is_not_answered_without(served: Service) -> None:
    served.answer = refusing("Invalid schema for response_format", when="response_format")
    with pytest.raises(ServiceError, match="structured_output: false"):
        await model(served.base, structured_output=True).complete(asking(1))
    served.answers(said("ok"))
    await model(served.base, structured_output=False).complete(asking(2))
    assert "response_format" not in served.requests[-1]


# What is remembered.


def test_processes_share_what_was_learned(tmp_path: Path) -> None:
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from optimsyn.llm.hosted.service_memory import ServiceMemory\n"
        "memory = ServiceMemory(Path(sys.argv[1]))\n"
        "for i in range(20):\n"
        "    memory.change('s', lambda k: replace(k, left_out={**k.left_out, f'{sys.argv[2]}{i}': 'no'}))\n"
    )
    path = tmp_path / "services.json"
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in ("a", "b")]
    assert [child.wait() for child in children] == [0, 0]
    assert len(ServiceMemory(path).of("s").left_out) == 40
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_what_is_remembered_comes_back_as_it_was(tmp_path: Path) -> None:
    known = Learned({"seed": "no"}, "max_completion_tokens", frozenset("a"), True, frozenset("b"), True, "nothing")
    assert Learned.from_json(known.as_json()) == known
    assert Learned.from_json({"a later version": 1}) == Learned()
    path = tmp_path / "services.json"
    path.write_text('{"s": {"left_out"')
    with pytest.raises(DataError, match=r"services\.json.*delete it"):
        ServiceMemory(path).of("s")


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    memory = ServiceMemory(tmp_path / "gone" / "services.json")
    (tmp_path / "gone").write_text("a file in the way")
    with pytest.raises(DataError, match="cannot be (read|written)"):
        memory.change("s", lambda known: Learned(schemas_off=True))


async def test_a_model_that_may_think_and_one_that_may_not_are_told_apart(served: Service, tmp_path: Path) -> None:
    served.answer = lambda number, request: (
        refused(400, "'temperature' is not supported with this model")
        if "temperature" in request and request.get("reasoning_effort") == "high"
        else said("ok")
    )
    cache = ReplyCache(tmp_path / "replies.sqlite")
    await model(served.base, cache, reasoning_effort="high").complete(HELLO)
    await model(served.base, cache, reasoning_effort="none").complete(HELLO)
    assert "temperature" in served.requests[-1]
