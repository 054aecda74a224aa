"""The form `list`: a question whose answer is a set of items, in any order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from optimsyn.base.errors import DataError, ReplyError
from optimsyn.data.answer_metrics import normalize_answer, token_f1
from optimsyn.data.demonstrations import Demo
from optimsyn.data.forms.cells import list_cell, written
from optimsyn.data.forms.form import Content, FormCheck, Gold, Heard, Key, Looked, Marks
from optimsyn.data.forms.lines import LinesForm, item_text, ungrounded
from optimsyn.data.records import Pair, Question
from optimsyn.data.text import word_count

_ITEMS = 3
_MOST_WORDS = 25
_SHARE_IN_PASSAGE = 0.7
_ANSWERS = {
    "When was Halley's Comet last seen?": ("What do comets mostly consist of?", "ice\ndust"),
    "What does the barn swallow build its nest from?": (
        "Name what the barn swallow eats and what its nest is made of.",
        "insects\npellets of mud",
    ),
}


def check_items_well_formed(pair: Pair, context: Looked) -> str | None:
    """Two items or more, each of a few words, none of them twice."""
    items = items_of(pair)
    plain = [normalize_answer(item) for item in items]
    if len(items) < 2:
        return "the answer has one item; a list has two or more"
    if not all(plain):
        return "an item is empty"
    if len(set(plain)) < len(plain):
        return f"the item {items[next(i for i, item in enumerate(plain) if item in plain[:i])]!r} is there twice"
    if (long := next((item for item in items if word_count(item) > _MOST_WORDS), None)) is not None:
        return f"the item {long[:40]!r}… has {word_count(long)} words, more than {_MOST_WORDS}"
    return None


def check_items_grounded(pair: Pair, context: Looked) -> str | None:
    """Each item's content words come from the passage, and its figures do."""
    reasons = (ungrounded(f"item {item!r}", item, context, share=_SHARE_IN_PASSAGE) for item in items_of(pair))
    return next((reason for reason in reasons if reason is not None), None)


@dataclass(frozen=True)
class ItemList(LinesForm):
    """A question whose answer is a set of items. The target learns them as a list, one a line.

    It is right if it names all items and no other, in any order; F1 over items besides.
    """

    label: ClassVar[str] = "lists"
    in_rubric: ClassVar[str] = "a question whose answer is a list of items"
    free_length: ClassVar[bool] = False
    checks: ClassVar[Mapping[str, FormCheck]] = {
        "items_well_formed": check_items_well_formed,
        "items_grounded": check_items_grounded,
    }
    items: int = _ITEMS

    def fitted(self, questions: Sequence[Question]) -> ItemList:
        """With the questions' number of items."""
        counts = [len(items_of(question)) for question in questions if question.kind == "list"]
        return ItemList(max(2, round(median(counts)))) if counts else self

    def read_row(self, values: Mapping[str, Any]) -> Gold:
        """Reads `answer` (or `answers`), a list of items, as JSON or one a line, or separated by semicolons."""
        field = "answer" if values.get("answer") not in (None, "", []) else "answers"
        value = values.get(field)
        if value in (None, "", []):
            raise DataError('has no answer; give it an `answer` such as ["first", "second"], or remove the row')
        if isinstance(value, list | tuple | dict) or str(value).lstrip().startswith("["):
            items = [written(item) for item in list_cell(value, field)]
        else:
            items = split_items(str(value), commas=False)
        items = [item for item in items if item]
        if len(items) < 2:
            raise DataError(
                f'`{field}` {str(value)[:60]!r} is no list of items; write ["first", "second"], or one item a line'
            )
        plain = [normalize_answer(item) for item in items]
        if len(set(plain)) < len(plain):
            raise DataError(f"`{field}` has an item twice: {', '.join(items)[:80]}; remove one")
        answer = _as_lines(items)
        return Gold(answer, (answer,), details={"items": items})

    def task(self) -> str:
        """Items."""
        return "From each passage: a quoted sentence, a question that asks for several things and the list of them."

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """A question and the items."""
        items = (
            f"the list of all items that the passage gives (about {self.items}), each as short as possible, none twice"
        )
        return (
            Key("question", "a question that asks for several things, clear to a reader who has not seen the passage"),
            Key("answer", items, items=True),
        )

    def demonstration(self, demo: Demo) -> dict[str, str]:
        """Two items for each example, one a line."""
        return dict(zip(("question", "answer"), _ANSWERS[demo.question], strict=True))

    def mended(self, values: dict[str, Any]) -> dict[str, Any]:
        """The list may have another name."""
        for other in ("items", "answers", "list"):
            if other in values:
                values.setdefault("answer", values[other])
        return values

    def content(self, reply: Mapping[str, str], seed: int) -> Content:
        """The items, also where they came as one line."""
        items = split_items(reply["answer"])
        if not items:
            raise ReplyError("the pair's `answer` holds no items")
        return Content(reply["question"], _as_lines(items), details={"items": items})

    def spoken(self, pair: Pair) -> str:
        """The items, separated by commas."""
        return ", ".join(items_of(pair))

    def marks(self, question: Question, heard: Heard) -> Marks:
        """The same set of items is right; F1 over items and over words."""
        wanted = {normalize_answer(item) for item in items_of(question)}
        given = {normalize_answer(item) for item in split_items(heard.text)} - {""}
        right = given == wanted
        f1 = 2 * len(given & wanted) / (len(given) + len(wanted))
        return Marks(
            "; ".join(split_items(heard.text)),
            right,
            exact_match=right,
            token_f1=token_f1(heard.text, (question.answer,)),
            further={"item_f1": f1},
        )


def items_of(item: Question | Pair) -> list[str]:
    """The items of an answer."""
    kept = item.details.get("items")
    return [str(each) for each in kept] if isinstance(kept, list) else split_items(item.answer)


def split_items(text: str, *, commas: bool = True) -> list[str]:
    """The items of a text: its lines, or what semicolons separate, or else commas and a last `and`."""
    items = [item_text(line) for line in text.splitlines()]
    if len(items) == 1 and ";" in text:
        items = [item_text(part) for part in text.split(";")]
    elif len(items) == 1 and commas:
        items = [part.strip() for part in re.split(r",\s+(?:and\s+|or\s+)?|\s+and\s+|、", items[0])]
    return [item.rstrip(".;,").strip() or item for item in items if item]


def _as_lines(items: Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(item.split())}" for item in items)
