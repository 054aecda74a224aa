"""Turns an HTTP service's response into a reply, whatever shape its fields have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from optimsyn.llm.hosted.failures import Failure, no_reply
from optimsyn.llm.hosted.usage import Exchange
from optimsyn.llm.replies import Reply

# Characters of a reply that are kept; `optimsyn.llm.reading` reads fewer.
_LONGEST_KEPT = 500_000


def reply_of(response: Any, seconds: float) -> Reply | Failure:
    """The reply in a response with OpenAI's names; its tokens are not counted yet."""
    choices = getattr(response, "choices", None)
    if not choices:
        return no_reply("the reply holds no choices")
    message = choices[0].message
    text = _text(getattr(message, "content", None))
    # Fields unknown to LiteLLM.
    more = getattr(message, "provider_specific_fields", None) or {}
    refusal = more.get("refusal") if isinstance(more, dict) else getattr(more, "refusal", None)
    return Reply(
        text=text,
        model=str(getattr(response, "model", "") or ""),
        finish_reason=str(getattr(choices[0], "finish_reason", None) or "stop"),
        seconds=seconds,
        # Thinking beside an answer is not used, and long.
        reasoning="" if text.strip() else _thought(message),
        refusal=_text(getattr(message, "refusal", None) or refusal),
        tool_call=_called(message),
    )


def exchange_of(response: Any, sent: Mapping[str, Any], limit: int | None) -> Exchange:
    """The texts of a request and its response, to check the usage that the service reports."""
    choice = response.choices[0]
    message = choice.message
    parts = (_all_text(getattr(message, "content", None)), _thought(message), _called(message))
    texts = [str(message.get("content", "")) for message in sent.get("messages", ())]
    options = {name: sent[name] for name in ("response_format", "extra_body") if sent.get(name)}
    texts += [json.dumps(options, default=str)] if options else []
    return Exchange(
        sent="\n".join(texts),
        received="".join(parts),
        limit=limit,
        cut=str(getattr(choice, "finish_reason", "")) == "length",
        thinks=sent.get("reasoning_effort") not in (None, "none"),
    )


def from_json(raw: Any) -> Any | None:
    """A response that LiteLLM could not read, as an object; None if it is no chat completion."""
    try:
        text = raw if isinstance(raw, str) else json.dumps(raw)
        response = json.loads(text, object_hook=lambda item: SimpleNamespace(**item))
    except (TypeError, ValueError, RecursionError):
        return None
    choices = getattr(response, "choices", None)
    first = choices[0] if isinstance(choices, list) and choices else None
    valid = isinstance(getattr(first, "message", None), SimpleNamespace)
    return response if valid else None


def together(before: Reply, last: Reply) -> Reply:
    """The last reply, with the usage of the discarded ones before it added."""
    return last.model_copy(
        update={
            "input_tokens": before.input_tokens + last.input_tokens,
            "output_tokens": before.output_tokens + last.output_tokens,
            "reasoning_tokens": before.reasoning_tokens + last.reasoning_tokens,
            "cost_usd": None if last.cost_usd is None else (before.cost_usd or 0.0) + last.cost_usd,
            "seconds": before.seconds + last.seconds,
            "estimated": before.estimated or last.estimated,
        }
    )


def _all_text(content: Any) -> str:
    """A message's text, in one part or several."""
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else getattr(part, "__dict__", {}) for part in content]
        content = "".join(str(part.get("text") or "") for part in parts if part.get("type") in ("text", None))
    return content.encode("utf-8", "ignore").decode("utf-8") if isinstance(content, str) else ""


def _text(content: Any) -> str:
    """The same in a storable form: JSON may hold half a surrogate pair, and the text may be endless."""
    return _all_text(content[:_LONGEST_KEPT] if isinstance(content, str) else content)[:_LONGEST_KEPT]


def _thought(message: Any) -> str:
    return _text(getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None))


def _called(message: Any) -> str:
    """The arguments of the tool that a message calls; its name where there are none; "" without a call."""
    calls = getattr(message, "tool_calls", None) or [SimpleNamespace(function=getattr(message, "function_call", None))]
    function = getattr(calls[0], "function", None) if isinstance(calls, list) else None
    return _text(getattr(function, "arguments", None)) or _text(getattr(function, "name", None))
