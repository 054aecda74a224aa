"""A language model that answers from a function, and passages nobody wrote before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optimsyn.data.records import Pair, Passage, Rubric
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.replies import Reply
from optimsyn.recipe.recipe import ModelSpec

RUBRIC = Rubric(
    question_type="cause",
    question_quality="asks why and names its subject",
    answer_quality="one short phrase",
    alignment="the answer is the cause",
    trainability="a link worth knowing",
)
TEXT = (
    "The town council of Harlow opened its first lending library in 1904. Miss Edith Crane, a retired teacher, gave "
    "600 books from her own house. The reading room stayed open until nine in the evening, because most readers worked "
    "in the mills. In 1931, the library moved to a larger building beside the canal. Today it lends about 45,000 books "
    "a year and keeps the letters of the mill owners."
)


def passage(text: str = TEXT, **fields: object) -> Passage:
    """A passage with this text."""
    values = {"id": "p1", "document_id": "d1", "title": "Harlow library", "char_start": 0, "char_end": len(text)}
    return Passage.model_validate(values | {"text": text} | fields)


def pair(**fields: object) -> Pair:
    """A good pair about `TEXT`, with these fields changed."""
    values = {
        "id": "pair-1",
        "question": "When did the library of Harlow move to a larger building?",
        "answer": "1931",
        "quote": "In 1931, the library moved to a larger building beside the canal.",
        "passage_id": "p1",
        "document_id": "d1",
        **fields,
    }
    return Pair.model_validate(values)


class Scripted(LanguageModel):
    """Answers each call with what a function says; remembers the calls."""

    def __init__(
        self,
        answer: Callable[[Call], str] | str,
        *,
        chat: bool = True,
        structured: bool = True,
        writer: bool = False,
        **spec: Any,
    ) -> None:
        super().__init__(ModelSpec(name="scripted", **spec), None, None, identity="scripted")
        self._answer = answer
        self._chat, self._structured, self._writer = chat, structured, writer
        self.calls: list[Call] = []

    @property
    def chat(self) -> bool:
        return self._chat

    @property
    def writer(self) -> bool:
        return self._writer

    @property
    def structured(self) -> bool:
        return self._structured

    async def _request(self, call: Call) -> Reply:
        self.calls.append(call)
        return Reply(text=self._answer if isinstance(self._answer, str) else self._answer(call))
