"""From a reply to a value, or to a `ReplyError` that says what came instead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.llm.reading.json_objects import inner_text, mend_escapes, repaired_objects, strict_objects
from optimsyn.llm.reading.plain_text import storable
from optimsyn.llm.reading.thinking import Spoken, spoken
from optimsyn.llm.reading.unusable import was_cut, was_refused, what_came
from optimsyn.llm.replies import Reply

T = TypeVar("T")
Parse = Callable[[str, bool], T]

# Characters that one token may stand for, on the average of a whole reply. English has four.
_CHARACTERS = 16
# Never fewer than these are read, and never more.
_SHORTEST_CAP = 20_000
_LONGEST_CAP = 150_000


def longest_text(max_tokens: int | None) -> int:
    """Characters of the longest reply that is looked at, for a cap on its tokens."""
    return min(_LONGEST_CAP, max(_SHORTEST_CAP, _CHARACTERS * (max_tokens or 0)))


def read(reply: Reply | str, parse: Parse[T], what: str, *, max_tokens: int | None = None) -> T:
    """What `parse` makes of a reply.

    Args:
        reply: A reply, or its text.
        parse: From a text without thinking to a value. It is called without repair first, for all that the reply may
            have meant to say, then with it; it raises ReplyError, with the outcome `cut` where a value breaks off.
        what: What is looked for, for a message.
        max_tokens: The cap under which the reply was asked for.

    Raises:
        ReplyError: There is none; the outcome says what there is. Nothing else is ever raised for a reply, whatever is
            in it.
    """
    if isinstance(reply, str):
        reply = Reply(text=storable(reply))
    limit = longest_text(max_tokens)
    overlong = limit if len(reply.text) > limit else None
    text = storable(reply.text[:limit])
    spoken = _without_thinking(text)
    texts = list(spoken.answers)
    said = texts[0] if texts else ""
    if not texts and not spoken.thinking and not was_cut(reply):
        # A server without a parser for this model's thinking, or with a wrong one, puts all of a reply on one side.
        texts = [other for aside in (reply.reasoning, reply.tool_call) for other in _last_object(aside[-limit:])]
    problems: list[ReplyError] = []
    for repair in (False, True):
        for candidate in texts:
            try:
                return parse(candidate, repair)
            except ReplyError as problem:
                problems.append(problem)
    raise what_came(
        reply, said, what=what, thinking=spoken.thinking, overlong=overlong, problems=problems[len(texts) :]
    )


def plain_text(reply: Reply | str, *, max_tokens: int | None = None) -> str:
    """The text of a reply without its thinking, whole.

    Raises:
        ReplyError: It is empty, cut, refused or a tool call.
    """
    cut = isinstance(reply, Reply) and was_cut(reply)
    held_back = isinstance(reply, Reply) and was_refused(reply)

    def whole(text: str, repair: bool) -> str:
        if cut or held_back:
            raise ReplyError("the text breaks off", Outcome.CUT)
        return text

    return read(reply, whole, "text", max_tokens=max_tokens)


def objects_in(text: str, repair: bool) -> Iterator[dict[str, Any]]:
    """The JSON objects of a text, in the order in which they are written, wrappers before what is in them.

    Raises:
        ReplyError: Only with `repair`: the text breaks off inside of a value.
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
    """What a reply says; tags inside of the JSON object that it begins with are part of that object."""
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
