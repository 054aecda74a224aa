"""Each validity check against pairs that it must refuse and pairs that it must let pass."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from programs_helpers import TEXT, pair, passage
from test_forms_with_lines import BAD as BAD_OF_FORMS

import optimsyn
from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import REGISTRIES
from optimsyn.data.demonstrations import DEMOS
from optimsyn.data.records import Pair, Passage, Question
from optimsyn.programs.checker import Checker
from optimsyn.programs.checks import BUILT_IN, CheckContext
from optimsyn.recipe.sections.synthesis import Checks

CHOICES = {"choices": ("1904", "1931", "1940", "1950"), "answer_index": 1}
YES_NO = {"choices": ("yes", "no", "maybe"), "answer_index": 0, "answer": "yes"}

VERDICT = {
    "form": "true_false",
    "question": "The library of Harlow moved to a larger building in 1931.",
    "answer": "true",
    "details": {"reason": "The library moved to a larger building in 1931."},
}
FIGURE = {
    "form": "figure",
    "question": "How many years after it had opened did the library of Harlow move to a larger building?",
    "answer": "27 years",
    "details": {"derivation": "1931 - 1904"},
}
BAD: list[tuple[str, dict[str, Any]]] = [
    ("format", {"answer": "..."}),
    ("format", {"question": "When did the library move"}),
    ("format", {"question": "When did the library move to the?"}),
    ("format", {"question": "When did the library move,?"}),
    ("format", {"question": 'When did {"answer": "x"} move?'}),
    ("format", {"question": "When\ndid the library move?"}),
    ("format", {"answer": "the canal the canal the canal the canal"}),
    ("format", {"question": "When did did did the library move?"}),
    ("length", {"question": "Why?"}),
    ("length", {"question": "Why did " + "the old and large library " * 20 + "move?"}),
    ("length", {"answer": "library " + " ".join(str(i) for i in range(120))}),
    ("copied_passage", {"question": "The town council of Harlow opened its first lending library?"}),
    ("copied_passage", {"answer": TEXT}),
    ("answered_by_itself", {"question": "Who was Miss Edith Crane of Harlow?", "answer": "Edith Crane"}),
    ("answered_by_itself", {"question": "What are the mills of Harlow called?", "answer": "mill"}),
    ("mentions_document", {"question": "According to the passage, when did the library move?"}),
    ("mentions_document", {"question": "What does the author say about the library?"}),
    ("mentions_document", {"question": "When, in this short text, does the library move?"}),
    ("whole_question", {"question": "What were out of 600 books 12.5%?", "answer": "letters"}),
    ("whole_answer", {"answer": "beside the canal (which"}),
    ("whole_answer", {"answer": "The passage does not say."}),
    ("stands_alone", {"question": "When was it opened?", "answer": "1904"}),
    ("choices_well_formed", {**CHOICES, "choices": ("1904", "1931", "1904", "1950")}),
    ("choices_well_formed", {**CHOICES, "answer_index": 0}),
    ("choices_well_formed", {**CHOICES, "answer_index": None}),
    ("choices_well_formed", {**CHOICES, "choices": ("1904", "1931", "all of these")}),
    ("choices_well_formed", {"choices": ("1931",), "answer_index": 0}),
    ("statement_well_formed", {**VERDICT, "question": "Where did the library of Harlow move in 1931?"}),
    ("statement_well_formed", {**VERDICT, "question": "True or false? Did the library move in 1931?"}),
    ("reason_well_formed", {**VERDICT, "details": {}}),
    ("reason_well_formed", {**VERDICT, "details": {"reason": "It is true."}}),
    ("reason_well_formed", {**VERDICT, "details": {"reason": "The library moved in 1931. It lends books."}}),
    ("reason_well_formed", {**VERDICT, "details": {"reason": "The library moved in 1931 " + "to the canal " * 20}}),
    ("reason_grounded", {**VERDICT, "details": {"reason": "It moved in 1932."}}),
    ("reason_grounded", {**VERDICT, "details": {"reason": "Emperor Hadrian wanted cathedrals."}}),
    ("unsafe", {**VERDICT, "details": {"reason": "The library of doom moved in 1931."}}),
    ("figure_well_formed", {**FIGURE, "answer": "between 27 and 36 years"}),
    ("figure_well_formed", {**FIGURE, "answer": "long"}),
    ("figure_well_formed", {**FIGURE, "answer": "27 years of quiet work for all the people of the town"}),
    ("figure_derived", {**FIGURE, "answer": "28 years"}),
    ("figure_derived", {**FIGURE, "details": {"derivation": "1931 - 1904.5"}}),
    ("figure_derived", {**FIGURE, "details": {"derivation": "9 * 3"}}),
    ("figure_derived", {**FIGURE, "details": {"derivation": "1931 minus 1904"}}),
    ("grounded", {**FIGURE, "details": {}}),
    ("grounded", {"answer": "in 19.31"}),
    ("grounded", {"answer": "-1931"}),
    ("grounded", {"answer": "31"}),
    ("grounded", {"answer": "1932"}),
    ("grounded", {"answer": "beside the cathedral of Bristol"}),
    ("grounded", {"question": "When did the Roman emperor die?"}),
    ("grounded", {"question": "Who worked in the mills of Harlow?", "answer": "Maybe most readers"}),
    ("grounded", {"question": "Where did the library move?", "answer": "Yes: beside the canal"}),
    ("grounded", {"question": "When did the library get 77 computers?"}),
    ("grounded", {"quote": "Nothing of this sort was ever written down anywhere."}),
    # Words of the passage in another order are no quote of it.
    ("grounded", {"quote": "In 1904 the reading room moved beside the mill owners."}),
    ("grounded", {"quote": "In 1931, the library moved … after a great fire in the reading room."}),
    ("grounded", {**YES_NO, "question": "Does aspirin prevent strokes in adults?"}),
    ("answer_fits_question", {"answer": "canal"}),
    ("answer_fits_question", {"question": "How many books did Edith Crane give?", "answer": "reading room"}),
    ("answer_fits_question", {"question": "Who gave books to the library?", "answer": "1904"}),
    ("answer_fits_question", {"question": "Where is the library of Harlow?", "answer": "yes"}),
    ("demo_copy", {"question": DEMOS[0].question, "answer": DEMOS[0].answer}),
    ("demo_copy", {"question": "Which barn swallow build moved to the library?"}),
    ("near_duplicate_question", {"question": "when was the first lending library of Harlow opened ?"}),
    ("unsafe", {"question": "When did the Library of doom move to a larger building?"}),
]
GOOD: list[dict[str, Any]] = [
    VERDICT,
    {**VERDICT, "question": f"True or false? {VERDICT['question']}"},
    {**VERDICT, "details": {"reason": "In 1931, it moved to a larger building beside the canal."}},
    {
        **VERDICT,
        "question": "The library of Harlow moved in 1904.",
        "answer": "false",
        "details": {"reason": "It opened in 1904 and moved in 1931."},
    },
    {},
    FIGURE,
    {**FIGURE, "details": {"derivation": "(1931 - 1904) * 1"}},
    {**FIGURE, "question": "How many books did Edith Crane give to the library?", "answer": "600", "details": {}},
    {"question": "How many books does the library of Harlow lend in a year?", "answer": "45000 books"},
    {"question": "How many books does the library of Harlow lend in a year?", "answer": "about 45 thousand"},
    {"question": "Until which hour did the reading room stay open?", "answer": "9"},
    CHOICES,
    {**YES_NO, "question": "Did the library of Harlow move in 1931?"},
    {"question": "How many books did Edith Crane give to the library?", "answer": "600"},
    {"question": "What does the library of Harlow keep?", "answer": "the letters of the mill owners"},
    {"question": "Which building did the library move to?", "answer": "a larger building beside the canal"},
    {"question": "What did the town council open?", "answer": "its first lending library"},
    {"question": "Why did the reading room stay open until nine?", "answer": "most readers worked in the mills"},
    {"question": "Until when did the reading room stay open?", "answer": "nine in the evening", "quote": ""},
    # Words that only say what is asked for, and the verdict before its ground, need not be the passage's.
    {"question": "Which exact words describe the move of the library?", "answer": "moved to a larger building"},
    {"question": "Did the readers of Harlow work?", "answer": "Yes: in the mills"},
    # As services quote: other signs, a stretch left out, a slip.
    {"quote": "\u201cin 1931 the library moved to a larger building, beside the canal\u201d"},
    {"quote": "In 1931, the library ... beside the canal."},
    {"quote": "In 1931 the library moved to a large building beside the canal."},
]


def _held() -> list[Question]:
    return [Question(id="v1", question="When was the first lending library of Harlow opened?", answer="1904")]


@pytest.mark.parametrize(("name", "fields"), BAD, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BAD)])
def test_refuses(name: str, fields: dict[str, Any]) -> None:
    verdict = Checker(Checks(unsafe_words=("library of doom",)), _held()).check(pair(**fields), passage())
    assert not verdict.valid
    assert name in verdict.failed
    assert verdict.reasons[name]


@pytest.mark.parametrize("fields", GOOD)
def test_lets_pass(fields: dict[str, Any]) -> None:
    verdict = Checker(Checks(unsafe_words=("doom",)), _held()).check(pair(**fields), passage())
    assert verdict.valid, verdict.reasons


def test_every_check_is_tried_here() -> None:
    elsewhere = {check for _, _, check in BAD_OF_FORMS}
    assert {name for name, _ in BAD} == set(BUILT_IN) - (elsewhere - {name for name, _ in BAD})
    assert all(check.__doc__ for check in BUILT_IN.values())


def test_a_word_of_the_subject_is_no_mention_of_the_source() -> None:
    text = "This document shall be governed by the laws of Nevada, and the document ends in 2031."
    asked = pair(question="When does the document governed by Nevada law end?", answer="2031", quote="")
    assert Checker(Checks()).check(asked, passage(text)).valid


def test_duplicates_of_open_book_questions_are_told_apart_by_document() -> None:
    stock = "Which law governs this library agreement of Harlow?"
    held = [Question(id="v1", question=stock, answer="Nevada", context="c", document_id="other")]
    asked = pair(question=stock, context=TEXT)
    assert "near_duplicate_question" not in Checker(Checks(), held).check(asked, passage()).failed
    same = [held[0].model_copy(update={"document_id": "d1"})]
    assert "near_duplicate_question" in Checker(Checks(), same).check(asked, passage()).failed
    closed = [held[0].model_copy(update={"context": None})]
    assert "near_duplicate_question" in Checker(Checks(), closed).check(asked, passage()).failed


def never(pair: Pair, context: CheckContext) -> str | None:
    """A plugin."""
    return f"not today, {context.passage.id}"


def test_disabled_checks_and_plugins() -> None:
    assert Checker(Checks(disabled=("grounded",))).check(pair(answer="1932"), passage()).valid
    verdict = Checker(Checks(plugins=(f"{__name__}:never",))).check(pair(), passage())
    assert verdict.failed == (f"{__name__}:never",)
    assert "not today, p1" in verdict.reasons.values()
    for wrong, reason in [
        ("nothing", "checks.plugins: there is no check 'nothing'"),
        ("unsaved", "did you mean `unsafe`"),
        ("grounded", "is a built-in check, which runs by itself"),
        ("no_such_module:x", "cannot be imported"),
        (f"{__name__}:absent", "has no absent"),
        ("sys:path", "not a function of a pair"),
    ]:
        with pytest.raises(RecipeError, match=reason):
            Checker(Checks(plugins=(wrong,)))
    with pytest.raises(RecipeError, match="no check 'grounds'"):
        Checker(Checks(disabled=("grounds",)))


def test_checks_import_without_dspy() -> None:
    code = "import sys, optimsyn.programs.checks; print('dspy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda pair, context: True, "the check spare returned True for pair .*returns None where the pair passes"),
        (lambda pair, context: "", "the check spare returned '' for pair"),
        (lambda pair, context: pair.no_such_field, "the check spare raised AttributeError: .*no_such_field.*run again"),
    ],
)
def test_a_custom_check_that_is_wrong_is_named_and_refuses_no_pair(part: object, message: str) -> None:
    optimsyn.register("check", part, name="spare")
    try:
        with pytest.raises(RecipeError, match=message):
            Checker(Checks(plugins=("spare",))).check(pair(), passage())
    finally:
        REGISTRIES["check"].forget("spare")


def test_an_answer_that_compares_two_printed_figures_may_say_which_is_larger() -> None:
    text = "The mill at Ostby ground 79 tonnes of rye in 2017 and 71 tonnes in 2013."
    source = Passage(id="p", document_id="d", text=text, char_start=0, char_end=len(text))
    question = "How did the rye that the mill at Ostby ground in 2017 compare with that in 2013?"

    def failed(answer: str) -> bool:
        item = Pair(id="x", passage_id="p", question=question, answer=answer)
        return "grounded" in Checker(Checks()).check(item, source).reasons

    assert not failed("It was higher: 79 tonnes in 2017, 71 tonnes in 2013.")
    assert failed("It was higher: 79 tonnes in 2017, 61 tonnes in 2013.")
    assert failed("higher")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How long is the term?", "five years"),
        ("What was the sentence?", "five years"),
        ("What is the term?", "five years"),
    ],
)
def test_a_word_that_asks_can_be_the_subject(question: str, answer: str) -> None:
    text = "The term is five years. The sentence was five years as well."
    source = Passage(id="p", document_id="d", text=text, char_start=0, char_end=len(text))
    item = Pair(id="x", passage_id="p", question=question, answer=answer, context=text)
    assert "grounded" not in Checker(Checks()).check(item, source).reasons


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("2.0 | 2.0", False),
        ("| | December 31, 2019", False),
        ("Fiscal | | | 2019 | 2018 |", False),
        ("1,452.4", True),
        ("Fixed Price", True),
        ("P(A | B)", True),
        ("|x|", True),
    ],
)
def test_a_piece_of_a_table_is_no_answer(answer: str, right: bool) -> None:
    rows = ("|  | 2019 | 2018 |", "| Fixed Price | 1,452.4 | 1,146.2 |", "| Rate P(A | B) for |x| | 2.0 | 2.0 |")
    table = "\n".join(("Sales by type:", *rows))
    report = Passage(id="t#0", document_id="t", text=table, char_start=0, char_end=len(table))
    asked = pair(question="What were the sales by type?", answer=answer, passage_id="t#0")
    failed = Checker(Checks(), []).check(asked, report).reasons.get("whole_answer", "")
    assert ("borders of a table" in failed) is not right
    # Elsewhere a bar is a command or a formula.
    pipe = Passage(id="t#1", document_id="t", text="Use ls | wc -l to count files.", char_start=0, char_end=30)
    asked = pair(question="How are files counted?", answer="ls | wc -l", passage_id="t#1")
    assert "borders" not in Checker(Checks(), []).check(asked, pipe).reasons.get("whole_answer", "")
