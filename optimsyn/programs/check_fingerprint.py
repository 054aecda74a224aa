"""The fingerprint of a set of checks; rewards are only comparable under the same checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from optimsyn.base.extensions import FORMS
from optimsyn.base.identity import digest_of
from optimsyn.base.source_identity import module_source, source_identity
from optimsyn.data.forms import form_named
from optimsyn.data.language.dictionary import LIBRARY
from optimsyn.data.records import Question

# The modules of the built-in checks.
BUILT_IN = (
    "optimsyn.programs.checker",
    "optimsyn.programs.checks",
    "optimsyn.data.demonstrations",
    "optimsyn.data.duplicates",
    "optimsyn.data.figures.derivation",
    "optimsyn.data.figures.numerals",
    "optimsyn.data.figures.parse",
    "optimsyn.data.figures.printed",
    "optimsyn.data.figures.units",
    *(
        f"optimsyn.data.forms.{name}"
        for name in (
            "code dialogue figure form free items lines long_answer multiple_choice reasoning true_false"
        ).split()
    ),
    "optimsyn.data.language.detect",
    "optimsyn.data.language.dictionary",
    "optimsyn.data.language.endings",
    "optimsyn.data.language.english",
    "optimsyn.data.language.grounding",
    "optimsyn.data.language.known",
    "optimsyn.data.language.segment",
    "optimsyn.data.language.whole",
    "optimsyn.data.text",
    "optimsyn.programs.language_checks",
)


def check_parts(
    built_in: Sequence[str], plugins: Mapping[str, object], unsafe_words: Sequence[str], questions: Sequence[Question]
) -> dict[str, str]:
    """Digests of all that a verdict depends on, by a readable name, so that a message can name a change.

    Args:
        built_in: Names of the built-in checks that run, in order.
        plugins: The plugins by reference, in order.
        unsafe_words: The recipe's.
        questions: The questions that no pair may repeat.

    Raises:
        RecipeError: A plugin has neither source nor a file.
    """
    parts = {
        "the built-in checks": digest_of([module_source(name, "the built-in checks") for name in BUILT_IN]),
        "the dictionary of words": digest_of([LIBRARY, version(LIBRARY)]),
        "which checks run": digest_of([list(built_in), list(plugins)]),
        "checks.unsafe_words": digest_of(list(unsafe_words)),
        "the validation questions": digest_of([question.model_dump(mode="json") for question in questions]),
    }
    return parts | {
        f"the plugin {name}": digest_of(source_identity(name, check, "checks.plugins"))
        for name, check in plugins.items()
    }


def form_parts(names: Sequence[str]) -> dict[str, str]:
    """Digests of custom forms, whose checks run, as in `check_parts`.

    Raises:
        RecipeError: A form has no source.
    """
    own = [name for name in names if name not in FORMS.built_in]
    return {f"the form {name}": digest_of(source_identity(name, form_named(name), FORMS.field)) for name in own}


def fingerprint_of(parts: Mapping[str, str]) -> str:
    """The fingerprint of all parts."""
    return f"checks-{digest_of(dict(parts))}"
