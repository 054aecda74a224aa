"""How many tokens a request used: as the service reports if that is plausible, else counted from the texts.

Caps, forecasts and prices depend on these counts, and services report anything: nothing, negative numbers, a trillion.
A reported count is accepted up to the most that texts and limits can explain:

- No token is shorter than a byte, so a prompt has no more tokens than bytes, apart from what the service adds.
- A reply has no more tokens than bytes, or than the limit that was sent, which includes hidden thinking. Without a
  limit, or when the service reports thinking on top, a long thought is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optimsyn.llm.hosted.capabilities import highest_cost, price_of
from optimsyn.recipe.recipe import ModelSpec

# Tokens of instructions, tools and templates that a service may add to a prompt.
_AROUND = 16_384
# The longest thinking of current models.
_LONGEST_THOUGHT = 131_072
# Services exceed a limit by at most a few tokens.
_SLACK = 64
# A bill may be this many times the highest list price, plus a fee.
_DEARER = 10.0
_FEE_USD = 1.0
# Far above the most expensive model's price for a token.
_DEAREST_TOKEN_USD = 0.01
_SHOWN = 40


@dataclass(frozen=True)
class Exchange:
    """A request and its reply, as known without the service's usage.

    Attributes:
        received: All text that was received, with visible thinking.
        limit: The limit on the reply's tokens that was sent; None: none.
        thinks: Thinking was switched on in the request.
    """

    sent: str
    received: str
    limit: int | None
    cut: bool = False
    thinks: bool = False


@dataclass(frozen=True)
class Tokens:
    """Tokens of one request.

    Attributes:
        output: Tokens of the reply, with its thinking.
        doubt: The service's implausible counts, which were replaced by our own; empty if all are plausible.
    """

    input: int
    output: int
    reasoning: int = 0
    cached: int = 0
    doubt: str = ""


def tokens_of(usage: Any, exchange: Exchange, count: Callable[[str], int]) -> Tokens:
    """The tokens by the service's report (OpenAI's names, any types); `count` replaces implausible ones."""
    doubts: dict[str, Any] = {}

    def number(holder: Any, name: str, most: int) -> int | None:
        raw = getattr(holder, name, None)
        value = _whole(raw)
        if raw is None or (value is not None and 0 <= value <= most):
            return value
        doubts[name] = raw
        return None

    prompt_most = len(exchange.sent.encode()) + _AROUND
    details = getattr(usage, "completion_tokens_details", None)
    thought = number(details, "reasoning_tokens", _LONGEST_THOUGHT)
    explained = max(len(exchange.received.encode()), exchange.limit or 0) + _SLACK
    if exchange.limit is None or exchange.thinks or thought:
        explained += _LONGEST_THOUGHT
    read, written = number(usage, "prompt_tokens", prompt_most), number(usage, "completion_tokens", explained)
    cached = number(getattr(usage, "prompt_tokens_details", None), "cached_tokens", prompt_most)
    missing = []
    # No prompt is empty, and a non-empty reply has tokens.
    if not read:
        read = max(1, count(exchange.sent))
        missing += [] if "prompt_tokens" in doubts else ["prompt_tokens"]
    if written is None or (not written and exchange.received):
        written = count(exchange.received)
        if exchange.cut and exchange.limit is not None:
            written = max(written, exchange.limit)
        missing += [] if "completion_tokens" in doubts or not exchange.received else ["completion_tokens"]
    report = [f"{name}: {_shortened(raw)}" for name, raw in doubts.items()] + [f"{name}: nothing" for name in missing]
    return Tokens(read, written, min(thought or 0, written), min(cached or 0, read), ", ".join(report))


def believable_cost(spec: ModelSpec, cost: Any, tokens: Tokens) -> float | None:
    """The cost of a request that a service or LiteLLM reports, in US dollars; None if missing or implausible."""
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not math.isfinite(cost) or cost < 0:
        return None
    highest = highest_cost(spec, tokens.input, tokens.output) if price_of(spec) is not None else None
    if highest is None:
        highest = _DEAREST_TOKEN_USD * (tokens.input + tokens.output)
    return float(cost) if cost <= _DEARER * highest + _FEE_USD else None


def _whole(raw: Any) -> int | None:
    """A count as JSON, or a careless server, may write it; None if it is no count."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, int):
        return raw
    if isinstance(raw, float):
        return int(raw) if math.isfinite(raw) and raw == int(raw) else None
    if isinstance(raw, str) and len(raw) < _SHOWN and raw.isdecimal():
        return int(raw)
    return None


def _shortened(raw: Any) -> str:
    if isinstance(raw, int) and abs(raw) > 10**_SHOWN:  # Python refuses to write out the longest ones
        return f"{'-' if raw < 0 else ''}about 10^{int(math.log10(abs(raw)))}"
    text = str(raw)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
