"""The form of the expert questions, which pairs imitate."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optimsyn.base.seeds import derive_seed
from optimsyn.data.forms import QuestionForm, form_named, identity_of
from optimsyn.data.forms.free import Free
from optimsyn.data.records import Question


@dataclass(frozen=True)
class FormShare:
    """One form among the expert questions.

    Attributes:
        name: As the recipe names it.
        form: The form as these questions have it.
        share: Of all questions, between 0 and 1.
    """

    name: str
    form: QuestionForm
    share: float = 1.0


@dataclass(frozen=True)
class TaskShape:
    """The form of the expert questions, which pairs imitate.

    Attributes:
        forms: The forms that they have, `free` last.
        open_book: Most questions are asked with a text.
    """

    forms: tuple[FormShare, ...] = (FormShare("free", Free()),)
    open_book: bool = False

    @classmethod
    def of(cls, questions: Sequence[Question]) -> TaskShape:
        """The shape of some questions (the validation questions of a run).

        Raises:
            RecipeError: This process does not know a question's form.
        """
        if not questions:
            return cls()
        counts = Counter(question.kind for question in questions)
        names = sorted(counts, key=lambda name: (name == "free", name))
        return cls(
            tuple(FormShare(n, form_named(n).fitted(questions), counts[n] / len(questions)) for n in names),
            2 * sum(question.context is not None for question in questions) > len(questions),
        )

    @classmethod
    def only(cls, name: str, form: QuestionForm | None = None, *, open_book: bool = False) -> TaskShape:
        """The shape of questions that all have one form.

        Args:
            name: Of the form.
            form: The form as the questions have it; None: as it is made.
            open_book: They are asked with a text.
        """
        return cls((FormShare(name, form or form_named(name)),), open_book)

    @property
    def identity(self) -> list[Any]:
        """What the pairs that imitate it depend on, as JSON values.

        Raises:
            RecipeError: A form of the user's own has no source.
        """
        return [self.open_book, *([identity_of(each.name, each.form), each.share] for each in self.forms)]

    def kind_for(self, seed: int) -> str:
        """The name of the form of the pair with this seed; over many seeds in the proportion of the questions."""
        drawn = random.Random(derive_seed(seed, "kind")).random()
        reached = 0.0
        for each in self.forms[:-1]:
            reached += each.share
            if drawn < reached:
                return each.name
        return self.forms[-1].name

    def form(self, name: str) -> QuestionForm:
        """The form of this name, as the questions have it."""
        return next((each.form for each in self.forms if each.name == name), None) or form_named(name)
