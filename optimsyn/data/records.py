"""The records of a run: document, passage, question, rubric, pair, sample.

All are frozen pydantic models, written one JSON object a line. A target model sees `Sample` only.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import (
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from optimsyn.base.counting import plural
from optimsyn.base.errors import DataError, OptimsynError
from optimsyn.base.secrets.redaction import redact
from optimsyn.base.terminal.table import Shown, Table
from optimsyn.recipe.checked import Checked

# Characters of a text that a table shows.
_SHOWN_TEXT = 600


class Record(Checked):
    """Base of all records: frozen, unknown keys refused."""

    refused_as: ClassVar[type[OptimsynError]] = DataError
    changed_by: ClassVar[str] = 'make another record with record.model_copy(update={"field": value})'
    model_config = ConfigDict(frozen=True, extra="forbid")


def _short(text: str, most: int = 60) -> str:
    """The start of a text on one line, quoted."""
    line = " ".join(text.split())
    return repr(redact(line if len(line) <= most else f"{line[: most - 1]}…"))


class _Shown(Shown, Record):
    """A record that shows itself in a line, and as a table in notebooks and terminals."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._in_short())})"

    __str__ = __repr__

    def _table(self) -> Table:
        rows = ((name.replace("_", " "), redact(value)) for name, value in self._in_full() if value)
        return Table(f"{type(self).__name__} {self._in_short()[0]}", ("what", "value"), tuple(rows))

    @abstractmethod
    def _in_short(self) -> list[str]:
        """Parts of one line, the id first."""

    @abstractmethod
    def _in_full(self) -> list[tuple[str, str]]:
        """Names and values; empty ones are not shown."""


class Document(_Shown):
    """One source text.

    Attributes:
        id: Unique among the documents of a run.
        text: The whole text; passages point into it by character offsets.
        group: Documents of one group never end up on both sides of a split.
    """

    id: str
    title: str = ""
    text: str
    source: str = ""
    license: str = ""
    group: str = ""

    def _in_short(self) -> list[str]:
        return [repr(self.id), _short(self.title or self.text), plural(len(self.text), "character")]

    def _in_full(self) -> list[tuple[str, str]]:
        facts = {name: getattr(self, name) for name in ("title", "source", "license", "group")}
        return [*facts.items(), *_text_rows(self.text)]


def _text_rows(text: str) -> list[tuple[str, str]]:
    start = text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}…"
    return [("characters", f"{len(text):,}"), ("text", start)]


class Passage(_Shown):
    """A chunk of a document: `text == document.text[char_start:char_end]`, exactly."""

    id: str
    document_id: str
    title: str = ""
    text: str
    char_start: int
    char_end: int
    group: str = ""

    def _in_short(self) -> list[str]:
        place = f"characters {self.char_start:,} to {self.char_end:,} of {self.document_id!r}"
        return [repr(self.id), _short(self.text), place]

    def _in_full(self) -> list[tuple[str, str]]:
        place = f"{self.document_id}, characters {self.char_start:,} to {self.char_end:,}"
        return [("title", self.title), ("document", place), ("group", self.group), *_text_rows(self.text)]


class _OfForm(_Shown):
    """What a question and a pair have in common: their form."""

    id: str
    question: str
    answer: str

    def _in_short(self) -> list[str]:
        return [repr(self.id), f"{_short(self.question)} → {_short(self.answer)}"]

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Records of the original forms are written without the newer fields."""
        raw: dict[str, Any] = handler(self)
        for name in ("form", "details"):
            if not raw.get(name, True):
                raw.pop(name)
        return raw


def _kind(item: Question | Pair) -> str:
    return item.form or ("multiple_choice" if item.choices is not None else "free")


def _texts(item: Question | Pair) -> tuple[str, ...]:
    return (item.question, item.answer, *(item.choices or ()), *_texts_in(item.details))


def _shown_form(item: Question | Pair) -> list[tuple[str, str]]:
    """Question and answer, the form and what it keeps, for a table."""
    listed = "\n".join(f"{'→' if n == item.answer_index else ' '} {text}" for n, text in enumerate(item.choices or ()))
    details = json.dumps(item.details, ensure_ascii=False, indent=1) if item.details else ""
    form = item.kind.replace("_", " ")
    return [
        ("question", item.question),
        ("choices", listed),
        ("answer", item.answer),
        ("form", "" if form == "free" else form),
        ("details", details),
    ]


def _texts_in(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(part)


class Question(_OfForm):
    """An expert question with its gold answer.

    Attributes:
        answers: Every accepted answer, `answer` first.
        context: The text that an open-book question is asked with; None when it is asked closed book.
        choices: The options of a multiple-choice question; `choices[answer_index]` is the gold option.
        subtask: Questions of one subtask give one validation direction.
        form: The name of its form, as the recipe has it; "" for `free` and `multiple_choice`, told apart by `choices`.
        details: What that form keeps beside question and answer.
    """

    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None
    answer_index: int | None = None
    context: str | None = None
    document_id: str | None = None
    group: str = ""
    subtask: str = "all"
    form: str = ""
    details: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _gold_is_a_choice(self) -> Question:
        count = len(self.choices) if self.choices is not None and self.kind == "multiple_choice" else None
        if count is not None and (self.answer_index is None or not 0 <= self.answer_index < count):
            raise ValueError(f"question {self.id!r}: answer_index {self.answer_index} names none of its choices")
        return self

    def _in_full(self) -> list[tuple[str, str]]:
        more = [answer for answer in self.answers if answer != self.answer]
        facts = [("also right", "\n".join(more)), ("context", self.context or ""), ("document", self.document_id or "")]
        subtask = "" if self.subtask == "all" else self.subtask
        return [*_shown_form(self), *facts, ("group", self.group), ("subtask", subtask)]

    @property
    def kind(self) -> str:
        """The name of its form."""
        return _kind(self)

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of question and answer."""
        return _texts(self)


class Rubric(Record):
    """The criteria for one pair, written for one passage (the one typed rubric used everywhere)."""

    question_type: str
    question_quality: str
    answer_quality: str
    alignment: str
    trainability: str


class Pair(_OfForm):
    """A synthesized question and answer with its lineage.

    Attributes:
        quote: The sentence of the passage that supports the answer, or what the generator wrote if its words differ.
        context: The passage's text when the pair is asked open book, else None.
        variant: Which rubric source made it: first_draft, no_rubric, static, optimized, policy, or an optimiser's name.
        rubric: None when no rubric was used.
        generator: Name of the model that wrote it.
        rubric_model: Name of the model that wrote the rubric ("" without one).
        seed: Sampling seed of the request that wrote it; a redraft was sampled with one that is derived from it.
        form: The name of its form, as the recipe has it; "" for `free` and `multiple_choice`, told apart by `choices`.
        details: What that form keeps beside question and answer.
    """

    choices: tuple[str, ...] | None = None
    answer_index: int | None = None
    context: str | None = None
    quote: str = ""
    passage_id: str
    document_id: str = ""
    char_start: int = 0
    char_end: int = 0
    variant: str = ""
    guiding_text: str = ""
    rubric: Rubric | None = None
    rubric_model: str = ""
    generator: str = ""
    seed: int = 0
    form: str = ""
    details: dict[str, JsonValue] = Field(default_factory=dict)

    def _in_short(self) -> list[str]:
        return [*super()._in_short(), *([self.variant] if self.variant else [])]

    def _in_full(self) -> list[tuple[str, str]]:
        place = f"{self.document_id}, characters {self.char_start:,} to {self.char_end:,}" if self.char_end else ""
        rubric = self.rubric.model_dump() if self.rubric is not None else {}
        criteria = "\n".join(f"{name.replace('_', ' ')}: {text}" for name, text in rubric.items())
        lineage = {name: getattr(self, name) for name in ("variant", "generator", "rubric_model", "guiding_text")}
        return [
            *_shown_form(self),
            ("quote", self.quote),
            ("context", self.context or ""),
            ("passage", self.passage_id),
            ("document", place or self.document_id),
            *lineage.items(),
            ("rubric", criteria),
        ]

    @property
    def kind(self) -> str:
        """The name of its form."""
        return _kind(self)

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts of question and answer."""
        return _texts(self)


class Sample(Record):
    r"""What the target model is trained or scored on: a prompt without its answer, and the answer.

    Attributes:
        prompt: Plain-format prompt that ends right before the answer ("...\nAnswer:").
        completion: The answer, with the leading space of the plain format (" 1869").
        messages: The same as a chat, for targets with a chat template: user and assistant in turn, the answer last.
        subtask: Subtask of the question that it came from ("" for pairs).
        context: The text in front of the question as `prompt` and `messages` show it, which may be cut to fit.
        earlier: Start and end in `prompt` of each earlier answer of a dialogue. If there is one, every assistant
            message is learned, else the last.
    """

    id: str
    prompt: str
    completion: str
    messages: tuple[dict[str, str], ...]
    subtask: str = ""
    context: str = ""
    earlier: tuple[tuple[int, int], ...] = ()
