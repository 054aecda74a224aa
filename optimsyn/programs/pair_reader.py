"""Reads the parts of a pair from a reply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.data.forms import Key, QuestionForm
from optimsyn.data.forms.multiple_choice import MultipleChoice
from optimsyn.data.language.whole import QUESTION_MARK
from optimsyn.llm.reading.asking import Beginning
from optimsyn.llm.reading.plain_text import beginning, item_lines, many_lines, one_line
from optimsyn.llm.reading.unusable import sounds_refused, was_cut
from optimsyn.llm.reading.values import objects_in, read
from optimsyn.llm.replies import Reply
from optimsyn.programs.prompts.writer_prompts import in_order, label_of_key

_WHAT = "question and answer"
_OTHER_NAMES = {"q": "question", "a": "answer", "correct_answer": "answer", "evidence": "quote"}
# Stop after so many objects that are no pair.
_MOST = 50
_LINE = re.compile(r"^[\s*#>-]*(?P<label>[^\W\d_][\w ]{0,30}?)[\s*]*[:：](?P<value>.*)$")
_EXCUSES = ("error", "refusal", "message", "reason")


def read_pair(reply: Reply | str, form: QuestionForm, *, max_tokens: int | None = None) -> dict[str, str]:
    """Reads the quote and the form's keys (question, answer, wrong options ...) from a reply.

    It is JSON or lines with labels (`Question: ...`). The first complete pair counts, in a list, a wrapper, consecutive
    objects or JSON lines.

    Args:
        reply: A reply, or its text.
        form: The form of the pair.
        max_tokens: The limit of the reply.

    Raises:
        ReplyError: A key is missing, or its value is none of the options; the message says which. Or there is no pair
            to judge; see the outcome.
    """
    # A last line that ends in the middle is no answer.
    cut = isinstance(reply, Reply) and was_cut(reply) and not reply.text.rstrip(" ").endswith("\n")
    return read(reply, partial(_parse, form=form, cut=cut), _WHAT, max_tokens=max_tokens)


def _parse(text: str, repair: bool, *, form: QuestionForm, cut: bool) -> dict[str, str]:
    first: ReplyError | None = None
    seen = 0
    lines, last = labelled_lines(text, form)
    broken_off = last == len(text.splitlines())
    whole = {"question", "answer"} <= lines.keys()
    # The writer's lines, in which an object is code.
    written = whole and text.lstrip().startswith("Quote:")
    for raw in () if written else objects_in(text, repair):
        try:
            return _pair(raw, form, text)
        except ReplyError as problem:
            first = first or problem
            seen += 1
            if seen == _MOST:
                break
    if whole or (lines and first is None):
        if cut and broken_off:
            raise ReplyError("the pair's last line breaks off", Outcome.CUT)
        return _pair(lines, form, text)
    raise first or ReplyError(f"no {_WHAT} in the reply, which begins {beginning(text)}")


def unfinished(text: str, form: QuestionForm) -> Beginning | None:
    """The writer's reply up to the label that comes next, where a line is missing or says none of its options.

    A small model may end a reply after `Answer: true` though the form asks for a reason, answer before it has
    reasoned, or answer a statement with a fact; given the label, it goes on. Where it asks a question and the form
    wants a statement, it is given the label of a statement.

    Args:
        text: A reply with labels.
        form: The form of the pair.

    Returns:
        What the model is given to go on from, without what stood after the gap; None where nothing is missing, or the
        question is.
    """
    values, last = labelled_lines(text, form)
    try:
        found = form.mended(dict(values))
    except ReplyError:
        return None
    statement = f"{form.statement_label}:"
    asks = QUESTION_MARK.search(str(found.get("question") or ""))
    if form.statement_label and asks and not re.search(rf"^{re.escape(statement)}", text, re.MULTILINE):
        before = _until(text.splitlines()[:last], {"question"})
        return Beginning("\n".join([*before, statement]))
    needed = [key for key in in_order(form) if key.needed]
    keys = [key.name for key in needed]
    missing = next((number for number, key in enumerate(needed) if not _stands(found.get(key.name), key)), None)
    if missing is None or "question" not in keys[:missing]:
        return None
    # A value that stands there is replaced only by an option.
    options = needed[missing].options if keys[missing] in values else ()
    if keys[missing] in values and not options:
        return None
    # Wrong options stand in one line, which has no label of their own.
    if isinstance(form, MultipleChoice) and keys[missing] != "answer":
        return None
    kept = _until(text.splitlines()[:last], {label_of_key(name).casefold() for name in keys[missing:]})
    return Beginning("\n".join([*kept, f"{label_of_key(keys[missing])}:"]), options)


def _until(lines: list[str], labels: set[str]) -> list[str]:
    """The lines before the first one with one of these labels."""
    for number, line in enumerate(lines):
        match = _LINE.match(line)
        if match and match["label"].casefold() in labels:
            return lines[:number]
    return lines


def _stands(value: str | None, key: Key) -> bool:
    """Whether a key has a value, one of its options where it has some."""
    if not value or not key.options:
        return bool(value)
    try:
        return bool(_option(key, value))
    except ReplyError:
        return False


def labelled_lines(text: str, form: QuestionForm) -> tuple[dict[str, str], int]:
    """The values of the lines with labels up to the next pair, by key, and the number of the last such line."""
    keys = dict.fromkeys(("quote", "question", "options", "answer", *(key.name for key in form.reply_keys())))
    labels = {label_of_key(name).casefold(): name for name in keys}
    if form.statement_label:
        labels[form.statement_label.casefold()] = "question"
    long = {key.name for key in form.reply_keys() if key.lines or key.items}
    values: dict[str, str] = {}
    last, open_key = 0, ""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        match = _LINE.match(line)
        name = labels.get(match["label"].casefold()) if match else None
        if match is None or name is None:
            if open_key:
                values[open_key] += f"\n{line}"
                last = number
            continue
        if name in values:
            break
        values[name] = match["value"].strip(" *")
        last, open_key = number, name if name in long else ""
    return values, last


def _pair(raw: Mapping[str, Any], form: QuestionForm, text: str) -> dict[str, str]:
    values = {re.sub(r"[\s-]+", "_", key.strip().lower()): value for key, value in raw.items()}
    for other, name in _OTHER_NAMES.items():
        if other in values:
            values.setdefault(name, values[other])
    keys = {key.name: key for key in form.reply_keys()}
    # Several texts can be joined to one free answer, but not to one option.
    reply = {name: _value(value, keys.get(name)) for name, value in form.mended(values).items()}
    reply.setdefault("quote", "")
    for name in dict.fromkeys(("question", "answer", *(key.name for key in keys.values() if key.needed))):
        if not reply.get(name):
            excuse = next((reply[key] for key in _EXCUSES if sounds_refused(reply.get(key, ""))), None)
            if excuse is not None:
                raise ReplyError(f"the reply refuses to write a {_WHAT}: {beginning(excuse, 200)}", Outcome.REFUSAL)
            raise ReplyError(f"the pair lacks `{name}`; the reply begins {beginning(text)}")
    return reply | {key.name: _option(key, reply[key.name]) for key in keys.values() if key.options}


def _value(value: Any, key: Key | None) -> str:
    if key is not None and key.items:
        return item_lines(value)
    if key is not None and key.lines:
        return many_lines(value)
    return one_line(value, several=key is not None and key.several)


def _option(key: Key, written: str) -> str:
    named = {choice.casefold().strip(): choice for choice in key.options}
    plain = written.casefold().strip(" .!")
    if plain not in named:
        # An option with its ground: "No: the banks forbid it".
        plain = re.split(r"\s*[:：;,.!–—]\s*", plain, maxsplit=1)[0]
    if plain not in named:
        raise ReplyError(f"the {key.name} {beginning(written)} is none of {', '.join(key.options)}")
    return named[plain]
