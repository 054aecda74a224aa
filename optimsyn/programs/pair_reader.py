"""From a reply to the parts of a pair."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.llm.reading.plain_text import beginning, one_line
from optimsyn.llm.reading.unusable import sounds_refused
from optimsyn.llm.reading.values import objects_in, read
from optimsyn.programs.constrained.pair_form import PairForm

if TYPE_CHECKING:
    from optimsyn.llm.replies import Reply

_WHAT = "question and answer"
_OTHER_NAMES = {"q": "question", "a": "answer", "correct_answer": "answer", "evidence": "quote"}
_WRONG_LISTS = ("wrong", "wrong_answers", "wrong_options", "incorrect_answers", "distractors")
# Objects of a reply that are no pair, after which it is not searched on.
_MOST = 50
_EXCUSES = ("error", "refusal", "message", "reason")


def read_pair(reply: Reply | str, form: PairForm, *, max_tokens: int | None = None) -> dict[str, str]:
    """Reads quote, question, answer and wrong options out of a reply.

    The first complete pair counts, in a list, in a wrapper, in one object after the other or in JSON lines.

    Args:
        reply: A reply, or its text.
        form: What a pair has to look like.
        max_tokens: The cap under which the reply was asked for.

    Raises:
        ReplyError: Something is missing, or the answer is none of the fixed options; the message says which. Or there
            is no pair to be judged: the outcome says what there is.
    """
    return read(reply, partial(_parse, form=form), _WHAT, max_tokens=max_tokens)


def _parse(text: str, repair: bool, *, form: PairForm) -> dict[str, str]:
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


def _pair(raw: Mapping[str, Any], form: PairForm, text: str) -> dict[str, str]:
    values = {re.sub(r"[\s-]+", "_", key.strip().lower()): value for key, value in raw.items()}
    for other, name in _OTHER_NAMES.items():
        if other in values:
            values.setdefault(name, values[other])
    # Several texts are one free answer; which of them an option would be, nobody knows.
    reply = {
        key: one_line(value, several=key == "answer" and not form.choices and not form.fixed)
        for key, value in values.items()
    }
    reply.setdefault("quote", "")
    for name in _WRONG_LISTS:
        if isinstance(values.get(name), list):
            for key, value in zip(form.wrong_keys, values[name], strict=False):
                reply.setdefault(key, one_line(value))
    for name in ("question", "answer", *form.wrong_keys):
        if not reply.get(name):
            excuse = next((reply[key] for key in _EXCUSES if sounds_refused(reply.get(key, ""))), None)
            if excuse is not None:
                raise ReplyError(f"the reply refuses to write a {_WHAT}: {beginning(excuse, 200)}", Outcome.REFUSAL)
            raise ReplyError(f"the pair lacks `{name}`; the reply begins {beginning(text)}")
    if form.fixed:
        named = {choice.casefold().strip(): choice for choice in form.fixed}
        answer = reply["answer"].casefold().strip(" .!")
        if answer not in named:
            raise ReplyError(f"the answer {beginning(reply['answer'])} is none of {', '.join(form.fixed)}")
        reply["answer"] = named[answer]
    return reply
