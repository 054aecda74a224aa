"""The forms of question that come with optimsyn, and the records that name them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from programs_helpers import RUBRIC, Scripted, pair, passage

from optimsyn.base.errors import DataError, ReplyError
from optimsyn.base.extensions import FORMS
from optimsyn.data.chat import sample_of, split_context
from optimsyn.data.demonstrations import DEMOS
from optimsyn.data.forms import Heard, form_named, identity_of
from optimsyn.data.forms.figure import FigureQuestion
from optimsyn.data.forms.true_false import TrueFalse
from optimsyn.data.records import Pair, Question
from optimsyn.programs.pair import PairWriter, TaskShape
from optimsyn.programs.pair_reader import read_pair
from optimsyn.programs.prompts.pair_prompts import open_schema
from optimsyn.reward.judgements import content_key

STATEMENT = "The library of Harlow moved in 1931."


def statement(**fields: Any) -> Question:
    values = {"id": "q", "question": STATEMENT, "answer": "true", "form": "true_false"} | fields
    return Question.model_validate(values)


@pytest.mark.parametrize("name", list(FORMS.built_in))
def test_every_form_shows_what_it_asks_for(name: str) -> None:
    form = form_named(name)
    names = [key.name for key in form.reply_keys(3)]
    assert {"question", "answer"} <= set(names)
    for demo in DEMOS:
        shown = form.demonstration(demo)
        assert list(shown) == names
        assert read_pair(json.dumps({"quote": demo.quote, **shown}), form)["question"] == shown["question"]
    assert list(open_schema(form)["properties"]) == ["quote", *names]
    assert form.label
    assert form.task().startswith("From each passage: a quoted sentence, ")
    assert identity_of(name, form) == identity_of(name, type(form)())


@pytest.mark.parametrize(
    ("values", "answer", "details"),
    [
        ({"answer": True}, "true", {}),
        ({"answer": "No.", "reason": " It moved. "}, "false", {"reason": "It moved."}),
        ({"answer": ["False"], "reason": ""}, "false", {}),
        ({"answer": 1}, "true", {}),
    ],
)
def test_rows_of_true_and_false(values: dict[str, Any], answer: str, details: dict[str, Any]) -> None:
    gold = form_named("true_false").read_row(values)
    assert (gold.answer, gold.details) == (answer, details)


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({"answer": "1,452.4", "scale": "million"}, "1,452.4 million"),
        ({"answer": 1452.4, "scale": "thousands"}, "1452.4 thousand"),
        ({"answer": "$(12.6)", "scale": "billion"}, "$(12.6) billion"),
        ({"answer": "12.6 euros", "scale": "million"}, "12.6 million euros"),
        ({"answer": 26.72, "scale": "percent"}, "26.72%"),
        ({"answer": "26.72 %", "scale": "percent"}, "26.72 %"),
        ({"answer": "$5 million", "scale": "million"}, "$5 million"),
        ({"answer": "5", "scale": ""}, "5"),
        ({"answer": "5", "scale": None}, "5"),
        ({"answer": "the cost of sales", "scale": "million"}, "the cost of sales"),
    ],
)
def test_a_scale_is_written_out(values: dict[str, Any], answer: str) -> None:
    for name in ("free", "figure") if any(map(str.isdigit, answer)) else ("free",):
        assert form_named(name).read_row(values).answer == answer


@pytest.mark.parametrize(
    ("answer", "scale", "written"),
    [
        ("1.2 and 1.4", "million", "1.2 million and 1.4 million"),
        ("$1.2 and 1.4 million", "million", "$1.2 and 1.4 million"),
        ("from 3.5 in 2018 to 4.2 in 2019", "percent", "from 3.5% in 2018 to 4.2% in 2019"),
        ("12.5 in two segments over 18 months", "million", "12.5 million in two segments over 18 months"),
    ],
)
def test_a_scale_is_written_behind_each_amount_of_an_answer(answer: str, scale: str, written: str) -> None:
    assert form_named("free").read_row({"answer": answer, "scale": scale}).answer == written


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"answer": "5", "scale": "milion"},
            "`scale` is 'milion', which is no scale of figures; did you mean `million`",
        ),
        ({"answer": "5 billion", "scale": "million"}, "says another scale than `scale`, 'million'"),
        ({"answer": "$5", "scale": "percent"}, "says another scale"),
        ({"spans": ["", None]}, "`spans` has no text"),
        ({"spans": "2019"}, "`spans` is text, it must be a list"),
    ],
)
def test_a_scale_or_spans_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        form_named("free").read_row(values)


@pytest.mark.parametrize(
    "values",
    [
        {"spans": ["2019", "2018"]},
        {"spans": '["2019", "2018"]'},
        {"answer": ["2019", "2018"], "answer_type": "multi-span", "scale": ""},
    ],
)
def test_all_spans_of_an_answer_count(values: dict[str, Any]) -> None:
    form = form_named("free")
    gold = form.read_row(values)
    assert (gold.answer, gold.details) == ("2019; 2018", {"spans": ["2019", "2018"]})
    asked = Question(id="q", question="Which years?", answer=gold.answer, details=gold.details)
    both = form.marks(asked, Heard("2018 and 2019", (-1.0,)))
    one = form.marks(asked, Heard("2019", (-1.0,)))
    assert (both.correct, both.exact_match, both.token_f1) == (True, True, 1.0)
    assert (one.correct, one.exact_match, one.token_f1) == (False, False, pytest.approx(2 / 3))


def test_a_list_of_answers_is_still_a_list_of_alternatives() -> None:
    gold = form_named("free").read_row({"answer": ["2019", "in 2019"], "answer_type": "span"})
    assert (gold.answer, gold.answers, gold.details) == ("2019", ("2019", "in 2019"), {})
    scaled = form_named("free").read_row({"answer": ["5", "6"], "scale": "million", "answer_type": "multi-span"})
    assert scaled.details == {"spans": ["5 million", "6 million"]}


def figure(**fields: Any) -> Question:
    asked = "By what percentage did sales rise?"
    return Question.model_validate({"id": "q", "question": asked, "answer": "26.7%", "form": "figure"} | fields)


@pytest.mark.parametrize(
    ("heard", "tolerance", "correct", "number"),
    [
        ("26.7 %", 0.0, True, 1.0),
        ("26.7% = (1452.4 - 1146.2) / 1146.2", 0.0, True, 1.0),
        ("Sales rose by 26.70 percent.", 0.0, True, 1.0),
        ("26.7", 0.0, False, 1.0),
        ("26.7% or 27.6%", 0.0, False, 1.0),
        ("27%", 0.0, False, 0.0),
        ("27%", 0.02, True, 1.0),
        ("-26.7%", 0.5, False, 0.0),
        ("by a lot", 0.0, False, 0.0),
    ],
)
def test_a_figure_is_marked_by_value_and_unit(heard: str, tolerance: float, correct: bool, number: float) -> None:
    marks = form_named("figure").marks(figure(), Heard(heard, (-1.0,), tolerance))
    assert (marks.correct, marks.further) == (correct, {"right_number": number})


def test_the_target_learns_the_figure_and_how_it_is_calculated() -> None:
    derivation = "(1,452.4 - 1,146.2) / 1,146.2 * 100"
    assert sample_of(figure()).completion == " 26.7%"
    assert sample_of(figure(details={"derivation": derivation})).completion == f" 26.7% = {derivation}"
    row = {"answer": "26.7", "scale": "percent", "derivation": derivation}
    assert form_named("figure").read_row(row).details == {"derivation": derivation}
    for wrong, message in (
        ({**row, "answer": "27.6"}, "gives 26.7144, not 27.6%; mend it or leave it empty"),
        ({**row, "derivation": "1,452.4 - 1,146.2 ** 2"}, "cannot be evaluated"),
        ({"answer": "a lot"}, "holds no figures"),
        ({"answer": "5 of 7"}, "holds 2 figures"),
        ({"spans": ["5", "7"]}, "holds 2 figures"),
    ):
        with pytest.raises(DataError, match=re.escape(message)):
            form_named("figure").read_row(wrong)


async def test_a_figure_is_written_and_kept() -> None:
    reply = {"question": "By how much did sales rise?", "calculation": "1,452.4 - 1,146.2 = 306.2", "answer": "306.2"}
    model = Scripted(json.dumps(reply))
    written = await PairWriter(model, TaskShape.only("figure")).awrite(passage(), RUBRIC, seed=1, variant="v")
    assert (written.kind, written.answer, written.details) == ("figure", "306.2", {"derivation": "1,452.4 - 1,146.2"})
    for none in ("", "none", "N/A", "76"):
        content = FigureQuestion().content({"question": "q", "answer": "76", "derivation": none}, 0)
        assert content.details == {}


def test_calculated_figures_are_asked_for_in_their_share() -> None:
    questions = [figure(id=f"q{i}", details={"derivation": "1 + 2"} if i % 4 else {}) for i in range(8)]
    form = form_named("figure").fitted(questions)
    assert form == FigureQuestion(0.75)
    asked = [form.reply_keys(seed)[0].asks for seed in range(200)]
    assert 120 < sum("calculated" in text for text in asked) < 180


@pytest.mark.parametrize("values", [{}, {"answer": "perhaps"}, {"answer": ["true", "false"]}])
def test_rows_without_a_verdict_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        form_named("true_false").read_row(values)


def test_the_target_learns_verdict_and_reason() -> None:
    sample = sample_of(
        statement(question=f"True or false? {STATEMENT}", details={"reason": "It did."}, context="Text.")
    )
    assert sample.prompt == f"Passage: Text.\nQuestion: True or false? {STATEMENT}\nAnswer:"
    assert sample.completion == " true. It did."
    assert split_context(sample.prompt)[0] == "Passage: Text.\n"
    assert sample_of(statement()).completion == " true"


def test_the_likelier_verdict_counts() -> None:
    form = form_named("true_false")
    assert form.candidates(statement()) == (None, "true", "false")
    right = form.marks(statement(), Heard("", (-9.0, -1.0, -2.0)))
    wrong = form.marks(statement(), Heard("", (-1.0, -3.0, -2.0)))
    assert (right.prediction, right.correct, right.loss_of) == ("true", True, 0)
    assert (wrong.prediction, wrong.correct) == ("false", False)


async def test_a_statement_is_written_and_kept() -> None:
    reply = {"statement": f"True or false: {STATEMENT}", "verdict": True, "explanation": "It moved in 1931."}
    model = Scripted(json.dumps(reply))
    written = await PairWriter(model, TaskShape.only("true_false")).awrite(passage(), RUBRIC, seed=1, variant="v")
    assert (written.question, written.answer, written.details) == (STATEMENT, "true", {"reason": "It moved in 1931."})
    assert written.kind == "true_false"
    assert Pair.model_validate_json(written.model_dump_json()) == written
    with pytest.raises(ReplyError, match="lacks `reason`"):
        read_pair(json.dumps({"question": "x", "answer": "true"}), TrueFalse())
    with pytest.raises(ReplyError, match="none of true, false"):
        read_pair(json.dumps({"question": "x", "answer": "perhaps", "reason": "y"}), TrueFalse())


def test_the_verdicts_that_are_asked_for_are_balanced() -> None:
    asked = [TrueFalse().reply_keys(seed)[0].asks for seed in range(200)]
    assert 70 < sum("that is true" in text for text in asked) < 130


def test_records_of_the_old_forms_are_written_as_ever_and_read_back() -> None:
    free = Question(id="q", question="Who?", answer="Ann")
    choice = pair(choices=("1904", "1931"), answer_index=1)
    for record in (free, choice):
        assert not {"form", "details"} & set(json.loads(record.model_dump_json()))
        assert type(record).model_validate_json(record.model_dump_json()) == record
    assert (free.kind, choice.kind, statement().kind) == ("free", "multiple_choice", "true_false")
    with pytest.raises(DataError, match="names none of its choices"):
        Question(id="q", question="Who?", answer="Ann", choices=("Ann", "Bo"))


def test_two_reasons_are_two_contents() -> None:
    of_form = {"form": "true_false", "question": STATEMENT, "answer": "true"}
    one, other = (pair(**of_form, details={"reason": text}) for text in ("It moved.", "It did."))
    assert content_key(one) != content_key(other)


def test_shapes_of_several_forms() -> None:
    free = [Question(id=f"f{i}", question="Who?", answer="a b") for i in range(2)]
    shape = TaskShape.of([*free, *(statement(id=f"s{i}", details={"reason": "one two three"}) for i in range(6))])
    assert [(each.name, each.share) for each in shape.forms] == [("true_false", 0.75), ("free", 0.25)]
    assert shape.form("true_false") == TrueFalse(3)
    drawn = [shape.kind_for(seed) for seed in range(400)]
    assert 260 < drawn.count("true_false") < 340
