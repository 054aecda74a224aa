"""The form `free`: a question and a short answer in free words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from optimsyn.data.forms.form import Key, QuestionForm
from optimsyn.data.records import Question
from optimsyn.data.text import word_count

FEW_WORDS = 3
"""Default number of words of an answer."""


def answer_words(questions: Sequence[Question]) -> int:
    """Median number of words of the free answers among some questions."""
    free = [question for question in questions if question.kind == "free"]
    return max(1, round(median(word_count(question.answer) for question in free))) if free else FEW_WORDS


@dataclass(frozen=True)
class Free(QuestionForm):
    """A question that is answered in a few free words. It is marked by exact match and token F1."""

    label: ClassVar[str] = "free answers"
    answer_words: int = FEW_WORDS

    def fitted(self, questions: Sequence[Question]) -> Free:
        """With the questions' length of answers."""
        return Free(answer_words(questions))

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """Answer and question."""
        length = f"the correct answer, as short as possible (about {self.answer_words} words)"
        _, question = super().reply_keys(seed)
        return Key("answer", length, several=True), question
