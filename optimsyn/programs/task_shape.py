"""The form of the expert questions, which pairs imitate."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from optimsyn.base.seeds import derive_seed
from optimsyn.data.records import PairKind, Question
from optimsyn.data.text import word_count
from optimsyn.programs.constrained.pair_form import PairForm

# Share of the multiple-choice questions that must have the same options for these to count as fixed.
_FIXED_SHARE = 0.8


@dataclass(frozen=True)
class TaskShape:
    """The form of the expert questions, which pairs imitate.

    Attributes:
        multiple_choice: Share of questions with options.
        fixed_choices: The options when nearly all such questions have the same (yes, no, maybe), else empty.
        choices: Options of a multiple-choice question otherwise (the most frequent number).
        open_book: Most questions are asked with a text.
        answer_words: Median number of words of the free answers.
    """

    multiple_choice: float = 0.0
    fixed_choices: tuple[str, ...] = ()
    choices: int = 4
    open_book: bool = False
    answer_words: int = 3

    @classmethod
    def of(cls, questions: Sequence[Question]) -> TaskShape:
        """The shape of some questions (the validation questions of a run)."""
        with_options = [question.choices for question in questions if question.choices is not None]
        free = [question for question in questions if question.choices is None]
        fixed: tuple[str, ...] = ()
        number = 4
        if with_options:
            sets = Counter(tuple(sorted(choice.casefold().strip() for choice in choices)) for choices in with_options)
            common, count = sets.most_common(1)[0]
            if count > 1 and count >= _FIXED_SHARE * len(with_options):
                fixed = next(c for c in with_options if tuple(sorted(x.casefold().strip() for x in c)) == common)
            number = Counter(len(choices) for choices in with_options).most_common(1)[0][0]
        return cls(
            multiple_choice=len(with_options) / len(questions) if questions else 0.0,
            fixed_choices=fixed,
            choices=number,
            open_book=2 * sum(question.context is not None for question in questions) > len(questions),
            answer_words=max(1, round(median(word_count(q.answer) for q in free))) if free else 3,
        )

    def kind_for(self, seed: int) -> PairKind:
        """The kind of the pair with this seed; over many seeds in the proportion of the questions."""
        return "multiple_choice" if random.Random(derive_seed(seed, "kind")).random() < self.multiple_choice else "free"

    def form(self, kind: PairKind) -> PairForm:
        """What a pair of this kind has to look like."""
        if kind == "free":
            return PairForm(answer_words=self.answer_words)
        if self.fixed_choices:
            return PairForm(len(self.fixed_choices), self.fixed_choices, self.answer_words)
        return PairForm(self.choices, (), self.answer_words)
