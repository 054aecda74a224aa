"""The forms by name, built-in and custom."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import FORMS
from optimsyn.base.source_identity import source_identity
from optimsyn.data.forms.code import Code
from optimsyn.data.forms.dialogue import Dialogue
from optimsyn.data.forms.figure import FigureQuestion
from optimsyn.data.forms.form import QuestionForm
from optimsyn.data.forms.free import Free
from optimsyn.data.forms.items import ItemList
from optimsyn.data.forms.long_answer import LongAnswer
from optimsyn.data.forms.multiple_choice import MultipleChoice, has_options
from optimsyn.data.forms.reasoning import Reasoning
from optimsyn.data.forms.true_false import TrueFalse
from optimsyn.data.records import Pair, Question

_FIELD = FORMS.field
_MEMBERS = tuple(name for name in vars(QuestionForm) if not name.startswith("_"))
# Cache of forms from entry points; searching all installed packages is too slow for every sample.
_INSTALLED: dict[str, QuestionForm] = {}


def _problem(part: object) -> str | None:
    """Why an object is no form of question, or None."""
    missing = [name for name in ("label", *_MEMBERS) if not hasattr(part, name)]
    if missing:
        return (
            f"it has no `{missing[0]}`; inherit from optimsyn.data.forms.QuestionForm, which has all but `label`, the "
            "name that tables call it"
        )
    if not isinstance(part.label, str):  # type: ignore[attr-defined]
        return "its `label` is no text"
    if not isinstance(part.checks, Mapping):  # type: ignore[attr-defined]
        return "its `checks` are no dictionary from a check's name to its function"
    kind = part if isinstance(part, type) else type(part)
    unread = sorted({*part.columns} - {*_of_read_row(kind).columns})  # type: ignore[attr-defined]
    if unread:
        return (
            f"its read_row is inherited and does not read {', '.join(unread)}, which `columns` names; write a read_row"
        )
    if isinstance(part, type):
        try:
            inspect.signature(part).bind()
        except TypeError as error:
            return f"it cannot be made without arguments ({error})"
    return None


def _of_read_row(kind: type) -> Any:
    """The class whose `read_row` a form has."""
    return next((base for base in kind.__mro__ if "read_row" in vars(base)), kind)


_BUILT_IN: dict[str, QuestionForm] = {
    "free": Free(),
    "multiple_choice": MultipleChoice(),
    "true_false": TrueFalse(),
    "figure": FigureQuestion(),
    "long_answer": LongAnswer(),
    "list": ItemList(),
    "code": Code(),
    "reasoning": Reasoning(),
    "dialogue": Dialogue(),
}
FORMS.provide(_BUILT_IN, _problem)


@cache
def _made(kind: type[QuestionForm]) -> QuestionForm:
    return kind()


def form_named(name: str) -> QuestionForm:
    """The form of a name from `questions.form` or a record.

    Raises:
        RecipeError: There is no such form.
    """
    if name in _INSTALLED:
        return _INSTALLED[name]
    part: Any = FORMS.get(name)
    form: QuestionForm = _made(part) if isinstance(part, type) else part
    if ":" not in name and name not in FORMS.built_in and not FORMS.only_here(name):
        _INSTALLED[name] = form
    return form


def fitted_form(name: str, questions: Sequence[Question]) -> QuestionForm:
    """The form of a name, fitted to the validation questions.

    Raises:
        RecipeError: There is no such form, or its `fitted` fails or returns something else.
    """
    form = form_named(name)
    if name in FORMS.built_in:
        return form.fitted(questions)
    try:
        own = form.fitted(questions)
    except Exception as error:
        raise RecipeError(
            f"{_FIELD}: `fitted` of {name} raised {type(error).__name__}: {error}; fix it and run again"
        ) from error
    problem = "it is a class" if isinstance(own, type) else _problem(own)
    if problem is not None:
        raise RecipeError(
            f"{_FIELD}: `fitted` of {name} gave {own!r:.200}, which is no form ({problem}); it returns the form, "
            "`self` if there is nothing to adapt"
        )
    return own


def form_of(item: Question | Pair) -> QuestionForm:
    """The form of a question or pair."""
    return form_named(item.kind)


def name_for_row(values: Mapping[str, Any]) -> str:
    """The form of a row of a question file when the recipe names none: with options or without."""
    return "multiple_choice" if has_options(values) else "free"


def recorded(name: str) -> str:
    """The value of a record's `form`: the name, or "" for forms that `choices` distinguishes."""
    return "" if name in ("free", "multiple_choice") else name


def label_of(name: str) -> str:
    """A form's label for tables; its name if this process does not know the form."""
    try:
        return form_named(name).label
    except RecipeError:
        return name.rpartition(":")[2].replace("_", " ")


def shown(item: Question | Pair) -> tuple[tuple[str, ...], str]:
    """A question with the lines below it, and its answer, for tables and pages.

    An unknown form (the notebook that defined it is closed) is shown as plain question and answer.
    """
    try:
        form = form_of(item)
    except RecipeError:
        return (item.question, *(item.choices or ())), item.answer
    return form.parts(item), form.answer(item)


def shown_row(pair: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The same for a pair from a ledger, maybe of an older version."""
    if not pair.get("form"):
        return (pair["question"], *(pair.get("choices") or ())), pair["answer"]
    return shown(Pair.model_validate({name: pair[name] for name in Pair.model_fields if name in pair}))


def as_text(item: Question | Pair) -> str:
    """Question, the lines below it, and answer."""
    (question, *below), answer = shown(item)
    options = f"\n({' · '.join(below)})" if below else ""
    return f"Q: {question}{options}\nA: {answer}"


def identity_of(name: str, form: QuestionForm) -> dict[str, Any]:
    """What results depend on in a form: its name, its state from `fitted` and, for a custom one, its source."""
    state = repr(form) if is_dataclass(form) else repr(sorted(getattr(form, "__dict__", {}).items()))
    facts: dict[str, Any] = {"name": name, "state": state}
    if name not in FORMS.built_in:
        facts["source"] = source_identity(name, form, _FIELD)
    return facts
