"""The form `true_false`: a statement, whether it is true, and a sentence that says why."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from optimsyn.base.errors import DataError, ReplyError
from optimsyn.base.seeds import derive_seed
from optimsyn.data.demonstrations import Demo
from optimsyn.data.forms.cells import written
from optimsyn.data.forms.form import Content, FormCheck, Gold, Heard, Key, Looked, Marks, QuestionForm
from optimsyn.data.language.grounding import Source, strange_share
from optimsyn.data.language.whole import QUESTION_MARK
from optimsyn.data.records import Pair, Question
from optimsyn.data.text import STOP_WORDS, stem, word_count, words_of

_VERDICTS = {
    **dict.fromkeys(("true", "t", "yes", "right", "correct", "1"), "true"),
    **dict.fromkeys(("false", "f", "no", "wrong", "incorrect", "0"), "false"),
}
_OPENING = re.compile(r"^\s*true or false\s*[?:.,–-]\s*", re.IGNORECASE)
_REASON_WORDS = 10
_LONGEST_REASON = 40
_SHARE_IN_PASSAGE = 0.7
# For each worked example a statement, its verdict and the reason.
_STATEMENTS = {
    "When was Halley's Comet last seen?": (
        "Halley's Comet passes the Earth about every 76 years.",
        "true",
        "It was last seen in 1986 and passes about every 76 years.",
    ),
    "What does the barn swallow build its nest from?": (
        "The barn swallow builds its nest from twigs.",
        "false",
        "It builds its nest from pellets of mud.",
    ),
}


def check_statement_well_formed(pair: Pair, context: Looked) -> str | None:
    """What is called true or false is a statement, no question."""
    return "it is a question, no statement" if QUESTION_MARK.search(_OPENING.sub("", pair.question)) else None


def check_reason_well_formed(pair: Pair, context: Looked) -> str | None:
    """The reason is one short sentence and more than the verdict or the statement again."""
    reason = _reason(pair)
    if not re.search(r"\w", reason):
        return "there is no reason"
    if word_count(reason) > _LONGEST_REASON:
        return f"the reason has {word_count(reason)} words, more than {_LONGEST_REASON}"
    if re.search(r"[.!?。][\s\"”')]+\w", re.sub(r"\b(?:\w|[Dd]r|Mrs?|Ms|St|No|vs|e\.g|i\.e)\.", "", reason)):
        return "the reason is more than one sentence"
    if words_of(reason) == words_of(pair.question) or set(words_of(reason)) <= {"true", "false", "it", "is"}:
        return "the reason only says the statement or the verdict again"
    return None


def check_reason_grounded(pair: Pair, context: Looked) -> str | None:
    """The content words of the reason come from the passage or the statement, some from the passage, figures all do."""
    reason = [word for word in words_of(_reason(pair)) if word not in STOP_WORDS and word not in _VERDICTS]
    statement = set(map(stem, words_of(pair.question)))
    strange = [word for word in reason if stem(word) not in context.source_words and stem(word) not in statement]
    if context.language != "en":
        # Other languages have endings, particles and scripts without words; what the statement says counts too.
        asked = Source(pair.question, context.language)
        units = [unit for unit in context.source.content(_reason(pair)) if unit.known or not asked.has(unit)]
        strange = [unit.text for unit in units if unit.strict and not unit.known]
        if not strange and any(unit.known for unit in units) and strange_share(units) <= 1 - _SHARE_IN_PASSAGE:
            return None
        strange = strange or [unit.text for unit in units if not unit.known]
        return f"the reason's {', '.join(strange[:3])} does not come from the passage"
    figures = [word for word in strange if word[0].isdigit()]
    if figures:
        return f"the passage does not give the reason's figure {figures[0]}"
    if reason and not any(stem(word) in context.source_words for word in reason):
        return "the reason shares no word with the passage"
    if len(strange) > (1 - _SHARE_IN_PASSAGE) * len(reason):
        return f"the reason's {', '.join(strange[:3])} does not come from the passage"
    return None


@dataclass(frozen=True)
class TrueFalse(QuestionForm):
    """A statement that the target calls true or false, with a sentence that says why.

    Training and loss use verdict and reason; only the verdict is marked, by which of the two is likelier. A row of a
    question file has `answer` true or false (or yes and no) and optionally a `reason`.
    """

    label: ClassVar[str] = "true or false"
    statement_label: ClassVar[str] = "Statement"
    in_rubric: ClassVar[str] = "a statement that is true or false, with the reason"
    columns: ClassVar[tuple[str, ...]] = ("reason",)
    decodes: ClassVar[bool] = False
    free_length: ClassVar[bool] = False
    checks: ClassVar[Mapping[str, FormCheck]] = {
        "statement_well_formed": check_statement_well_formed,
        "reason_well_formed": check_reason_well_formed,
        "reason_grounded": check_reason_grounded,
    }
    reason_words: int = _REASON_WORDS

    def fitted(self, questions: Sequence[Question]) -> TrueFalse:
        """With the questions' length of reasons."""
        lengths = [word_count(reason) for question in questions if (reason := _reason(question))]
        return TrueFalse(max(1, round(median(lengths)))) if lengths else self

    def read_row(self, values: Mapping[str, Any]) -> Gold:
        """Reads `answer` as a verdict, and `reason`."""
        answer, reason = values.get("answer"), written(values.get("reason"))
        verdict = _verdict(written(answer[0] if isinstance(answer, list | tuple) and len(answer) == 1 else answer))
        if verdict is None:
            problem = "has no answer" if answer in (None, "") else f"answer {answer!r} is no verdict"
            raise DataError(f"{problem}; write true or false")
        return Gold(verdict, details={"reason": reason} if reason else {})

    def task(self) -> str:
        """Statement, verdict and reason."""
        return (
            "From each passage: a quoted sentence, a statement about it, whether the statement is true or false, and "
            "the reason."
        )

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """A statement, true for half of the seeds, its verdict and the reason."""
        wanted = random.Random(derive_seed(seed, "verdict")).choice(("true", "false"))
        return (
            Key("question", f"a full statement that is {wanted}, clear to a reader who has not seen the passage"),
            Key("answer", 'whether the statement is "true" or "false"', ("true", "false")),
            Key("reason", f"one sentence with the fact that decides it (about {self.reason_words} words)"),
        )

    def demonstration(self, demo: Demo) -> dict[str, str]:
        """The example as a statement."""
        return dict(zip(("question", "answer", "reason"), _STATEMENTS[demo.question], strict=True))

    def mended(self, values: dict[str, Any]) -> dict[str, Any]:
        """Accepts other names of the keys and other words for verdicts."""
        for other, name in (("statement", "question"), ("verdict", "answer"), ("explanation", "reason")):
            if other in values:
                values.setdefault(name, values[other])
        answer = values.get("answer")
        verdict = _verdict(written(answer)) if isinstance(answer, bool | int | str) else None
        return values if verdict is None else values | {"answer": verdict}

    def content(self, reply: Mapping[str, str], seed: int) -> Content:
        """The statement without `True or false?`, which the target's prompt adds."""
        statement = _OPENING.sub("", reply["question"])
        if not statement:
            raise ReplyError("the pair's `question` holds no statement")
        return Content(statement, reply["answer"], details={"reason": reply["reason"]})

    def is_verdict(self, pair: Pair) -> bool:
        """Always; the reason has to come from the passage."""
        return True

    def prompt(self, item: Question | Pair) -> str:
        """`True or false?` and the statement."""
        return f"True or false? {_OPENING.sub('', item.question).strip()}"

    def answer(self, item: Question | Pair) -> str:
        """The verdict and, if there is one, the reason."""
        reason = _reason(item)
        return f"{item.answer}. {reason}" if reason else item.answer

    def candidates(self, question: Question) -> tuple[str | None, ...]:
        """The gold answer with its reason, whose loss is measured, and the two verdicts alone."""
        return None, "true", "false"

    def marks(self, question: Question, heard: Heard) -> Marks:
        """The likelier verdict is the target's answer."""
        verdict = "true" if heard.means[1] >= heard.means[2] else "false"
        return Marks(verdict, verdict == question.answer, choice_scores=heard.means[1:])


def _reason(item: Question | Pair) -> str:
    return str(item.details.get("reason", "")).strip()


def _verdict(text: str) -> str | None:
    return _VERDICTS.get(text.casefold().strip(" .!\"'"))
