"""The forms of question, a module each; `form` says what one is, `registry` finds them by name."""

from optimsyn.data.forms.form import Content, FormCheck, Gold, Heard, Key, Looked, Marks, QuestionForm
from optimsyn.data.forms.registry import (
    as_text,
    fitted_form,
    form_named,
    form_of,
    identity_of,
    label_of,
    name_for_row,
    recorded,
    shown,
    shown_row,
)

__all__ = [
    "Content",
    "FormCheck",
    "Gold",
    "Heard",
    "Key",
    "Looked",
    "Marks",
    "QuestionForm",
    "as_text",
    "fitted_form",
    "form_named",
    "form_of",
    "identity_of",
    "label_of",
    "name_for_row",
    "recorded",
    "shown",
    "shown_row",
]
