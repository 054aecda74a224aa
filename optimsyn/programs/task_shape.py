"""The form of the expert questions, which pairs imitate."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optimsyn.base.seeds import derive_seed
from optimsyn.data.forms import QuestionForm, fitted_form, form_named, identity_of
from optimsyn.data.forms.free import Free
from optimsyn.data.forms.unshown import Unshown
from optimsyn.data.records import Question


@dataclass(frozen=True)
class FormShare:
    """One form among the expert questions.

    Attributes:
        name: Its name in a recipe.
        form: The form, fitted to these questions.
        share: Its share of all questions, between 0 and 1.
    """

    name: str
    form: QuestionForm
    share: float = 1.0


@dataclass(frozen=True)
class TaskShape:
    """The form of the expert questions, which pairs imitate.

    Attributes:
        forms: The forms of the questions, `free` last.
        open_book: Most questions are asked with a text.
    """

    forms: tuple[FormShare, ...] = (FormShare("free", Free()),)
    open_book: bool = False

    @classmethod
    def of(cls, questions: Sequence[Question], *, show_form: bool = True) -> TaskShape:
        """The shape of some questions (the validation questions of a run).

        Args:
            questions: The questions.
            show_form: As the recipe's `questions.show_form`; False keeps their forms out of all prompts.

        Raises:
            RecipeError: This process does not know a question's form, or it cannot be fitted.
        """
        if not questions:
            return cls()
        counts = Counter(question.kind for question in questions)
        names = sorted(counts, key=lambda name: (name == "free", name))
        open_book = 2 * sum(question.context is not None for question in questions) > len(questions)
        if not show_form:
            return cls.only("free", Unshown(), open_book=open_book)
        forms = tuple(FormShare(n, fitted_form(n, questions), counts[n] / len(questions)) for n in names)
        return cls(forms, open_book)

    @classmethod
    def only(cls, name: str, form: QuestionForm | None = None, *, open_book: bool = False) -> TaskShape:
        """The shape of questions that all have one form.

        Args:
            name: Of the form.
            form: The fitted form; None: its defaults.
            open_book: The questions are asked with a text.
        """
        return cls((FormShare(name, form or form_named(name)),), open_book)

    @property
    def identity(self) -> list[Any]:
        """What the pairs depend on in this shape, as JSON values.

        Raises:
            RecipeError: A custom form has no source.
        """
        return [self.open_book, *([identity_of(each.name, each.form), each.share] for each in self.forms)]

    def kind_for(self, seed: int) -> str:
        """The form's name for the pair with this seed, drawn in the proportion of the questions."""
        drawn = random.Random(derive_seed(seed, "kind")).random()
        reached = 0.0
        for each in self.forms[:-1]:
            reached += each.share
            if drawn < reached:
                return each.name
        return self.forms[-1].name

    def form(self, name: str) -> QuestionForm:
        """The form of this name, fitted to the questions."""
        return next((each.form for each in self.forms if each.name == name), None) or form_named(name)
