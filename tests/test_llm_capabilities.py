"""What a model's service can do, by the recipe and by LiteLLM's list, and what it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from capabilities_helpers import HELLO, model, schema, told
from llm_helpers import KEY, Answer, Service, said, service
from pydantic import ValidationError

from optimsyn.llm.hosted import failures
from optimsyn.llm.hosted.capabilities import abilities_of, entry_of, highest_cost, price_of, price_problem
from optimsyn.llm.hosted.service_memory import read_services
from optimsyn.llm.language_model import Call
from optimsyn.llm.replies import ReplyCache
from optimsyn.recipe.known_models import litellm_table
from optimsyn.recipe.recipe import ModelSpec, TargetSpec


@pytest.fixture
def served() -> Iterator[Service]:
    with service() as running:
        yield running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("LOCAL_SERVICE_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# What the recipe says.


async def test_a_recipe_without_the_new_fields_asks_under_its_old_keys(served: Service) -> None:
    asked = model(served.base)
    call = Call.of("Hello", schema=schema(), seed=3, stop=("x",), temperature=0.2, max_tokens=30)
    # As the version before these fields computed it.
    assert asked.key(call) == "b17d8842e8ec3288fa7bde4f40526a0d913b1aa82cfe9e31e847db426cfda0e0"
    assert asked.asked_besides == {}


async def test_every_new_field_that_changes_a_reply_asks_under_another_key(served: Service) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"temperature": None},
        {"top_p": 0.9},
        {"reasoning_effort": "low"},
        {"reasoning_effort": "none"},
        {"extra": {"top_k": 3}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"send_seed": False},
    ]
    assert len({model(served.base, **change).key(HELLO) for change in changes}) == len(changes)
    same: list[dict[str, Any]] = [{}, {"prices": {"input": 1, "output": 2}}, {"base_model": "gpt-6-luna"}]
    assert len({model(served.base, **change).key(HELLO) for change in same}) == 1


async def test_what_the_recipe_says_is_sent(served: Service) -> None:
    asked = model(
        served.base,
        temperature=None,
        top_p=0.9,
        reasoning_effort="low",
        send_seed=False,
        extra={"top_k": 3, "min_p": 0.1},
        chat_template_kwargs={"enable_thinking": False},
    )
    await asked.complete(Call.of("Hello", seed=4))
    sent = served.requests[0]
    assert {"temperature", "seed", "extra_body"}.isdisjoint(sent)
    assert (sent["top_p"], sent["reasoning_effort"], sent["top_k"], sent["min_p"]) == (0.9, "low", 3, 0.1)
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}


async def test_fields_are_passed_on_to_anthropic_too(served: Service) -> None:
    body = {
        "id": "m", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "hi"}], "usage": {"input_tokens": 10, "output_tokens": 5},
    }  # fmt: skip
    served.answers(Answer(200, json.dumps(body)))
    extra = {"thinking": {"type": "disabled"}, "service_tier": "standard_only"}
    asked = model(served.base, name="anthropic/claude-haiku-5-5", temperature=0.9, extra=extra)
    assert (await asked.complete(Call.of("Hello", seed=4))).text == "hi"
    (sent,) = served.requests
    assert (sent["thinking"], sent["service_tier"]) == ({"type": "disabled"}, "standard_only")
    # Its list entry says that it takes neither; no request was spent on finding out.
    assert {"temperature", "seed", "extra_body"}.isdisjoint(sent)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"extra": {"temperature": 1}}, r"extra\.temperature.*`temperature`"),
        ({"extra": {"max_completion_tokens": 9}}, r"extra\.max_completion_tokens.*`max_tokens`"),
        ({"extra": {"response_format": {}}}, r"extra\.response_format.*`structured_output`"),
        ({"extra": {"messages": []}}, r"extra\.messages"),
        ({"extra": {"stream": True}}, r"extra\.stream.*itself"),
        ({"extra": {"header": "sk-proj-4f9a8b7c6d5e4f3a2b1c"}}, r"extra\.header.*api_key_env"),
        ({"chat_template_kwargs": {"x": "sk-proj-4f9a8b7c6d5e4f3a2b1c"}}, r"chat_template_kwargs\.x.*api_key_env"),
        ({"name": "embedded", "top_p": 0.5}, r"top_p is for services"),
        ({"name": "opnai/gpt-6-luna", "prices": {"input": 1, "output": 1}}, r"did you mean `openai/gpt-6-luna`"),
        ({"name": "antropic/claude-haiku-5-5", "temperature": None}, r"did you mean `anthropic/claude-haiku-5-5`"),
        ({"name": "mistrl/anything", "extra": {"a": 1}}, r"did you mean `mistral/"),
        ({"name": "Qwen/Qwen3-0.6B", "top_p": 0.5}, r"top_p is for services"),
        ({"name": "./here", "reasoning_effort": "low"}, r"reasoning_effort is for services"),
        ({"name": "embedded", "temperature": None}, r"temperature: null"),
        ({"reasoning_effort": "much"}, r"reasoning_effort"),
        ({"prices": {"input": -1, "output": 1}}, r"prices\.input"),
        ({"prices": {"input": 1}}, r"prices\.output"),
    ],
)
def test_wrong_fields_are_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelSpec.model_validate({"name": "openai/x", **values})


# What LiteLLM lists.


async def test_what_litellm_knows_to_be_refused_costs_no_request(
    served: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await model(served.base, name="openai/gpt-6-luna").complete(Call.of("Hello", seed=1, stop=("x",)))
    (sent,) = served.requests
    assert {"temperature", "stop", "max_tokens"}.isdisjoint(sent)
    assert sent["max_completion_tokens"] == 400
    assert told(caplog, "takes no temperature") == 1


def test_abilities_by_the_list() -> None:
    luna, haiku = (abilities_of(ModelSpec(name=name)) for name in ("openai/gpt-6-luna", "anthropic/claude-haiku-5-5"))
    raw = litellm_table()["gpt-6-luna"]
    assert (luna.known, luna.schema, luna.reasoning) == (True, True, True)
    assert (luna.limit_name, luna.context, luna.longest_reply) == (
        "max_completion_tokens",
        raw["max_input_tokens"],
        raw["max_output_tokens"],
    )
    assert (haiku.temperature, haiku.top_p, haiku.limit_name) == (False, False, "max_tokens")
    nobody = abilities_of(ModelSpec(name="openai/nobody-knows"))
    assert (nobody.known, nobody.schema, nobody.price, nobody.reasoning) == (False, True, None, None)
    alias = abilities_of(ModelSpec(name="openai/our-alias", base_model="gpt-6-luna"))
    assert (alias.price, alias.limit_name) == (luna.price, luna.limit_name)
    assert abilities_of(ModelSpec(name="o1")).ends == date(2026, 10, 23)


def test_a_bare_name_is_not_taken_for_another_provider() -> None:
    assert entry_of("openai/gpt-6-luna") == entry_of("gpt-6-luna") is not None
    assert entry_of("groq/gpt-6-luna") is None
    assert entry_of("openai/Qwen/Qwen3-8B") is None


# What it costs.


async def test_prices_of_the_recipe_are_counted_and_cached_tokens_apart(served: Service) -> None:
    answer = json.loads(said("ok", prompt_tokens=1000, completion_tokens=100).body)
    answer["usage"] |= {
        "prompt_tokens_details": {"cached_tokens": 600},
        "completion_tokens_details": {"reasoning_tokens": 80},
    }
    served.answers(Answer(200, json.dumps(answer)))
    prices = {"input": 2.0, "output": 10.0, "cached_input": 0.5}
    reply = await model(served.base, prices=prices).complete(HELLO)
    assert reply.cost_usd == pytest.approx((400 * 2.0 + 600 * 0.5 + 100 * 10.0) / 1e6)
    assert (reply.output_tokens, reply.reasoning_tokens) == (100, 80)
    without = await model(served.base, prices={"input": 2.0, "output": 10.0}).complete(HELLO)
    assert without.cost_usd == pytest.approx((1000 * 2.0 + 100 * 10.0) / 1e6)
    listed = await model(served.base, base_model="gpt-6-luna").complete(HELLO)
    raw = litellm_table()["gpt-6-luna"]
    assert listed.cost_usd == pytest.approx(
        400 * raw["input_cost_per_token"]
        + 600 * raw["cache_read_input_token_cost"]
        + 100 * raw["output_cost_per_token"]
    )


async def test_a_price_that_nobody_says_is_unknown_and_told_once(
    served: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite")
    asked = model(served.base, cache)
    assert (await asked.complete(HELLO)).cost_usd is None
    assert (await asked.complete(Call.of("again"))).cost_usd is None
    assert told(caplog, "its price is not known") == 1
    assert cache.totals().cost_usd == 0.0
    assert next(iter(read_services(tmp_path / "services.json").values()))["price_unknown"] is True
    assert (await model(served.base, name="hosted_vllm/some-model").complete(HELLO)).cost_usd == 0.0


def test_who_costs_what() -> None:
    free = price_of(ModelSpec(name="embedded"))
    assert free is not None and free.cost(10**6, 10**6) == 0.0
    assert price_of(TargetSpec(name="some/hub-model")) == free == price_of(ModelSpec(name="ollama/x"))
    assert price_of(ModelSpec(name="openai/nobody-knows", api_base="http://127.0.0.1:8000/v1")) is None
    said_so = price_of(ModelSpec.model_validate({"name": "openai/x", "prices": {"input": 1, "output": 4}}))
    assert said_so is not None and said_so.cost(10**6, 10**6, 10**6) == pytest.approx(5.0)


def test_long_prompts_cost_more_where_the_list_says_so() -> None:
    spec, raw = ModelSpec(name="anthropic/claude-haiku-5-5"), litellm_table()["claude-haiku-5-5"]
    assert highest_cost(spec, 1000, 10) == pytest.approx(
        1000 * raw["input_cost_per_token"] + 10 * raw["output_cost_per_token"]
    )
    assert highest_cost(spec, 200_000, 10) == pytest.approx(
        200_000 * raw["input_cost_per_token_above_100k_tokens"] + 10 * raw["output_cost_per_token_above_100k_tokens"]
    )
    assert highest_cost(ModelSpec(name="openai/nobody-knows"), 1, 1) is None


def test_a_cap_on_money_needs_every_price() -> None:
    problem = price_problem("models.generator", ModelSpec(name="openai/nobody-knows"))
    assert problem is not None
    assert "models.generator.prices" in problem and "models.generator.base_model" in problem
    assert "does not list" in (
        price_problem("models.generator", ModelSpec(name="openai/x", base_model="nobody-knows")) or ""
    )
    for name in ("openai/gpt-6-luna", "embedded", "hosted_vllm/x"):
        assert price_problem("models.generator", ModelSpec(name=name)) is None


def test_the_list_is_read_without_importing_litellm() -> None:
    code = (
        "import sys; from optimsyn.recipe.recipe import ModelSpec\n"
        "from optimsyn.llm.hosted.capabilities import abilities_of\n"
        "assert abilities_of(ModelSpec(name='openai/gpt-6-luna')).known; assert 'litellm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
