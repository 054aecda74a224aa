"""The records of a run: document, passage, question, rubric, pair, sample.

All are frozen pydantic models, written one JSON object a line. A target model sees `Sample` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class Record(BaseModel):
    """Base of all records: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Document(Record):
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


class Passage(Record):
    """A chunk of a document: `text == document.text[char_start:char_end]`, exactly."""

    id: str
    document_id: str
    title: str = ""
    text: str
    char_start: int
    char_end: int
    group: str = ""


class _OfForm(Record):
    """What a question and a pair have in common: their form."""

    id: str
    question: str
    answer: str

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
        seed: Sampling seed of the request that wrote it.
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
