"""The form `reasoning`: the steps first (chain of thought), then the answer on a line of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from optimsyn.base.errors import DataError
from optimsyn.data.answer_metrics import exact_match, normalize_answer, token_f1
from optimsyn.data.demonstrations import Demo
from optimsyn.data.forms.cells import accepted_answers
from optimsyn.data.forms.form import Content, FormCheck, Gold, Heard, Key, Looked, Marks, QuestionForm
from optimsyn.data.forms.free import FEW_WORDS
from optimsyn.data.forms.lines import block, debris, text_of, texts_of, ungrounded
from optimsyn.data.language.grounding import Source
from optimsyn.data.records import Pair, Question
from optimsyn.data.text import stem, word_count, words_of

FINAL = "Answer:"
"""What the last line begins with, which holds the final answer."""
_WORDS = 30
_FEWEST_WORDS = 5
_LONGEST = 400
_SHARE_IN_PASSAGE = 0.4
_FINAL = re.compile(
    r"^[\s*#>]*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?[\s*]*[:：]\s*(?P<said>.+)$|^####\s*(?P<marked>.+)$", re.I | re.M
)
_BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_STEPS = {
    "When was Halley's Comet last seen?": (
        "When was Halley's Comet last seen?",
        "The comet passes the Earth about every 76 years. Its last pass that was seen was in 1986.",
        "1986",
    ),
    "What does the barn swallow build its nest from?": (
        "What does the barn swallow build its nest from?",
        "Swallows differ in their nests. The barn swallow shapes pellets of mud and puts them under the roofs of "
        "barns, so its nest is of pellets of mud.",
        "pellets of mud",
    ),
}


def check_reasoning_well_formed(pair: Pair, context: Looked) -> str | None:
    """The reasoning has several words, is not too long, and comes to the answer."""
    steps = text_of(pair, "reasoning")
    if len(words_of(steps)) < _FEWEST_WORDS and word_count(steps) < _FEWEST_WORDS:
        return "there is no reasoning"
    if word_count(steps) > _LONGEST:
        return f"the reasoning has {word_count(steps)} words, more than {_LONGEST}"
    if (label := debris(steps)) is not None:
        return label
    if normalize_answer(pair.answer) in normalize_answer(steps):
        return None
    if context.language == "en":
        stems = set(map(stem, words_of(steps)))
        missing = [word for word in words_of(pair.answer) if stem(word) not in stems]
    else:
        missing = Source(steps, context.language).strange(pair.answer)
    if missing:
        return f"the reasoning does not come to the answer ({missing[0]} is not in it)"
    return None


def check_reasoning_grounded(pair: Pair, context: Looked) -> str | None:
    """Two fifths of the reasoning's content words come from the passage or the question; its figures may be new."""
    steps = text_of(pair, "reasoning")
    return ungrounded("reasoning", steps, context, share=_SHARE_IN_PASSAGE, also=pair.question, figures=False)


@dataclass(frozen=True)
class Reasoning(QuestionForm):
    """A question with the steps to its answer, then the answer on a last line, `Answer: …`.

    Training, influence and answer loss are over reasoning and answer, all tokens alike. Exact match and token F1 mark
    the final answer alone: what follows `Answer:` (or `####`, or in LaTeX's `boxed`), or else the last line.
    """

    label: ClassVar[str] = "reasoning"
    in_rubric: ClassVar[str] = "a question that takes some steps of reasoning, and its short answer"
    columns: ClassVar[tuple[str, ...]] = ("reasoning",)
    lines: ClassVar[bool] = True
    answer_label: ClassVar[str] = "Reasoning"
    checks: ClassVar[Mapping[str, FormCheck]] = {
        "reasoning_well_formed": check_reasoning_well_formed,
        "reasoning_grounded": check_reasoning_grounded,
    }
    answer_words: int = FEW_WORDS
    reasoning_words: int = _WORDS

    def fitted(self, questions: Sequence[Question]) -> Reasoning:
        """With the questions' lengths of answers and of reasoning."""
        own = [question for question in questions if question.kind == "reasoning"]
        if not own:
            return self
        answers, steps = (
            [word_count(question.answer) for question in own],
            [word_count(text_of(question, "reasoning")) for question in own],
        )
        return Reasoning(max(1, round(median(answers))), max(_FEWEST_WORDS, round(median(steps))))

    def read_row(self, values: Mapping[str, Any]) -> Gold:
        """Reads `answer`, `answers` and `reasoning`; an `answer` with both, as GSM8K's, is split at its last line."""
        steps = texts_of(values, "reasoning")
        answers = accepted_answers(values)
        if not answers:
            raise DataError("has no answer; give it an `answer` or remove the row")
        if not steps:
            whole = texts_of(values)
            match = _last_line(whole)
            if match is not None:
                steps, answers[0] = block(whole[: match.start()]), final_answer(whole)
        if not steps:
            raise DataError(
                "has no `reasoning`; give the steps that lead to the answer, or put them into `answer` above a last "
                f"line `{FINAL} …` (for answers without steps use the form `free`)"
            )
        return Gold(answers[0], tuple(dict.fromkeys(answers)), details={"reasoning": steps})

    def task(self) -> str:
        """Steps and answer."""
        return (
            "From each passage: a quoted sentence, an exam question, the steps that lead to its answer and the answer."
        )

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """Question, reasoning, answer."""
        return (
            Key("question", "an exam question that takes some thought, clear to a reader who has not seen the passage"),
            Key(
                "reasoning",
                f"the steps from the facts of the passage to the answer (about {self.reasoning_words} words); "
                "the last one gives the answer",
                lines=True,
            ),
            Key(
                "answer",
                f"the correct answer alone, as short as possible (about {self.answer_words} words)",
                several=True,
            ),
        )

    def demonstration(self, demo: Demo) -> dict[str, str]:
        """The example with its steps."""
        return dict(zip(("question", "reasoning", "answer"), _STEPS[demo.question], strict=True))

    def mended(self, values: dict[str, Any]) -> dict[str, Any]:
        """The reasoning may have another name; a list of steps is one step a line."""
        for other in ("steps", "rationale", "explanation", "thinking", "chain_of_thought"):
            if other in values:
                values.setdefault("reasoning", values[other])
        return values

    def content(self, reply: Mapping[str, str], seed: int) -> Content:
        """The reasoning without a last line that only repeats the answer."""
        steps, answer = reply["reasoning"], reply["answer"]
        match = _last_line(steps)
        if match is not None and not steps[match.end() :].strip() and match.start():
            steps = block(steps[: match.start()])
        return Content(reply["question"], answer, details={"reasoning": steps})

    def answer(self, item: Question | Pair) -> str:
        """The reasoning, then `Answer:` with the answer as the last line."""
        return f"{text_of(item, 'reasoning')}\n{FINAL} {item.answer}"

    def marks(self, question: Question, heard: Heard) -> Marks:
        """The final answer by exact match and token F1."""
        said = final_answer(heard.text)
        accepted = question.answers or (question.answer,)
        matched = exact_match(said, accepted)
        return Marks(said, matched, exact_match=matched, token_f1=token_f1(said, accepted))


def _last_line(text: str) -> re.Match[str] | None:
    """The last line of a text that is marked as the final answer."""
    return next(reversed(list(_FINAL.finditer(text))), None)


def final_answer(text: str) -> str:
    r"""The final answer of a text with reasoning.

    Example:
        >>> final_answer("It passes every 76 years.\nAnswer: 1986.")
        '1986'
    """
    match = _last_line(text)
    boxed = _BOXED.findall(text)
    if match is not None:
        said = match["said"] or match["marked"]
        boxed = _BOXED.findall(said)
    else:
        said = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return (boxed[-1] if boxed else said).strip(" *$").removesuffix(".").strip()
