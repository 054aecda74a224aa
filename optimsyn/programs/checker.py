"""Which checks a recipe runs, and their verdict on a pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import CHECKS, FORMS, call_problem
from optimsyn.base.suggestions import did_you_mean
from optimsyn.data.duplicates import NearDuplicates, question_text
from optimsyn.data.forms import form_named, form_of
from optimsyn.data.records import Pair, Passage, Question
from optimsyn.programs.check_fingerprint import check_parts, fingerprint_of, form_parts
from optimsyn.programs.checks import (
    BUILT_IN,
    OF_FORMS,
    Check,
    CheckContext,
    check_near_duplicate_question,
    checks_of_forms,
)
from optimsyn.recipe.sections.synthesis import Checks


@dataclass(frozen=True)
class Validity:
    """The verdict on one pair.

    Attributes:
        valid: No check failed.
        failed: Names of the checks that failed, in the order of `BUILT_IN`.
        reasons: Why, by name.
    """

    valid: bool
    failed: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)


_NO_CHECK = "it is not a function of a pair and its context, nor an object that is called like one"


def _no_check(part: object) -> str | None:
    if not callable(part) or isinstance(part, type):
        return _NO_CHECK
    return call_problem(part, "a pair", "its context")


CHECKS.provide(BUILT_IN, _no_check)


def check_problems(checks: Checks, of_forms: Iterable[str] = ()) -> list[str]:
    """Problems with the names of checks in a recipe, one sentence each.

    Args:
        checks: The recipe's section.
        of_forms: Names of the checks of the questions' forms.
    """
    known = [*BUILT_IN, *of_forms]
    problems = []
    for name in checks.disabled:
        if name not in known:
            hint = did_you_mean(name, known, f"known: {', '.join(known)}", cutoff=0.5)
            problems.append(f"checks.disabled: there is no check {name!r}; {hint}")
    first: dict[int, str] = {}
    for name in checks.plugins:
        if name in BUILT_IN:
            problems.append(f"checks.plugins: {name!r} is a built-in check, which runs by itself; take it out")
            continue
        try:
            part = CHECKS.get(name)
        except RecipeError as error:
            problems.append(str(error))
            continue
        if id(part) in first:
            other = first[id(part)]
            twice = f"{name!r} is there twice" if other == name else f"{name!r} and {other!r} are the same check"
            problems.append(f"checks.plugins: {twice}; remove one")
        first.setdefault(id(part), name)
    return problems


def form_checks(names: Iterable[str]) -> dict[str, Check]:
    """The checks of custom forms, by name.

    Args:
        names: Of forms, also built-in ones, whose checks are in `BUILT_IN`.

    Raises:
        RecipeError: There is no such form, or two checks have the same name.
    """
    checks: dict[str, Check] = {}
    for form in dict.fromkeys(names):
        if form in FORMS.built_in:
            continue
        own_checks = checks_of_forms({form: form_named(form)})
        taken = next((name for name in own_checks if name in BUILT_IN or name in checks), None)
        if taken is not None:
            raise RecipeError(f"{FORMS.field}: the check {taken!r} of {form!r} has the name of another one; rename it")
        checks |= own_checks
    return checks


class Checker:
    """Runs the checks of a recipe.

    Args:
        checks: Which are disabled, the unsafe words, and your own checks by name.
        questions: The validation questions; the checks of their forms run as well.
        judge: The `PairJudge` of what passes all checks, asked by the drafter; None: nobody judges. Its fingerprint
            counts, its module is none of the built-in checks.

    Attributes:
        fingerprint: Changes with everything that a verdict depends on: the checks that run, their source (a plugin's
            whole module and its imports from beside it; not the files that it reads), the unsafe words, the questions.
        parts: Digests of these, by name.
        redrafts: How often a pair that is not valid is written again.

    Raises:
        RecipeError: A disabled check does not exist, or a plugin cannot be imported or has no source.

    Example:
        >>> checker = Checker(recipe.checks, validation)            # doctest: +SKIP
        >>> checker.check(pair, passage).failed                     # doctest: +SKIP
        ('grounded',)
    """

    def __init__(self, checks: Checks, questions: Sequence[Question] = (), judge: Any = None) -> None:
        self.judge = judge
        forms = list(dict.fromkeys(question.kind for question in questions))
        of_forms = form_checks(forms)
        problems = check_problems(checks, of_forms)
        if problems:
            raise RecipeError(problems[0])
        built_in = {name: check for name, check in (BUILT_IN | of_forms).items() if name not in checks.disabled}
        plugins: dict[str, Check] = {reference: CHECKS.get(reference) for reference in checks.plugins}
        self.checks = built_in | plugins
        self.parts = check_parts(list(built_in), plugins, checks.unsafe_words, questions) | form_parts(forms)
        if judge is not None:
            self.parts["the judge"] = judge.fingerprint
        if checks.redrafts:
            self.parts["how often an invalid pair is written again"] = str(checks.redrafts)
        self.fingerprint = fingerprint_of(self.parts)
        self.redrafts = checks.redrafts
        self._unsafe = checks.unsafe_words
        self._questions: list[Question] = []
        texts: list[str] = []
        for question in questions:
            # With and without its options, since a pair may repeat it either way.
            for text in dict.fromkeys((question.question, question_text(question))):
                self._questions.append(question)
                texts.append(text)
        self._texts = NearDuplicates(texts)

    def check(self, pair: Pair, passage: Passage) -> Validity:
        """The verdict on one pair."""
        context = self._context(passage)
        reasons = {name: reason for name in self.checks if (reason := self._reason(name, pair, context)) is not None}
        return Validity(not reasons, tuple(reasons), reasons)

    def repeats_a_question(self, pair: Pair, passage: Passage) -> bool:
        """Whether a pair is nearly one of the questions."""
        return check_near_duplicate_question(pair, self._context(passage)) is not None

    def _context(self, passage: Passage) -> CheckContext:
        return CheckContext(passage, self._questions, self._texts, self._unsafe)

    def _reason(self, name: str, pair: Pair, context: CheckContext) -> str | None:
        """Why a pair fails a check, or None.

        Raises:
            RecipeError: A custom check raised, or returned something else than None or a reason.
        """
        if name in BUILT_IN:
            seen = pair if name in OF_FORMS else _as_seen(pair, name)
            return None if seen is None else self.checks[name](seen, context)
        try:
            reason: object = self.checks[name](pair, context)
        except (Exception, SystemExit) as error:
            raise RecipeError(
                f"the check {name} raised {type(error).__name__}: {error} (pair {pair.id}); fix it and run again"
            ) from error
        if reason is None or (isinstance(reason, str) and reason):
            return reason
        raise RecipeError(
            f"the check {name} returned {reason!r} for pair {pair.id}; a check returns None where the pair passes, and "
            "the reason as a text where it fails; fix it and run again"
        )


def _as_seen(pair: Pair, check: str) -> Pair | None:
    """What a general check sees of a pair.

    Raises:
        RecipeError: The pair has a custom form, whose `checked` fails or gives something else.
    """
    form = form_of(pair)
    try:
        seen: object = form.checked(pair, check)
    except Exception as error:
        if pair.kind in FORMS.built_in:
            raise
        raise RecipeError(
            f"{FORMS.field}: `checked` of {pair.kind} raised {type(error).__name__}: {error} ({pair.id}); fix it and "
            "run again"
        ) from error
    if seen is None or isinstance(seen, Pair):
        return seen
    raise RecipeError(f"{FORMS.field}: `checked` of {pair.kind} gave {seen!r:.200} ({pair.id}), not a pair or None")
