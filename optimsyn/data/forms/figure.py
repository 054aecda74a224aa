"""The form `figure`: a question whose answer is a figure with its unit, printed in the passage or calculated."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from optimsyn.base.errors import DataError
from optimsyn.base.seeds import derive_seed
from optimsyn.data.answer_metrics import exact_match, token_f1
from optimsyn.data.demonstrations import DEMOS, Demo
from optimsyn.data.figures import Derivation, DerivationError, Figure, Printed, decimal_comma, parse, same
from optimsyn.data.forms.cells import written
from optimsyn.data.forms.form import Content, FormCheck, Gold, Heard, Key, Looked, Marks, QuestionForm
from optimsyn.data.records import Pair, Question, Rubric
from optimsyn.data.text import words_of

_MOST_WORDS = 6
_NONE = frozenset(("", "none", "null", "n/a", "na", "-", "empty"))
_OTHER_NAMES = ("calculation", "computation", "expression", "formula", "working", "arithmetic")
_OPERATOR = re.compile(r"\d[^-−–+*/×÷=]{0,12}[-−–+*/×÷]\s*[-−–(\[$€£\d.]")
# An answer may give a fall as a positive figure if it or its question says that it is one.
_FALL = re.compile(
    r"\b(?:decreas|declin|fell|fall|drop|los[est]|lower|down\b|reduc|less\b|fewer|shr[aiu]nk|differ|cut\b|saved?\b)",
    re.IGNORECASE,
)
_FIGURE_DEMOS = (
    Demo(
        passage=DEMOS[0].passage,
        guiding_text=DEMOS[0].guiding_text,
        rubric=Rubric(
            question_type="the time between two passages of a comet",
            question_quality="names the comet in full and asks for one length of time",
            answer_quality="a figure with its unit",
            alignment="the figure is the time of one whole turn",
            trainability="a figure from which the comet's return can be worked out",
        ),
        quote=DEMOS[0].quote,
        question="How often does Halley's Comet pass the Earth?",
        answer="76 years",
        wrong=("86 years", "19 years", "67 years"),
        closed_question=DEMOS[0].closed_question,
        verdict="yes",
    ),
    Demo(
        passage="The ringers of the lake counted 250 nests of barn swallows in the first summer and 200 in the second. "
        "The barn swallow builds its nest from pellets of mud.",
        guiding_text="Ask how the number of an animal changes.",
        rubric=Rubric(
            question_type="the change of a count between two summers",
            question_quality="names the bird, the place and both summers",
            answer_quality="a percentage and nothing else",
            alignment="the change is that of the nests, from the first summer to the second",
            trainability="a change that has to be worked out of two counts",
        ),
        quote="The ringers of the lake counted 250 nests of barn swallows in the first summer and 200 in the second.",
        question="By what percentage did the barn swallow nests at the lake fall from the first summer to the second?",
        answer="20%",
        wrong=("25%", "50%", "80%"),
        closed_question="Did the nests of barn swallows at the lake become fewer?",
        verdict="yes",
    ),
)
_DERIVATIONS = {_FIGURE_DEMOS[1].question: "(250 - 200) / 250 * 100"}


def check_figure_well_formed(pair: Pair, context: Looked) -> str | None:
    """The answer is one figure with its unit and at most a few words."""
    figures = Printed.of(_source(context)).parse(pair.answer)
    if len(figures) != 1:
        return "the answer holds no figure" if not figures else f"the answer holds {len(figures)} figures, not one"
    (figure,) = figures
    beside = words_of(pair.answer[: figure.start] + " " + pair.answer[figure.end :])
    if len(beside) > _MOST_WORDS:
        return f"the answer has {len(beside)} words beside its figure, more than {_MOST_WORDS}"
    return None


def check_figure_derived(pair: Pair, context: Looked) -> str | None:
    """The derivation, if there is one, is made of figures that the passage prints, and gives the answer as rounded."""
    text = _derivation(pair)
    if not text:
        return None
    printed = Printed.of(_source(context))
    answers = printed.parse(pair.answer)
    try:
        readings = Derivation.readings(text, decimal_comma=printed.decimal_comma)
    except DerivationError as error:
        return f"the derivation cannot be evaluated: {error}"
    for operand in readings[0].operands:
        if not (printed.gives(operand) or printed.gives(operand.negated)):
            return f"the passage does not print the derivation's figure {operand}"
    if not readings[0].operands:
        return "the derivation holds no figure of the passage"
    if len(answers) != 1:
        return None  # another check says so
    falls = _FALL.search(f"{pair.question} {pair.answer}") is not None
    signs = (answers[0], answers[0].negated) if falls else answers
    if not any(reading.gives(answer, printed.powers) for reading in readings for answer in signs):
        return f"the derivation gives {_rounded(readings[0])}, not {pair.answer}"
    return None


@dataclass(frozen=True)
class FigureQuestion(QuestionForm):
    """A question whose answer is a figure with its unit.

    A pair carries a `derivation`: arithmetic over figures that its passage prints, or nothing if the passage prints the
    answer itself. The target learns the answer and then the derivation; the answer is compared by value and unit. A row
    of a question file has `answer`, optionally `scale` and a `derivation`.

    Attributes:
        derived: Share of the questions whose answer is calculated.
    """

    label: ClassVar[str] = "figures"
    in_rubric: ClassVar[str] = "a question whose answer is one figure with its unit"
    columns: ClassVar[tuple[str, ...]] = ("derivation",)
    free_length: ClassVar[bool] = False
    demos: ClassVar[tuple[Demo, ...]] = _FIGURE_DEMOS
    checks: ClassVar[Mapping[str, FormCheck]] = {
        "figure_well_formed": check_figure_well_formed,
        "figure_derived": check_figure_derived,
    }
    derived: float = 0.5

    def fitted(self, questions: Sequence[Question]) -> FigureQuestion:
        """With the questions' share of calculated answers."""
        own = [question for question in questions if question.kind == "figure"]
        return FigureQuestion(round(sum(bool(_derivation(q)) for q in own) / len(own), 4)) if own else self

    def read_row(self, values: Mapping[str, Any]) -> Gold:
        """Reads `answer` with its `scale` as one figure, and `derivation`, which has to give it."""
        gold = super().read_row(values)
        figures = parse(gold.answer)
        if len(figures) != 1:
            raise DataError(
                f"answer {gold.answer!r:.80} holds {len(figures) or 'no'} figures; a question of the form `figure` has "
                "one"
            )
        derivation = _cleaned(written(values.get("derivation")))
        if derivation:
            problem = _contradiction(derivation, gold.answer)
            if problem is not None:
                raise DataError(f"its derivation {problem}; mend it or leave it empty")
        return Gold(gold.answer, gold.answers, details={"derivation": derivation} if derivation else {})

    def task(self) -> str:
        """Question, calculation and figure."""
        return (
            "From each passage: a quoted sentence, an exam question about it whose answer is a figure, the calculation "
            "if the passage does not print that figure, and the figure with its unit."
        )

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """Question, derivation and answer; calculated in the share of the questions."""
        derived = random.Random(derive_seed(seed, "derived")).random() < self.derived
        clear = "clear to a reader who has not seen the passage"
        if derived:
            question = f"a question whose answer is calculated from figures of the passage, {clear}"
            derivation = (
                "the calculation: figures as the passage prints them, with + - * / and brackets only, such as "
                '"(250 - 200) / 250 * 100"'
            )
        else:
            question = f"a question whose answer is one figure that the passage prints, {clear}"
            derivation = "leave this empty, since the passage prints the answer"
        return (
            Key("question", question),
            Key("derivation", derivation, needed=False),
            Key(
                "answer", "the figure with its scale and unit and nothing else, such as $12.5 million, 20% or 76 years"
            ),
        )

    def demonstration(self, demo: Demo) -> dict[str, str]:
        """The example with its calculation, if it has one."""
        return {"question": demo.question, "derivation": _DERIVATIONS.get(demo.question, ""), "answer": demo.answer}

    def mended(self, values: dict[str, Any]) -> dict[str, Any]:
        """Accepts other names of the calculation."""
        for other in _OTHER_NAMES:
            if other in values:
                values.setdefault("derivation", values[other])
        return values

    def content(self, reply: Mapping[str, str], seed: int) -> Content:
        """The pair, with the derivation if there is one."""
        derivation = _cleaned(reply.get("derivation", ""))
        return Content(reply["question"], reply["answer"], details={"derivation": derivation} if derivation else {})

    def is_derived(self, pair: Pair) -> bool:
        """Whether it has a derivation, which `figure_derived` checks."""
        return bool(_derivation(pair))

    def answer(self, item: Question | Pair) -> str:
        """The figure and, if it is calculated, how."""
        derivation = _derivation(item)
        return f"{item.answer} = {derivation}" if derivation else item.answer

    def marks(self, question: Question, heard: Heard) -> Marks:
        """The figure counts, with its unit and within the tolerance; `right_number` is one in any unit."""
        said = heard.text.partition(" = ")[0].strip()
        accepted = question.answers or (question.answer,)
        right = [_right(said, gold, heard.tolerance) for gold in accepted]
        return Marks(
            said,
            any(in_unit for in_unit, _ in right),
            exact_match=exact_match(said, accepted, tolerance=heard.tolerance),
            token_f1=token_f1(said, accepted, tolerance=heard.tolerance),
            further={"right_number": float(any(number for _, number in right))},
        )


def _right(said: str, gold: str, tolerance: float) -> tuple[bool, bool]:
    """Whether a text gives the gold figure and no other of its unit, and whether it gives its number in any unit."""
    comma = decimal_comma(said, gold)
    figures, wanted = parse(said, decimal_comma=comma), parse(gold, decimal_comma=comma)
    if not wanted:
        return False, False
    of_unit = [figure for figure in figures if figure.unit == wanted[0].unit]
    bare = Figure(wanted[0].value)
    numbers = [same(Figure(figure.value), bare, tolerance) or figure.amount == wanted[0].amount for figure in figures]
    in_unit = bool(of_unit) and all(same(figure, wanted[0], tolerance) for figure in of_unit)
    return in_unit, in_unit or any(numbers)


def _contradiction(derivation: str, answer: str) -> str | None:
    """Why a derivation does not give an answer, or None."""
    try:
        readings = Derivation.readings(derivation)
    except DerivationError as error:
        return f"cannot be evaluated ({error})"
    (figure,) = parse(answer)
    powers = frozenset((3, 6, 9))
    if any(reading.gives(sign, powers) for reading in readings for sign in (figure, figure.negated)):
        return None
    return f"{derivation!r:.80} gives {_rounded(readings[0])}, not {answer}"


def _rounded(derivation: Derivation) -> str:
    value = float(derivation.value) * (100 if derivation.in_percent else 1)
    return f"{value:,.6g}{' %' if derivation.in_percent else ''}"


def _cleaned(text: str) -> str:
    """A derivation without its result, as in `12 - 5 = 7`; "" for the words of models that say there is none."""
    sides = [side.strip() for side in text.split("=")]
    longest = max(sides, key=lambda side: len(_OPERATOR.findall(side)))
    if longest.casefold().strip(" .") in _NONE or not _OPERATOR.search(longest):
        return ""
    return " ".join(longest.split())


def _derivation(item: Question | Pair) -> str:
    return str(item.details.get("derivation", "")).strip()


def _source(context: Looked) -> str:
    return f"{context.passage.title}\n{context.passage.text}"
