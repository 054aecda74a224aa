"""How many tokens a request used: as the service says where that can be true, else counted from the texts.

Caps, forecasts and prices rest on these counts, and services say all sorts of things: nothing, negative numbers, a
trillion. What a service says is taken up to the most that texts and limits can explain:

- A vocabulary has no token shorter than a byte, so a prompt has no more tokens than bytes, but for what the service
  puts around it itself.
- A reply has no more tokens than bytes, or than the limit that was sent, since thoughts that are not shown count
  within it. Where no limit was sent, or a service says that it thought beside it, a long thought is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optimsyn.llm.hosted.capabilities import highest_cost, price_of
from optimsyn.recipe.recipe import ModelSpec

# Tokens of instructions, tools and templates that a service may put around a prompt.
_AROUND = 16_384
# The longest thought of the models of the day.
_LONGEST_THOUGHT = 131_072
# A limit is kept to within a few tokens.
_SLACK = 64
# What a service bills may be so many times the dearest list price, and a fee on top.
_DEARER = 10.0
_FEE_USD = 1.0
# Far above what the dearest model asks for a token.
_DEAREST_TOKEN_USD = 0.01
_SHOWN = 40


@dataclass(frozen=True)
class Exchange:
    """What is known of a request and its reply without asking the service.

    Attributes:
        asked: All text that was sent.
        said: All text that came, with thoughts, as far as they are shown.
        limit: Longest reply in tokens, as it was sent; None where none was.
        cut: The reply ended because it was long enough.
        thinks: Thinking was switched on in the request.
    """

    asked: str
    said: str
    limit: int | None
    cut: bool = False
    thinks: bool = False


@dataclass(frozen=True)
class Tokens:
    """Tokens of one request.

    Attributes:
        input: Of the prompt.
        output: Of the reply, with its thoughts.
        reasoning: Those that were thought, where the service says.
        cached: Those of the prompt that the service still remembered.
        doubt: What the service says that cannot be true, so that it was counted here; empty where all of it can.
    """

    input: int
    output: int
    reasoning: int = 0
    cached: int = 0
    doubt: str = ""


def tokens_of(usage: Any, exchange: Exchange, count: Callable[[str], int]) -> Tokens:
    """The tokens of a request.

    Args:
        usage: What the service says: an object with OpenAI's names, of whatever types; None: nothing.
        exchange: What was sent and came.
        count: Counts the tokens of a text, where the service cannot be believed.
    """
    doubts: dict[str, Any] = {}

    def number(holder: Any, name: str, most: int) -> int | None:
        raw = getattr(holder, name, None)
        value = _whole(raw)
        if raw is None or (value is not None and 0 <= value <= most):
            return value
        doubts[name] = raw
        return None

    prompt_most = len(exchange.asked.encode()) + _AROUND
    details = getattr(usage, "completion_tokens_details", None)
    thought = number(details, "reasoning_tokens", _LONGEST_THOUGHT)
    explained = max(len(exchange.said.encode()), exchange.limit or 0) + _SLACK
    if exchange.limit is None or exchange.thinks or thought:
        explained += _LONGEST_THOUGHT
    read, written = number(usage, "prompt_tokens", prompt_most), number(usage, "completion_tokens", explained)
    cached = number(getattr(usage, "prompt_tokens_details", None), "cached_tokens", prompt_most)
    silent = []
    # No prompt is empty, and no text is made of nothing.
    if not read:
        read = max(1, count(exchange.asked))
        silent += [] if "prompt_tokens" in doubts else ["prompt_tokens"]
    if written is None or (not written and exchange.said):
        written = count(exchange.said)
        if exchange.cut and exchange.limit is not None:
            written = max(written, exchange.limit)
        silent += [] if "completion_tokens" in doubts or not exchange.said else ["completion_tokens"]
    said = [f"{name}: {_shown(raw)}" for name, raw in doubts.items()] + [f"{name}: nothing" for name in silent]
    return Tokens(read, written, min(thought or 0, written), min(cached or 0, read), ", ".join(said))


def believable_cost(spec: ModelSpec, cost: Any, tokens: Tokens) -> float | None:
    """US dollars that a service or LiteLLM says a request has cost; None where that says nothing, or cannot be."""
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not math.isfinite(cost) or cost < 0:
        return None
    highest = highest_cost(spec, tokens.input, tokens.output) if price_of(spec) is not None else None
    if highest is None:
        highest = _DEAREST_TOKEN_USD * (tokens.input + tokens.output)
    return float(cost) if cost <= _DEARER * highest + _FEE_USD else None


def _whole(raw: Any) -> int | None:
    """A count as JSON, or a careless server, may write it; None for what is none."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, int):
        return raw
    if isinstance(raw, float):
        return int(raw) if math.isfinite(raw) and raw == int(raw) else None
    if isinstance(raw, str) and len(raw) < _SHOWN and raw.isdecimal():
        return int(raw)
    return None


def _shown(raw: Any) -> str:
    if isinstance(raw, int) and abs(raw) > 10**_SHOWN:  # Python refuses to write out the longest ones
        return f"{'-' if raw < 0 else ''}about 10^{int(math.log10(abs(raw)))}"
    text = str(raw)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
