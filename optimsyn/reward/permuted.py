"""Questions with each other's answers: the form of the exam without its content, for `reward.source: permuted`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from optimsyn.base.errors import DataError
from optimsyn.base.seeds import derive_seed
from optimsyn.data.records import Question

_Like = Callable[[Question], object]


def _options(question: Question) -> tuple[str, ...]:
    return tuple(sorted(choice.casefold().strip() for choice in question.choices or ()))


# From the most alike to the least: answers stay within a subtask and a set of options where they can.
_ALIKE: tuple[_Like, ...] = (
    lambda question: (question.kind, _options(question), question.subtask),
    lambda question: (question.kind, _options(question)),
    lambda question: (question.kind, len(question.choices or ()), question.subtask),
    lambda question: (question.kind, len(question.choices or ())),
)


def permuted(questions: Sequence[Question], seed: int) -> list[Question]:
    """The questions, each with the answer of another one of its form; those without a like are left out.

    Free answers are swapped. Options stay where they are, and which one is right is swapped among questions with as
    many options, so that every label is right as often as before. No question keeps its own answer, but another one's
    may be the same: of yes and no half are, since answers that are always wrong would teach the content backwards.

    Raises:
        DataError: No question has a like.
    """
    answer_of: dict[int, Question] = {}
    for alike in _ALIKE:
        groups: dict[object, list[int]] = {}
        for place, question in enumerate(questions):
            if place not in answer_of:
                groups.setdefault(alike(question), []).append(place)
        for number, places in enumerate(groups.values()):
            if len(places) > 1:
                # In a circle in random order, each takes the answer of the next.
                random.Random(derive_seed(seed, "permuted", len(answer_of), number)).shuffle(places)
                for place, other in zip(places, [*places[1:], places[0]], strict=True):
                    answer_of[place] = questions[other]
    if not answer_of:
        raise DataError(
            "reward.source: permuted swaps the answers of validation questions of one form, and no two are of one; "
            "give more questions.validation, or choose another source"
        )
    return [_answered_as(questions[place], answer_of[place]) for place in sorted(answer_of)]


def _answered_as(question: Question, other: Question) -> Question:
    if question.choices is None or question.answer_index is None or other.answer_index is None:
        fields = {name: getattr(other, name) for name in ("answer", "answers", "choices", "answer_index", "details")}
        return question.model_copy(update=fields)
    plain = [choice.casefold().strip() for choice in question.choices]
    text = other.answer.casefold().strip()
    # The same options may stand in another order.
    index = plain.index(text) if text in plain else min(other.answer_index, len(plain) - 1)
    answer = question.choices[index]
    return question.model_copy(update={"answer": answer, "answers": (answer,), "answer_index": index})
