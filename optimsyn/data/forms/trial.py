"""Tries a custom form on a question, so that a fault in it is a line of `optimsyn validate` and no traceback later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from optimsyn.base.errors import RecipeError, ReplyError
from optimsyn.base.extensions import FORMS
from optimsyn.data.demonstrations import DEMOS
from optimsyn.data.forms.form import Content, Heard, Key, Marks
from optimsyn.data.forms.registry import fitted_form
from optimsyn.data.records import Question


def form_problems(name: str, questions: list[Question]) -> list[str]:
    """The members of a custom form that fail or give something else than they should; no problem without questions.

    Args:
        name: Its name in the recipe.
        questions: The validation questions.
    """
    if name in FORMS.built_in or not questions:
        return []
    try:
        form = fitted_form(name, questions)
    except RecipeError as error:
        return [str(error)]
    question, demo = questions[0], DEMOS[0]

    def names() -> set[str]:
        return {key.name for key in form.reply_keys(0)}

    tries: dict[str, tuple[Callable[[], object], Callable[[Any], bool], str]] = {
        "task": (form.task, lambda given: isinstance(given, str), "a sentence"),
        "reply_keys": (
            lambda: form.reply_keys(0),
            lambda given: all(isinstance(key, Key) for key in given) and {"question", "answer"} <= names(),
            "`Key`s, those of `question` and `answer` among them",
        ),
        "demonstration": (
            lambda: form.demonstration(demo),
            lambda given: _texts(given) and names() <= set(given),
            "a text for each of its reply_keys",
        ),
        "content": (
            lambda: form.content({"quote": demo.quote, **form.demonstration(demo)}, 0),
            lambda given: isinstance(given, Content),
            "a `Content`",
        ),
        "candidates": (
            lambda: form.candidates(question),
            lambda given: len(given) > 0 and all(text is None or isinstance(text, str) for text in given),
            "texts, or None for the question's own answer",
        ),
        "marks": (
            lambda: form.marks(question, Heard(question.answer, (-1.0,) * len(form.candidates(question)))),
            lambda given: isinstance(given, Marks),
            "`Marks`",
        ),
        "parts": (
            lambda: form.parts(question),
            lambda given: isinstance(given, tuple) and len(given) > 0 and all(isinstance(text, str) for text in given),
            "a tuple of texts",
        ),
    }
    problems = []
    for member, (call, fits, wanted) in tries.items():
        try:
            given = call()
            wrong = None if fits(given) else f"gave {given!r:.200}; it returns {wanted}"
        except ReplyError:  # the worked example is no reply of this form
            wrong = None
        except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything; it is reported
            wrong = f"raised {type(error).__name__}: {error}"
        if wrong is not None:
            problems.append(f"{FORMS.field}: `{member}` of {name} {wrong}")
            if member in ("reply_keys", "demonstration", "candidates"):
                break  # the next ones build on it
    return problems


def _texts(given: object) -> bool:
    return isinstance(given, Mapping) and all(isinstance(text, str) for text in given.values())
