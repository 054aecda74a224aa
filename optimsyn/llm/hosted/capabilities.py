"""What a service's model can do and costs: from the recipe, else as learned from the service, else from LiteLLM's list.

The list comes with the pinned LiteLLM. It is read without importing LiteLLM, which takes seconds, and never fetched
from the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from optimsyn.llm.hosted.service_memory import LimitName
from optimsyn.recipe.known_models import litellm_table
from optimsyn.recipe.model_names import LITELLM_PREFIXES, SELF_HOSTED

if TYPE_CHECKING:
    from optimsyn.llm.hosted.service_memory import Learned
    from optimsyn.recipe.recipe import ModelSpec

# Providers with a supported batch API; your own server may speak the first one's.
BATCH_PROVIDERS = ("openai", "anthropic")
_MILLION = 1e6
# Price tiers that a request must ask for; ours do not.
_ASKED_TIERS = ("_batches", "_flex", "_priority", "_decisions")
_LONG_PROMPT = re.compile(r"_above_(\d+)k_tokens")


@dataclass(frozen=True)
class Price:
    """US dollars a token: of the prompt, of the reply with its thinking, of the cached part of the prompt."""

    input: float
    output: float
    cached_input: float
    source: Literal["recipe", "litellm", "free"]

    def cost(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """US dollars for a request; `cached_tokens` are among the `input_tokens`."""
        cached = min(cached_tokens, input_tokens)
        return (input_tokens - cached) * self.input + cached * self.cached_input + output_tokens * self.output


FREE = Price(0.0, 0.0, 0.0, "free")


@dataclass(frozen=True)
class Abilities:
    """What one model takes, does and costs.

    Attributes:
        known: LiteLLM lists it, or its `base_model`.
        limit_name: Name of the limit on a reply in a request; `none`: it is not sent.
        reasoning: It can think before it answers; None if unknown.
        thinks: It thinks by default; None if unknown.
        ends: Day of its shutdown, if LiteLLM lists one.
    """

    known: bool
    temperature: bool
    top_p: bool
    seed: bool
    stop: bool
    limit_name: LimitName
    schema: bool
    reasoning: bool | None
    thinks: bool | None
    context: int | None
    longest_reply: int | None
    price: Price | None
    ends: date | None


def abilities_of(spec: ModelSpec, learned: Learned | None = None) -> Abilities:
    """What the model of a recipe can do."""
    entry = listed(spec)
    facts: Mapping[str, Any] = entry or {}
    left_out = frozenset(learned.left_out) if learned is not None else frozenset[str]()
    samples = facts.get("supports_sampling_params") is not False
    reasoning = facts.get("supports_reasoning")
    return Abilities(
        known=entry is not None,
        temperature=spec.temperature is not None and samples and "temperature" not in left_out,
        top_p=samples and "top_p" not in left_out,
        seed=spec.send_seed and "seed" not in left_out,
        stop="stop" not in left_out,
        limit_name=_limit_name(spec, facts, learned),
        schema=_takes_schema(spec, entry, learned),
        reasoning=bool(reasoning) if reasoning is not None else None,
        thinks=_thinks(facts),
        context=_count(facts.get("max_input_tokens")),
        longest_reply=_count(facts.get("max_output_tokens")),
        price=price_of(spec),
        ends=_day(facts.get("deprecation_date")),
    )


def price_of(spec: ModelSpec) -> Price | None:
    """A model's price; None if neither the recipe nor LiteLLM has it.

    Models on this machine are free, and so are self-hosted ones by their name (`hosted_vllm/…`, `ollama/…`). An address
    alone does not show that, since it may be a proxy to a paid service. Only the recipe has the price of a custom
    generator.
    """
    if spec.provider in ("embedded", "local"):
        return FREE
    if spec.prices is not None:
        prices, cached = spec.prices, spec.prices.cached_input
        return Price(
            prices.input / _MILLION,
            prices.output / _MILLION,
            (prices.input if cached is None else cached) / _MILLION,
            "recipe",
        )
    if spec.provider == "own":
        return None
    entry = listed(spec)
    if entry is not None:
        read, written = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
        if read is None or written is None:
            return None
        cached = entry.get("cache_read_input_token_cost")
        return Price(float(read), float(written), float(read if cached is None else cached), "litellm")
    return FREE if spec.name.partition("/")[0] in SELF_HOSTED and spec.base_model is None else None


def highest_cost(spec: ModelSpec, prompt_tokens: int, reply_tokens: int) -> float | None:
    """The most that a request of this length can cost in US dollars; None if the price is unknown."""
    price = price_of(spec)
    if price is None or price.source != "litellm":
        return None if price is None else price.cost(prompt_tokens, reply_tokens)
    entry = listed(spec) or {}
    read = _dearest(entry, "input", prompt_tokens) or price.input
    written = _dearest(entry, "output", prompt_tokens) or price.output
    return prompt_tokens * read + reply_tokens * written


def price_problem(where: str, spec: ModelSpec, cap: str = "limits.cost_usd") -> str | None:
    """Why a cap on money cannot hold for a model; None when it can."""
    if price_of(spec) is not None:
        return None
    behind = "" if spec.provider == "own" else f", or {where}.base_model (LiteLLM's name of the model behind it)"
    cure = (
        f"give {where}.prices (USD for a million tokens, such as `{{input: 0.1, output: 0.5}}`; zeros when it is "
        f"free){behind}, or cap requests or tokens instead"
    )
    if spec.base_model is not None and listed(spec) is None:
        return f"{where}.base_model: LiteLLM does not list {spec.base_model!r}; {cure}"
    return f"{where}: {cap} cannot hold, because the price of {spec.name!r} is not known; {cure}"


def listed(spec: ModelSpec) -> dict[str, Any] | None:
    """LiteLLM's entry of a model, or of its `base_model`; None when it has none."""
    return entry_of(spec.base_model if spec.base_model is not None else spec.name)


def entry_of(name: str) -> dict[str, Any] | None:
    """LiteLLM's entry of a model's name; None when it has none.

    Most models are listed under their bare names (`gpt-6-luna` for `openai/gpt-6-luna`), which must not be taken for
    another provider's.
    """
    table = litellm_table()
    entry = table.get(name)
    if entry is None:
        provider, _, bare = name.partition("/")
        listed = table.get(bare)
        if listed is not None and str(listed.get("litellm_provider", "")).startswith(provider):
            entry = listed
    return entry


def service_provider(name: str) -> str | None:
    """The LiteLLM provider of a model name; None when neither its prefix nor LiteLLM's own list says."""
    prefix = name.split("/", 1)[0]
    if "/" in name and prefix in LITELLM_PREFIXES:
        return prefix
    entry = litellm_table().get(name)
    return str(entry["litellm_provider"]) if entry and "litellm_provider" in entry else None


def _limit_name(spec: ModelSpec, facts: Mapping[str, Any], learned: Learned | None) -> LimitName:
    if spec.limit_name is not None:
        return spec.limit_name
    if learned is not None and learned.limit_name is not None:
        return learned.limit_name
    renamed = facts.get("litellm_provider") in ("openai", "azure") and facts.get("supports_reasoning")
    return "max_completion_tokens" if renamed else "max_tokens"


def _takes_schema(spec: ModelSpec, entry: Mapping[str, Any] | None, learned: Learned | None) -> bool:
    if spec.structured_output is not None:
        return spec.structured_output
    if learned is not None and learned.schemas_off:
        return False
    # Most servers and unlisted models take schemas, and the first refusals show if they do not.
    return entry is None or spec.api_base is not None or bool(entry.get("supports_response_schema"))


def _thinks(facts: Mapping[str, Any]) -> bool | None:
    if facts.get("thinking_always_on"):
        return True
    for name in ("thinking_on_by_default", "supports_thinking_by_default"):
        if name in facts:
            return bool(facts[name])
    default = facts.get("default_reasoning_effort")
    if default is not None:
        return bool(default != "none")
    if not facts.get("supports_reasoning"):
        return False if "supports_reasoning" in facts else None
    return True if facts.get("supports_none_reasoning_effort") is False else None


def _dearest(entry: Mapping[str, Any], side: str, prompt_tokens: int) -> float | None:
    """The highest price of a token for our requests: long prompts and reasoning may cost more."""
    starts = (f"{side}_cost_per_token", f"{side}_cost_per_reasoning_token")
    prices = []
    for name, price in entry.items():
        if not name.startswith(starts) or name.endswith(_ASKED_TIERS) or not isinstance(price, int | float):
            continue
        long = _LONG_PROMPT.search(name)
        if long is None or prompt_tokens > 1000 * int(long.group(1)):
            prices.append(float(price))
    return max(prices, default=None)


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) else None


def _day(value: Any) -> date | None:
    try:
        return date.fromisoformat(str(value)) if value else None
    except ValueError:
        return None
