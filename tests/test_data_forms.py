"""The forms of question that come with optimsyn, and the records that name them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from programs_helpers import RUBRIC, Scripted, pair, passage

from optimsyn.base.errors import DataError, ReplyError
from optimsyn.base.extensions import FORMS
from optimsyn.data.chat import sample_of, split_context
from optimsyn.data.demonstrations import DEMOS
from optimsyn.data.forms import Heard, form_named, identity_of
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
    with pytest.raises(ValueError, match="names none of its choices"):
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
