"""Parses a reply into a value, or raises a `ReplyError` that classifies the reply."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.llm.reading.json_objects import inner_text, mend_escapes, repaired_objects, strict_objects
from optimsyn.llm.reading.plain_text import storable
from optimsyn.llm.reading.thinking import Spoken, spoken
from optimsyn.llm.reading.unusable import unusable, was_cut, was_refused
from optimsyn.llm.replies import Reply

T = TypeVar("T")
Parse = Callable[[str, bool], T]

# The most characters a token, on average over a reply. English has four.
_CHARACTERS = 16
# Bounds on the characters that are read.
_SHORTEST_CAP = 20_000
_LONGEST_CAP = 150_000


def longest_text(max_tokens: int | None) -> int:
    """Characters of the longest reply that is read, for a cap on its tokens."""
    return min(_LONGEST_CAP, max(_SHORTEST_CAP, _CHARACTERS * (max_tokens or 0)))


def read(reply: Reply | str, parse: Parse[T], what: str, *, max_tokens: int | None = None) -> T:
    """Parses a reply.

    Args:
        reply: A reply, or its text.
        parse: Turns a text without thinking into a value. It is called without repair for all possible answers of the
            reply, then with repair; it raises ReplyError, with the outcome `cut` for an incomplete value.
        what: The expected value, for messages.
        max_tokens: The reply's cap on tokens.

    Raises:
        ReplyError: There is no value; the outcome says why. No reply raises anything else.
    """
    if isinstance(reply, str):
        reply = Reply(text=storable(reply))
    limit = longest_text(max_tokens)
    overlong = limit if len(reply.text) > limit else None
    text = storable(reply.text[:limit])
    spoken = _without_thinking(text)
    texts = list(spoken.answers)
    answer = texts[0] if texts else ""
    if not texts and not spoken.thinking and not was_cut(reply):
        # A server with a wrong parser for this model's thinking may return the answer as reasoning or tool call.
        texts = [value for field in (reply.reasoning, reply.tool_call) for value in _last_object(field[-limit:])]
    problems: list[ReplyError] = []
    for repair in (False, True):
        for candidate in texts:
            try:
                return parse(candidate, repair)
            except ReplyError as problem:
                problems.append(problem)
    raise unusable(
        reply, answer, what=what, thinking=spoken.thinking, overlong=overlong, problems=problems[len(texts) :]
    )


def plain_text(reply: Reply | str, *, max_tokens: int | None = None) -> str:
    """The complete text of a reply without its thinking.

    Raises:
        ReplyError: It is empty, cut, refused or a tool call.
    """
    cut = isinstance(reply, Reply) and was_cut(reply)
    withheld = isinstance(reply, Reply) and was_refused(reply)

    def complete(text: str, repair: bool) -> str:
        if cut or withheld:
            raise ReplyError("the text breaks off", Outcome.CUT)
        return text

    return read(reply, complete, "text", max_tokens=max_tokens)


def objects_in(text: str, repair: bool) -> Iterator[dict[str, Any]]:
    """The JSON objects of a text in text order, wrappers before their content.

    Raises:
        ReplyError: Only with `repair`: the text ends inside a value.
    """
    if repair:
        yield from repaired_objects(mend_escapes(text))
        return
    for value, _, _ in strict_objects(mend_escapes(text)):
        yield value
    inner = inner_text(text)
    if inner is not None:
        for value, _, _ in strict_objects(mend_escapes(inner)):
            yield value


def _without_thinking(text: str) -> Spoken:
    """A reply without its thinking; tags inside a JSON object at its start belong to that object."""
    if not text.lstrip().startswith(("{", "[", "```")):
        return spoken(text)
    escaped = mend_escapes(text)
    first = next(strict_objects(escaped), None)
    if first is None or escaped[: first[1]].strip("`jsonJSON \n\r\t"):
        return spoken(text)
    return spoken(escaped, data=first[1:])


def _last_object(text: str) -> Iterator[str]:
    """The last JSON object of a text that ends with one."""
    escaped = mend_escapes(storable(text).strip())
    last = next(iter(deque(strict_objects(escaped), maxlen=1)), None)
    if last is not None and not escaped[last[2] :].strip("`\n "):
        yield escaped[last[1] : last[2]]
