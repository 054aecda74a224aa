"""Batch APIs: what is sent, what is paid, and that nothing is sent twice however a run ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optimsyn.base.errors import BudgetError, ServiceError
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.hosted import batches as waiting
from optimsyn.llm.hosted import failures
from optimsyn.llm.hosted.batches import Batches
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.replies import Budget, ReplyCache
from optimsyn.recipe.recipe import ModelSpec
from tests.batch_api_helpers import BatchApis, Outcome, batch_apis, chat, message, text_of
from tests.llm_helpers import KEY

NAMES = ("openai/gpt-4.1-mini", "anthropic/claude-haiku-4-5")
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def served() -> Iterator[BatchApis]:
    with batch_apis() as running:
        yield running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(waiting, "IDLE_S", 0.3)
    monkeypatch.setattr(waiting, "FIRST_LOOK_S", 0.02)
    monkeypatch.setenv("LOCAL_SERVICE_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)


def model(
    served: BatchApis, folder: Path, *, name: str = NAMES[0], budget: Budget | None = None, **spec: Any
) -> LanguageModel:
    base = served.base if name.startswith("openai") else served.base.removesuffix("/v1")
    values = {"name": name, "api_base": base, "api_key_env": "LOCAL_SERVICE_KEY", "batch": True, "retries": 2, **spec}
    if name.startswith("anthropic"):
        served.outcome = lambda body, batch: (200, message(body, f"in {batch}"))
    cache = budget.cache if budget is not None else ReplyCache(folder / "replies.sqlite")
    recipe = ModelSpec.model_validate(values)
    batches = Batches(folder / "batches", hours=recipe.batch_hours)
    return load_language_model(recipe, cache, budget=budget, batches=batches)


async def ask(asked: LanguageModel, count: int = 5, first: int = 0) -> list[str]:
    calls = [Call.of(f"call {i}", schema=SCHEMA, max_tokens=200) for i in range(first, first + count)]
    return [reply.text for reply in await asyncio.gather(*map(asked.complete, calls))]


@pytest.mark.parametrize("name", NAMES)
async def test_all_that_is_asked_at_once_is_one_batch_at_half_the_price(
    served: BatchApis, tmp_path: Path, name: str
) -> None:
    asked = model(served, tmp_path, name=name, concurrency=1)
    assert await ask(asked) == [f"call {i} in 0" for i in range(5)]
    assert len(served.batches) == 1
    assert served.alone == []
    assert served.keys == {f"Bearer {KEY}" if name.startswith("openai") else KEY}
    body = served.lines[0]
    assert body["max_tokens"] == 200
    assert body["model"] == name.partition("/")[2]
    assert (
        SCHEMA["properties"]
        == json.loads(json.dumps(body))["response_format" if name.startswith("openai") else "output_format"]
        .get("json_schema", {})
        .get("schema", body.get("output_format", {}).get("schema", {}))["properties"]
    )
    import litellm

    price = litellm.model_cost[name.partition("/")[2]]
    full = 1000 * price["input_cost_per_token"] + 100 * price["output_cost_per_token"]
    assert ReplyCache(tmp_path / "replies.sqlite").totals().cost_usd == pytest.approx(5 * full / 2)
    # The same calls, in this process and in the next one, are answered from the cache; ordinary ones share it.
    assert await ask(asked) == await ask(model(served, tmp_path, name=name)) == [f"call {i} in 0" for i in range(5)]
    alone = model(served, tmp_path, name=name, batch=False)
    assert await ask(alone, 6) == [*(f"call {i} in 0" for i in range(5)), "call 5 alone"]
    assert len(served.batches) == 1
    assert len(served.alone) == 1
    assert ReplyCache(tmp_path / "replies.sqlite").totals().cost_usd == pytest.approx(5 * full / 2 + full)
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


CHILD = """
import asyncio, sys
from pathlib import Path
from optimsyn.llm.hosted import batches
batches.IDLE_S, batches.FIRST_LOOK_S = 0.3, 0.02
from tests.batch_api_helpers import BatchApis
from tests.test_llm_batches import ask, model
served = BatchApis(sys.argv[1])
print("ready", flush=True)
print(asyncio.run(ask(model(served, Path(sys.argv[2]), name=sys.argv[3]))), flush=True)
"""


def start(served: BatchApis, folder: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, served.base, str(folder), name]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    ("name", "heard"),
    [
        (NAMES[0], False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(NAMES[0], True), (NAMES[1], False)]),
    ],
)
async def test_a_killed_run_waits_for_the_batch_that_it_sent(
    served: BatchApis, tmp_path: Path, name: str, heard: bool
) -> None:
    asked = model(served, tmp_path, name=name)
    served.looks = 1_000_000
    child = start(served, tmp_path, name)
    while not served.batches or not any(batch.looks for batch in served.batches):
        assert child.poll() is None, "it ended before its batch was looked at"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(served.batches) == 1
    (record,) = (tmp_path / "batches").glob("*.json")
    if not heard:
        # As if the kill had come between the service's answer and the disk.
        record.write_text(json.dumps({**json.loads(record.read_text()), "batch": None}))
    served.looks = 0
    assert await ask(asked, 5) == [f"call {i} in 0" for i in range(5)]
    assert len(served.batches) == 1
    assert served.alone == []


async def test_a_batch_whose_sender_heard_an_error_is_found_again(served: BatchApis, tmp_path: Path) -> None:
    served.forget_reply = True
    assert await ask(model(served, tmp_path)) == [f"call {i} in 0" for i in range(5)]
    assert len(served.batches) == 1


@pytest.mark.parametrize("name", NAMES)
async def test_what_expires_goes_into_another_batch_and_then_alone(
    served: BatchApis, tmp_path: Path, name: str
) -> None:
    asked = model(served, tmp_path, name=name, retries=0)
    said = message if name.startswith("anthropic") else chat

    def outcome(body: dict[str, Any], batch: int) -> Outcome:
        number = int(text_of(body).split()[-1])
        return None if (number > 2 and batch == 0) or number == 4 else (200, said(body, f"in {batch}"))

    served.outcome = outcome
    assert await ask(asked) == ["call 0 in 0", "call 1 in 0", "call 2 in 0", "call 3 in 1", "call 4 alone"]
    assert [len(batch.lines) for batch in served.batches] == [5, 2]
    assert len(served.alone) == 1
    ids = [name for batch in served.batches for name in batch.lines]
    assert len(set(ids)) == len(ids)
    assert all(len(name) <= 64 for name in ids)


@pytest.mark.parametrize("name", NAMES)
async def test_a_line_with_an_error_fails_or_is_repeated_as_a_request_of_its_own_would(
    served: BatchApis, tmp_path: Path, name: str
) -> None:
    asked = model(served, tmp_path, name=name)
    said = message if name.startswith("anthropic") else chat
    errors: dict[int, tuple[int, dict[str, Any]]] = {
        1: (500, {"type": "api_error", "message": "boom"}),
        3: (400, {"type": "invalid_request_error", "message": "the prompt is too long for me"}),
    }

    def outcome(body: dict[str, Any], batch: int) -> Outcome:
        number = int(text_of(body).split()[-1])
        if number in errors and (number == 3 or batch == 0):
            status, error = errors[number]
            return status, error if name.startswith("anthropic") else {"error": error}
        return 200, said(body, f"in {batch}")

    served.outcome = outcome
    calls = [asked.complete(Call.of(f"call {i}")) for i in range(5)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [reply.text if not isinstance(reply, BaseException) else "error" for reply in found] == [
        "call 0 in 0",
        "call 1 in 1",
        "call 2 in 0",
        "error",
        "call 4 in 0",
    ]
    assert isinstance(found[3], ServiceError)
    assert "too long for me" in str(found[3])
    # Whoever fixes it and runs again is not answered with the old error.
    errors.clear()
    assert (await model(served, tmp_path, name=name).complete(Call.of("call 3"))).text == "call 3 in 2"


async def test_a_refused_schema_is_left_away(served: BatchApis, tmp_path: Path) -> None:
    def outcome(body: dict[str, Any], batch: int) -> Outcome:
        if "response_format" in body:
            return 400, {"error": {"message": "response_format is not supported"}}
        return 200, chat(body, f"in {batch}")

    served.outcome = outcome
    assert await ask(model(served, tmp_path)) == [f"call {i} in 1" for i in range(5)]


async def test_too_many_for_the_service_go_in_parts(served: BatchApis, tmp_path: Path) -> None:
    served.most_lines = 3
    said = await ask(model(served, tmp_path), 8)
    assert [text.rpartition(" in ")[0] for text in said] == [f"call {i}" for i in range(8)]
    assert [len(batch.lines) for batch in served.batches] == [8, 4, 2, 2, 4, 2, 2]
    assert {int(text.rpartition(" ")[2]) for text in said} == {2, 3, 5, 6}
    assert served.alone == []


async def test_a_cap_is_never_passed_and_what_has_no_room_waits(served: BatchApis, tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite")
    # The most that one call can cost by the list: its letters' tokens read, 200 tokens written, at half the price.
    price = (3 * 0.4e-6 + 200 * 1.6e-6) / 2
    asked = model(served, tmp_path, budget=Budget(cache, cost_usd=3.5 * price))
    served.outcome = lambda body, batch: (200, _cheap(chat(body, f"in {batch}")))
    assert sorted(await ask(asked, 8)) == sorted(f"call {i} in {i // 3}" for i in range(8))
    assert [len(batch.lines) for batch in served.batches] == [3, 3, 2]
    limited = model(served, tmp_path, budget=Budget(cache, requests=10))
    calls = [limited.complete(Call.of(f"more {i}")) for i in range(4)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(reply, BudgetError) for reply in found) == 2
    assert cache.totals().replies == 10


def _cheap(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        ({"files": 404}, "no batch API"),
        ({"batches": 405}, "no batch API"),
        ({"files": 401}, "key was refused"),
        ({"batches": 400}, "no batches"),
        ({"look": 404}, "does not know batch"),
    ],
)
async def test_a_refusal_is_told_and_costs_nothing_twice(
    served: BatchApis, tmp_path: Path, refuse: dict[str, int], words: str
) -> None:
    served.refuse = refuse
    with pytest.raises(ServiceError, match=words):
        await ask(model(served, tmp_path))
    sent = len(served.batches)
    served.refuse = {}
    assert len(await ask(model(served, tmp_path))) == 5
    assert len(served.batches) == max(sent, 1)


async def test_a_service_that_fails_while_one_waits_is_asked_again(served: BatchApis, tmp_path: Path) -> None:
    asked = model(served, tmp_path)
    served.refuse = {"look": 503}
    task = asyncio.ensure_future(ask(asked))
    while not served.batches:
        assert not task.done()
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    served.refuse = {}
    assert len(await task) == 5
    assert len(served.batches) == 1


async def test_how_far_the_batches_are_is_told(served: BatchApis, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    spec = ModelSpec(name=NAMES[0], api_base=served.base, api_key_env="LOCAL_SERVICE_KEY", batch=True)
    batches = Batches(tmp_path, report=lambda done, total: told.append((done, total)))
    await ask(load_language_model(spec, ReplyCache(":memory:"), batches=batches))
    assert told[0] == (0, 5)
    assert told[-1] == (5, 5)
    # Without a place to keep batches (in the stages that need one reply for the next) it asks one by one.
    await ask(load_language_model(spec, ReplyCache(":memory:")), 2)
    assert len(served.alone) == 2


async def test_waiting_has_an_end_and_goes_on_later(served: BatchApis, tmp_path: Path) -> None:
    served.looks = 1_000_000
    with pytest.raises(ServiceError, match="has not ended within 1e-05 hours"):
        await ask(model(served, tmp_path, batch_hours=1e-5))
    served.looks = 0
    assert await ask(model(served, tmp_path)) == [f"call {i} in 0" for i in range(5)]
    assert len(served.batches) == 1


async def test_garbage_that_was_set_aside_is_asked_for_anew(served: BatchApis, tmp_path: Path) -> None:
    asked = model(served, tmp_path)
    await ask(asked)
    asked.set_aside_latest(5)
    assert await ask(model(served, tmp_path)) == [f"call {i} in 1" for i in range(5)]
