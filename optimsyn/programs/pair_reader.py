"""Reads the parts of a pair from a reply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.data.forms import Key, QuestionForm
from optimsyn.llm.reading.plain_text import beginning, one_line
from optimsyn.llm.reading.unusable import sounds_refused
from optimsyn.llm.reading.values import objects_in, read

if TYPE_CHECKING:
    from optimsyn.llm.replies import Reply

_WHAT = "question and answer"
_OTHER_NAMES = {"q": "question", "a": "answer", "correct_answer": "answer", "evidence": "quote"}
# Stop after so many objects that are no pair.
_MOST = 50
_EXCUSES = ("error", "refusal", "message", "reason")


def read_pair(reply: Reply | str, form: QuestionForm, *, max_tokens: int | None = None) -> dict[str, str]:
    """Reads the quote and the form's keys (question, answer, wrong options ...) from a reply.

    The first complete pair counts, in a list, a wrapper, consecutive objects or JSON lines.

    Args:
        reply: A reply, or its text.
        form: The form of the pair.
        max_tokens: The limit of the reply.

    Raises:
        ReplyError: A key is missing, or its value is none of the options; the message says which. Or there is no pair
            to judge; see the outcome.
    """
    return read(reply, partial(_parse, form=form), _WHAT, max_tokens=max_tokens)


def _parse(text: str, repair: bool, *, form: QuestionForm) -> dict[str, str]:
    first: ReplyError | None = None
    seen = 0
    for raw in objects_in(text, repair):
        try:
            return _pair(raw, form, text)
        except ReplyError as problem:
            first = first or problem
            seen += 1
            if seen == _MOST:
                break
    raise first or ReplyError(f"no JSON object with a {_WHAT} in the reply, which begins {beginning(text)}")


def _pair(raw: Mapping[str, Any], form: QuestionForm, text: str) -> dict[str, str]:
    values = {re.sub(r"[\s-]+", "_", key.strip().lower()): value for key, value in raw.items()}
    for other, name in _OTHER_NAMES.items():
        if other in values:
            values.setdefault(name, values[other])
    keys = {key.name: key for key in form.reply_keys()}
    # Several texts can be joined to one free answer, but not to one option.
    reply = {
        name: one_line(value, several=name in keys and keys[name].several)
        for name, value in form.mended(values).items()
    }
    reply.setdefault("quote", "")
    for name in dict.fromkeys(("question", "answer", *keys)):
        if not reply.get(name):
            excuse = next((reply[key] for key in _EXCUSES if sounds_refused(reply.get(key, ""))), None)
            if excuse is not None:
                raise ReplyError(f"the reply refuses to write a {_WHAT}: {beginning(excuse, 200)}", Outcome.REFUSAL)
            raise ReplyError(f"the pair lacks `{name}`; the reply begins {beginning(text)}")
    return reply | {key.name: _option(key, reply[key.name]) for key in keys.values() if key.options}


def _option(key: Key, written: str) -> str:
    named = {choice.casefold().strip(): choice for choice in key.options}
    plain = written.casefold().strip(" .!")
    if plain not in named:
        raise ReplyError(f"the {key.name} {beginning(written)} is none of {', '.join(key.options)}")
    return named[plain]
