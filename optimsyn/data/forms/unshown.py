"""The form that nobody names (`questions.show_form: false`): each pair has the form that its rubric asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from optimsyn.data.forms.form import Key, QuestionForm
from optimsyn.data.forms.multiple_choice import MultipleChoice
from optimsyn.data.forms.true_false import TrueFalse
from optimsyn.data.records import Rubric

_NUMBERS = {name: number for number, name in enumerate("two three four five six".split(), 2)}
_SOME = rf"(?P<count>{'|'.join(_NUMBERS)}|[2-6])"
_OPTIONS = r"(?:options?|choices|alternatives)"
_COUNTED = re.compile(rf"\b{_SOME}[ -](?:\w+ )?{_OPTIONS}\b", re.IGNORECASE)
_CHOICE = re.compile(
    rf"\bmultiple[ -]choice\b|객관식|선다형|选择题|選擇題|多肢選択|択一|ปรนัย|اختيار من متعدد|"
    rf"\bdistractors?\b|\b(?:wrong|answer|plausible|tempting) {_OPTIONS}\b",
    re.IGNORECASE,
)
_TRUE_FALSE = re.compile(
    r"\btrue(?: or |[/-])false\b|\b(?:wahr|richtig)(?: oder |/)falsch\b|참[/ ]?거짓|OX ?문제|判断题|是非題|"
    r"正誤(?:問題)?|ถูกหรือผิด|صح أم خطأ",
    re.IGNORECASE,
)
_YES_NO = re.compile(r"\byes(?:,? or |, |[/-])no\b", re.IGNORECASE)
_MAYBE = re.compile(r"\b(?:maybe|perhaps|uncertain|unclear)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Unshown(QuestionForm):
    """A question in the form of its rubric; a free answer, of no set length, where the rubric names none."""

    label: ClassVar[str] = "as the rubric asks"

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """Answer and question, without a length."""
        _, question = super().reply_keys(seed)
        return Key("answer", "the correct answer", several=True), question

    def under(self, rubric: Rubric | None) -> tuple[str, QuestionForm]:
        """Name and form that a rubric asks for; `free` without a rubric."""
        text = "" if rubric is None else "; ".join(rubric.model_dump().values())
        counted = _COUNTED.search(text)
        if _TRUE_FALSE.search(text):
            return "true_false", TrueFalse()
        if _YES_NO.search(text):
            verdicts = ("yes", "no", "maybe") if _MAYBE.search(text) else ("yes", "no")
            return "multiple_choice", MultipleChoice(len(verdicts), verdicts)
        if counted is not None:
            count = counted["count"].lower()
            return "multiple_choice", MultipleChoice(_NUMBERS.get(count) or int(count))
        if _CHOICE.search(text):
            return "multiple_choice", MultipleChoice()
        return "free", self
