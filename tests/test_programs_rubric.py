"""Rubrics: prompts, the one reader, and the writer as a DSPy program."""

from __future__ import annotations

import copy
import json

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs_helpers import RUBRIC, Scripted, passage

from optimsyn.base.errors import ReplyError, ServiceError
from optimsyn.data.forms.multiple_choice import MultipleChoice
from optimsyn.data.records import Rubric
from optimsyn.llm.language_model import Call, Manner
from optimsyn.programs.prompts import writer_prompts
from optimsyn.programs.rubric import (
    RubricWriter,
    complete_rubric,
    parse_rubric,
    rubric_messages,
    rubric_prompt,
    rubric_text,
)
from optimsyn.programs.task_shape import TaskShape

LINE = st.from_regex(r"[A-Za-z][A-Za-z ,()0-9]{0,60}[a-z]", fullmatch=True).map(lambda text: " ".join(text.split()))
RUBRICS = st.builds(
    Rubric, question_type=LINE, question_quality=LINE, answer_quality=LINE, alignment=LINE, trainability=LINE
)


@given(RUBRICS)
def test_five_lines_are_read_back(rubric: Rubric) -> None:
    assert parse_rubric(rubric_text(rubric)) == rubric


@given(RUBRICS)
def test_policy_completion_is_read_back(rubric: Rubric) -> None:
    completion = rubric_text(rubric).removeprefix("Question type:")
    assert complete_rubric(completion + "\n\nGuidance: next") == rubric
    assert complete_rubric(rubric_text(rubric)) == rubric


@given(RUBRICS)
def test_json_with_long_and_short_keys_is_read(rubric: Rubric) -> None:
    full = rubric.model_dump()
    assert parse_rubric(json.dumps(full)) == rubric
    short = {"question_type": "type", "question_quality": "question", "answer_quality": "answer"}
    assert parse_rubric(json.dumps({short.get(key, key): value for key, value in full.items()})) == rubric
    assert parse_rubric("Here it is:\n```json\n" + json.dumps({"rubric": full}, indent=1) + "\n```") == rubric


def test_decorated_lines_and_what_follows() -> None:
    text = "- **Question type:** cause\n" + rubric_text(RUBRIC).split("\n", 1)[1] + "\nQuestion type: another"
    assert parse_rubric(text) == RUBRIC


@pytest.mark.parametrize("name", ["Question quality", "Trainability"])
def test_a_missing_line_is_named(name: str) -> None:
    text = "\n".join(line for line in rubric_text(RUBRIC).splitlines() if not line.startswith(name))
    with pytest.raises(ReplyError, match=name):
        parse_rubric(text)


@pytest.mark.parametrize(
    "text", ["", "no rubric here", "{}", "[]", '{"type": "cause"', "Question type:\nAlignment: ..."]
)
def test_garbage_raises(text: str) -> None:
    with pytest.raises(ReplyError):
        parse_rubric(text)


def test_endless_criterion_is_refused() -> None:
    with pytest.raises(ReplyError, match="Alignment runs on"):
        parse_rubric(rubric_text(RUBRIC.model_copy(update={"alignment": "very " * 200})))


@given(RUBRICS)
def test_the_writers_lines_are_read_back(rubric: Rubric) -> None:
    assert complete_rubric(writer_prompts.rubric_reply(rubric)) == rubric


def test_policy_prompts() -> None:
    plain = rubric_prompt("Ask for dates.", passage(), "", manner="plain")
    assert isinstance(plain, str)
    assert plain.endswith("Rubric:\nQuestion type:")
    assert plain.index("Halley") < plain.index("Ask for dates.") < plain.index("Harlow")
    other = rubric_prompt("Ask for names.", passage("Another text."), "", manner="plain")
    assert plain[: plain.index("Ask for dates.")] == other[: other.index("Ask for names.")]
    chat = rubric_prompt("Ask for dates.", passage(), "", manner="chat")
    assert isinstance(chat, list)
    assert [m["role"] for m in chat] == ["user", "assistant", "user", "assistant", "user"]
    assert "Ask for dates." in chat[-1]["content"]
    assert parse_rubric(chat[1]["content"])
    assert rubric_messages("Ask for dates.", passage(), "", manner="plain")[1] == ("\n\n",)
    form = "multiple choice, four options"
    written = rubric_prompt("Ask for dates.", passage(), form, manner="writer")
    assert written == writer_prompts.rubric_prompt(passage().text, "Ask for dates.", form)


def test_blank_lines_of_a_passage_do_not_end_the_prompt() -> None:
    for manner in ("plain", "writer"):
        text = rubric_prompt("Ask\n\nfor dates.", passage("One.\n\nTwo."), "", manner=manner)
        assert isinstance(text, str)
        assert "Ask for dates." in text
        assert "One. Two." in text


@pytest.mark.parametrize("manner", ["chat", "plain", "writer"])
async def test_writer(manner: Manner) -> None:
    reply = json.dumps(RUBRIC.model_dump()) if manner == "chat" else rubric_text(RUBRIC)
    if manner == "plain":
        reply = reply.removeprefix("Question type:")
    for structured in (True, False):
        model = Scripted(reply, chat=manner == "chat", structured=structured, writer=manner == "writer")
        writer = RubricWriter(model, "Ask for causes.", TaskShape.only("multiple_choice", MultipleChoice(5)))
        prediction = await writer.acall(passage=passage(), kind="multiple_choice", seed=5)
        assert prediction.rubric == RUBRIC
        (call,) = model.calls
        assert call.seed == 5
        assert "Ask for causes." in call.messages[-1]["content"]
        assert "multiple choice, five options" in call.messages[-1]["content"]
        assert (call.schema is None) == (manner != "chat")
        assert call.stop == (() if manner == "chat" else ("\n\n",))
        assert len(call.messages) == (5 if manner == "chat" else 1)
    if manner == "writer":
        # As the policy is asked, whose training starts from the same adapter.
        assert call.messages[0]["content"] == rubric_prompt(
            "Ask for causes.", passage(), "multiple choice, five options", manner="writer"
        )


def test_guiding_text_is_the_instruction_that_an_optimiser_rewrites() -> None:
    model = Scripted(json.dumps(RUBRIC.model_dump()))
    writer = RubricWriter(model, "Ask for causes.")
    ((name, predict),) = writer.named_predictors()
    assert name == "write"
    copied = writer.deepcopy()
    copied.write.signature = copied.write.signature.with_instructions("Ask for dates.")
    assert copied.guiding_text == "Ask for dates."
    assert writer.guiding_text == predict.signature.instructions == "Ask for causes."
    assert copied.model is copy.deepcopy(writer).model is model
    with dspy.context(trace=[]):
        copied(passage=passage(), kind="free", seed=1)
        assert len(dspy.settings.trace) == 1
    assert "Ask for dates." in model.calls[0].messages[-1]["content"]
    writer.guiding_text = "Ask for names."
    assert writer.write.signature.instructions == "Ask for names."


async def test_failures_keep_their_kind() -> None:
    with pytest.raises(ReplyError, match="empty"):
        await RubricWriter(Scripted(""), "Ask for causes.").acall(passage=passage(), kind="free", seed=1)
    with pytest.raises(ReplyError, match="lacks"):
        await RubricWriter(Scripted('{"alignment": "x"}'), "Ask.").acall(passage=passage(), kind="free", seed=1)

    def dead(call: Call) -> str:
        raise ServiceError("port 1 is dead")

    with pytest.raises(ServiceError, match="port 1"):
        await RubricWriter(Scripted(dead), "Ask.").acall(passage=passage(), kind="free", seed=1)
