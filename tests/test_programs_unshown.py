"""Without the form of the exam (`questions.show_form: false`) a pair has the form that its rubric asks for."""

from __future__ import annotations

import asyncio
import json

import pytest
from programs_helpers import RUBRIC, Scripted, passage

from optimsyn.data.forms.unshown import Unshown
from optimsyn.data.records import Question
from optimsyn.llm.language_model import Call
from optimsyn.programs.checker import Checker
from optimsyn.programs.pair import PairWriter
from optimsyn.programs.prompts.pair_prompts import writer_knows
from optimsyn.programs.rubric import RubricWriter
from optimsyn.programs.task_shape import TaskShape
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.synthesis import Checks

VERDICTS = ("permitted", "forbidden", "undecided")
EXAM = [
    Question(id=f"q{i}", question=f"Is act {i} lawful?", answer=VERDICTS[i % 3], choices=VERDICTS, answer_index=i % 3)
    for i in range(9)
]


@pytest.mark.parametrize(
    ("asked", "name", "options"),
    [
        ("the year in which a town was founded", "free", None),
        ("multiple choice, four options", "multiple_choice", 4),
        ("a multiple-choice question about a cause", "multiple_choice", 4),
        ("one right answer and five options", "multiple_choice", 5),
        ("3 answer choices, one of them right", "multiple_choice", 3),
        ("with tempting distractors", "multiple_choice", 4),
        ("a yes or no question", "multiple_choice", ("yes", "no")),
        ("the answer is yes, no or maybe", "multiple_choice", ("yes", "no", "maybe")),
        ("a yes/no decision", "multiple_choice", ("yes", "no")),
        ("a statement that is true or false", "true_false", None),
        ("which treatment options a doctor has", "free", None),
        ("knows the answer, not whether", "free", None),
    ],
)
def test_the_rubric_says_the_form(asked: str, name: str, options: int | tuple[str, ...] | None) -> None:
    found, form = Unshown().under(RUBRIC.model_copy(update={"question_type": asked}))
    assert found == name
    if isinstance(options, int):
        assert (getattr(form, "options", None), getattr(form, "fixed", None)) == (options, ())
    elif options is not None:
        assert getattr(form, "fixed", None) == options
    assert Unshown().under(None)[0] == "free"


def test_no_prompt_tells_the_form_of_the_exam() -> None:
    shown, hidden = TaskShape.of(EXAM), TaskShape.of(EXAM, show_form=False)
    assert shown.identity != hidden.identity
    assert {hidden.kind_for(seed) for seed in range(50)} == {"free"}

    def prompts(shape: TaskShape, chat: bool, writer: bool) -> str:
        models = [Scripted(reply, chat=chat, writer=writer) for reply in ("garbage", "garbage")]
        rubrics, pairs = RubricWriter(models[0], "Ask what counts.", shape), PairWriter(models[1], shape)
        for rubric in (RUBRIC, None):
            kind = shape.kind_for(3)
            for program in (
                rubrics.aforward(passage=passage(), kind=kind, seed=3),
                pairs.awrite(passage(), rubric, seed=3, variant="t"),
            ):
                with pytest.raises(Exception, match="reply"):
                    asyncio.run(program)
        calls = [call for model in models for call in model.calls]
        return json.dumps([[list(call.messages), call.schema] for call in calls])

    for chat, writer in ((True, False), (False, False), (False, True)):
        assert "forbidden" in prompts(shown, chat, writer)
        told = prompts(hidden, chat, writer)
        assert not any(word in told for word in ("forbidden", "Form of the question", "Form:", "wrong_1", "words)"))


def test_a_pair_of_another_form_than_the_exam_is_valid() -> None:
    def answer(call: Call) -> str:
        pair = {"quote": "", "question": "When was the town of Harlow founded?", "answer": "1869"}
        return json.dumps(pair | {f"wrong_{i}": str(1860 + i) for i in (1, 2, 3)})

    writer = PairWriter(Scripted(answer), TaskShape.of(EXAM, show_form=False))
    choice = RUBRIC.model_copy(update={"question_type": "multiple choice, four options"})
    text = passage("The town of Harlow was founded in 1869 by two brothers.")
    of_choice = asyncio.run(writer.awrite(text, choice, seed=1, variant="t"))
    plain = asyncio.run(writer.awrite(text, RUBRIC, seed=1, variant="t"))
    assert (of_choice.kind, len(of_choice.choices or ())) == ("multiple_choice", 4)
    assert (plain.kind, plain.choices) == ("free", None)
    checker = Checker(Checks(), EXAM)
    for pair in (of_choice, plain):
        assert checker.check(pair, text).failed == ()


def test_the_embedded_writer_is_asked_in_its_own_words() -> None:
    assert writer_knows(Unshown())
    writer = Scripted("garbage", chat=False, writer=True)
    pairs = PairWriter(writer, TaskShape.of(EXAM, show_form=False))
    for asked, line in (("multiple choice, four options", "Form: multiple choice, four options"), ("a year", "")):
        with pytest.raises(Exception, match="reply"):
            asyncio.run(
                pairs.awrite(passage(), RUBRIC.model_copy(update={"question_type": asked}), seed=1, variant="t")
            )
        prompt = writer.calls[-1].messages[0]["content"]
        assert (line in prompt) if line else ("Form:" not in prompt)


def test_true_is_the_default_and_keeps_the_fingerprint() -> None:
    recipe = Recipe.load("recipes/quickstart.yaml")
    assert recipe.questions.show_form
    assert changed(recipe, {"questions.show_form": True}).fingerprint == recipe.fingerprint
    assert changed(recipe, {"questions.show_form": False}).fingerprint != recipe.fingerprint
