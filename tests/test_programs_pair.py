"""Pairs: the writer, its prompts and replies, and the form that it imitates."""

from __future__ import annotations

import ast
import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from programs_helpers import RUBRIC, TEXT, Scripted, passage

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.data.demonstrations import DEMOS, Demo
from optimsyn.data.forms import Key, QuestionForm, form_named
from optimsyn.data.forms.code import Code
from optimsyn.data.forms.dialogue import Dialogue
from optimsyn.data.forms.free import Free
from optimsyn.data.forms.multiple_choice import MultipleChoice
from optimsyn.data.forms.true_false import TrueFalse
from optimsyn.data.records import Pair, Question
from optimsyn.data.text import as_written, normalized
from optimsyn.llm.language_model import Call
from optimsyn.llm.replies import Reply
from optimsyn.programs.checker import Checker
from optimsyn.programs.pair import PairWriter, TaskShape
from optimsyn.programs.pair_reader import read_pair
from optimsyn.programs.prompts import writer_prompts
from optimsyn.programs.prompts.pair_prompts import (
    base_prompt,
    chat_messages,
    demo_reply,
    open_schema,
    writer_knows,
)
from optimsyn.recipe.sections.synthesis import Checks

WITH_KEYS = [
    form_named(name) for name in ("true_false", "figure", "long_answer", "list", "code", "reasoning", "dialogue")
]
FORMS = [Free(), MultipleChoice(4), MultipleChoice(3, ("yes", "no", "maybe"))]
FREE, CHOICE = TaskShape(), TaskShape.only("multiple_choice")
CLOSED = TaskShape.only("multiple_choice", FORMS[2], open_book=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rubric", [None, RUBRIC])
def test_prompts_share_their_constant_beginning(form: QuestionForm, rubric: Any) -> None:
    prompt, other = base_prompt(form, TEXT, rubric), base_prompt(form, "Another text.", rubric)
    start = prompt.index(TEXT)
    assert prompt[:start] == other[:start]
    assert prompt.endswith("\n")
    assert len(prompt[:start].split()) < 240
    assert ("Rubric:" in prompt) == (rubric is not None)
    turns = chat_messages(form, TEXT, rubric)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2 + ["user"]
    for turn in (turns[1], turns[3]):
        assert read_pair(turn["content"], form)


def test_demonstrations_are_true_to_themselves() -> None:
    for demo in DEMOS:
        assert demo.quote in demo.passage
        assert demo.answer in demo.quote
        assert demo.answer not in demo.wrong
        assert len(demo.wrong) >= 7


def _chat(call: Call) -> str:
    keys = (call.schema or {}).get("properties", {})
    fixed = keys.get("answer", {}).get("enum")
    reply = {
        "quote": "In 1931, the library moved to a larger building beside the canal.",
        "question": "Did the library of Harlow ever move?" if fixed else "When did the library of Harlow move?",
        "answer": "Yes." if fixed else "1931",
    }
    return json.dumps(reply | {key: f"19{index}0" for index, key in enumerate(keys) if key.startswith("wrong")})


async def test_writer_of_each_form() -> None:
    model = Scripted(_chat)
    free = await PairWriter(model, FREE).awrite(
        passage(), RUBRIC, seed=3, variant="static", guiding_text="g", rubric_model="r"
    )
    assert (free.kind, free.answer, free.context, free.passage_id, free.seed) == ("free", "1931", None, "p1", 3)
    assert (free.rubric, free.guiding_text, free.rubric_model, free.generator) == (RUBRIC, "g", "r", "scripted")
    chosen = await PairWriter(model, CHOICE).awrite(passage(), None, seed=3, variant="no_rubric")
    assert chosen.choices is not None and chosen.answer_index is not None
    assert len(chosen.choices) == 4
    assert chosen.choices[chosen.answer_index] == "1931"
    closed = await PairWriter(model, CLOSED).awrite(passage(), None, seed=3, variant="x")
    assert (closed.choices, closed.answer_index, closed.context) == (("yes", "no", "maybe"), 0, TEXT)
    assert "Rubric" not in model.calls[-1].messages[-1]["content"]
    assert PairWriter(model, FREE)(passage(), seed=3).pair.answer == "1931"
    for written in (free, chosen, closed):
        assert Checker(Checks()).check(written, passage()).valid


@pytest.mark.parametrize("shape", [FREE, CHOICE, CLOSED])
async def test_a_base_model_gets_worked_examples_and_the_schema_where_it_takes_one(shape: TaskShape) -> None:
    for structured in (True, False):
        model = Scripted(_chat, chat=False, structured=structured)
        await PairWriter(model, shape).awrite(passage(), RUBRIC, seed=1, variant="x")
        (call,) = model.calls
        (message,) = call.messages
        form = shape.forms[0].form
        assert message["content"] == base_prompt(form, TEXT, RUBRIC)
        assert call.schema == open_schema(form, 1)
        assert call.stop == (() if structured else ("\n\n",))


@pytest.mark.parametrize("shape", [FREE, CHOICE, CLOSED])
async def test_a_service_is_asked_alike_whatever_the_passage_and_the_recipe_say_of_schemas(shape: TaskShape) -> None:
    asked: list[tuple[object, object]] = []
    base = "http://localhost:1/v1"
    for model in (
        Scripted(_chat),
        Scripted(_chat, api_base=base),
        Scripted(_chat, api_base=base, structured_output=True),
        Scripted(_chat, api_base=base, structured_output=False),
    ):
        await PairWriter(model, shape).awrite(passage(), None, seed=1, variant="x")
        asked.append((model.calls[-1].messages, model.calls[-1].schema))
    assert all(other == asked[0] for other in asked)
    model = Scripted(_chat)
    for seed in range(6):
        await PairWriter(model, shape).awrite(passage(TEXT + f" There were {seed} more."), None, seed=seed, variant="x")
    # One schema for each form of pair: free answers and options alternate with the seed.
    assert len({json.dumps(call.schema, sort_keys=True) for call in model.calls}) <= 2
    assert all(len(json.dumps(call.schema)) < 700 for call in model.calls)


async def test_positions_of_the_answer_vary_and_identity_is_stable() -> None:
    writer = PairWriter(Scripted(_chat), CHOICE)
    pairs = [await writer.awrite(passage(), None, seed=seed, variant="x") for seed in range(24)]
    assert {p.answer_index for p in pairs} == {0, 1, 2, 3}
    assert len({p.id for p in pairs}) == 24
    assert await writer.awrite(passage(), None, seed=5, variant="x") == pairs[5]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty"),
        ("I cannot do that.", "refuses"),
        ("There is a town.", "no question and answer"),
        ('{"question": "Who gave books?"}', "lacks `answer`"),
        ('{"question": "", "answer": "Edith Crane"}', "lacks `question`"),
        ('{"question": ["Who?", "When?"], "answer": "Edith Crane"}', "lacks `question`"),
    ],
)
async def test_unusable_replies_say_why(reply: str, reason: str) -> None:
    with pytest.raises(ReplyError, match=reason):
        await PairWriter(Scripted(reply), FREE).awrite(passage(), None, seed=1, variant="x")


def test_damaged_replies_are_repaired() -> None:
    form = Free()
    assert read_pair("```json\n{'question': 'Who gave?', 'answer': 'Miss Crane',}\n```", form)["answer"] == "Miss Crane"
    assert read_pair('{"quote": "q", "question": "Who gave?", "answer": "Miss Crane"', form)["answer"] == "Miss Crane"
    assert read_pair('{"question": "How many?", "answer": 600}', form)["answer"] == "600"
    assert read_pair('{"question": "Is it?", "answer": true}', FORMS[2])["answer"] == "yes"
    with pytest.raises(ReplyError, match="none of yes, no, maybe"):
        read_pair('{"question": "Is it?", "answer": "perhaps"}', FORMS[2])
    with pytest.raises(ReplyError, match="wrong_3"):
        read_pair('{"question": "Is it?", "answer": "a", "wrong_1": "b", "wrong_2": "c"}', FORMS[1])


WORDS = st.text(
    st.characters(exclude_categories=("C",), exclude_characters="|*{}<>[]"), min_size=1, max_size=60
).filter(lambda text: text.strip())
LINES = "Quote: The year was 1931.\nQuestion: When did it move?\n"


class Named(Free):
    """A form of its own, with a key beyond question and answer."""

    in_rubric = "a question with the name of its unit"

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        return (*super().reply_keys(seed), Key("unit_of_it", "the unit"))

    def demonstration(self, demo: Demo) -> dict[str, str]:
        return {**super().demonstration(demo), "unit_of_it": "years"}


@given(st.data(), st.sampled_from([*FORMS, MultipleChoice(5), TrueFalse(), Named()]))
def test_the_lines_of_a_reply_are_read_back(data: st.DataObject, form: QuestionForm) -> None:
    reply = {"quote": data.draw(WORDS)}
    for key in form.reply_keys():
        reply[key.name] = data.draw(st.sampled_from(key.options) if key.options else WORDS)
    plain = {name: " ".join(text.split()) for name, text in reply.items()}
    wrong_keys = form.wrong_keys if isinstance(form, MultipleChoice) else ()
    wrong = [reply[name] for name in wrong_keys]
    options = [plain["answer"], *(plain[name] for name in wrong_keys)]
    assume(len({normalized(option).rstrip(".") for option in options}) == len(options))
    place = data.draw(st.integers(0, len(wrong)))
    written = [*wrong[:place], reply["answer"], *wrong[place:]] if wrong else []
    text = writer_prompts.pair_reply(reply["quote"], reply["question"], reply["answer"], written)
    further = set(plain) - {"quote", "question", "answer", *wrong_keys}
    text += "".join(f"\n{writer_prompts.label_of_key(name)}: {plain[name]}" for name in further)
    read = read_pair(text, form)
    assert {name: read[name] for name in plain} == plain


# Lines of code and of prose, which are no labels.
INNER = st.builds(
    lambda indent, line: f"{' ' * indent}x{line}y",
    st.sampled_from([0, 4]),
    st.text("ab é가09 .,;()=+'\"#{}[]_-", max_size=30),
)


@given(st.data(), st.sampled_from([*WITH_KEYS, Code("json"), Dialogue(3)]))
def test_what_the_writer_writes_is_read_back(data: st.DataObject, form: QuestionForm) -> None:
    values = {}
    for key in form.reply_keys():
        texts = st.sampled_from(key.options) if key.options else INNER.map(str.strip)
        if key.lines or key.items:
            texts = st.lists(INNER.map(str.strip) if key.items else INNER, min_size=1, max_size=4).map("\n".join)
        if key.needed or data.draw(st.booleans()):
            values[key.name] = data.draw(texts)
    text = writer_prompts.form_reply(form, "The year was 1931.", values)
    assert "\n\n" not in text, "a blank line ends the reply"
    read = read_pair(text, form)
    for key in form.reply_keys():
        wanted, given = values.get(key.name, ""), read.get(key.name, "")
        if key.items:
            given = "\n".join(line.removeprefix("- ") for line in given.splitlines())
        several = key.lines and "\n" in wanted
        assert (given if several or key.items else " ".join(given.split())) == (
            wanted if several else "\n".join(" ".join(line.split()) for line in wanted.splitlines())
        )


def test_code_with_braces_is_no_reply_in_json() -> None:
    code = '{\n    "question": "When?",\n    "answer": 1931\n}'
    text = writer_prompts.form_reply(
        Code("json"), "It was 1931.", {"question": "Give the year.", "answer": f"\n{code}\n\n"}
    )
    assert text.endswith(f"Answer:\n{code}")
    assert read_pair(text, Code("json")) == {"quote": "It was 1931.", "question": "Give the year.", "answer": code}


def test_lines_as_models_write_them() -> None:
    form = Free()
    wanted = {"quote": "The year was 1931.", "question": "When did it move?", "answer": "1931"}
    for text in (
        LINES + "Answer: 1931",
        LINES + "Answer: 1931\n\nPassage: Another text.\nPair:\nQuote: no",
        LINES + "Answer: 1931\nQuote: again\nQuestion: Who?\nAnswer: Ann",
        "Pair:\n**Quote:** The year was 1931.\n- **Question**: When did it move?\n- answer: 1931\n",
        "Question：When did it move?\nAnswer：1931\nQuote：The year was 1931.",
    ):
        assert read_pair(text, form) == wanted, text
    assert read_pair("Question: Who?\nAnswer: Ann", form)["quote"] == ""
    with pytest.raises(ReplyError, match="lacks `answer`"):
        read_pair(LINES, form)


def test_pairs_of_more_options_may_have_four() -> None:
    text = f"{LINES}Options: 1904 | 1931 | 1950 | 1960\nAnswer: 1931"
    content = MultipleChoice(6).content(read_pair(text, MultipleChoice(6)), 5)
    assert sorted(content.choices or ()) == ["1904", "1931", "1950", "1960"]


@pytest.mark.parametrize(
    "answer", ["no", "No.", "No: the banks forbid it", "No, it never moved.", "NO – see the minutes"]
)
def test_an_option_may_come_with_its_ground(answer: str) -> None:
    assert read_pair(f"{LINES}Answer: {answer}", FORMS[2])["answer"] == "no"


@pytest.mark.parametrize("answer", ["Nobody", "no one", "Perhaps: no", "not yet", ": no"])
def test_what_only_begins_like_an_option_is_none(answer: str) -> None:
    with pytest.raises(ReplyError, match="none of yes, no, maybe"):
        read_pair(f"{LINES}Answer: {answer}", FORMS[2])


@pytest.mark.parametrize("text", [LINES + "Answer: 19", LINES, "Quote: The ye"])
def test_a_cut_line_is_no_answer(text: str) -> None:
    with pytest.raises(ReplyError) as caught:
        read_pair(Reply(text=text, finish_reason="length"), Free())
    assert caught.value.outcome is Outcome.CUT
    # A whole last line counts.
    assert read_pair(Reply(text=LINES + "Answer: 1931\n", finish_reason="length"), Free())["answer"] == "1931"


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        ("1904 | 1931 | 1950 | 1960", "1931.", None),
        ("1904|1931|1950|1960|1970", "1931", None),
        # An answer that is not listed, by its letter, or in other words than the option.
        ("1904 | 1950 | 1960 | 1970", "1931", None),
        ("1904 | 1950 | 1931 | 1960", "c", None),
        ("1904 | in 1931 | 1950 | 1960", "1931", None),
        ("1904 | 1931 | 1950", "1931", "lacks `wrong_3`"),
        ("1931 | 1931 | 1950 | 1960", "1931", "lacks `wrong_3`"),
    ],
)
def test_the_line_of_options_holds_all_four(options: str, answer: str, reason: str | None) -> None:
    text = f"{LINES}Options: {options}\nAnswer: {answer}"
    if reason is not None:
        with pytest.raises(ReplyError, match=reason):
            read_pair(text, FORMS[1])
        return
    content = FORMS[1].content(read_pair(text, FORMS[1]), 5)
    assert content.choices is not None and content.answer_index is not None
    assert sorted(choice.rstrip(".") for choice in content.choices) == ["1904", "1931", "1950", "1960"]
    assert content.choices[content.answer_index].rstrip(".") == "1931"


def test_forms_are_named_as_in_the_training() -> None:
    script = (Path(__file__).parents[1] / "tools" / "train_writer.py").read_text(encoding="utf-8")
    (named,) = re.findall(r"^(?:EXAM_)?FORMS = (\{.*\})$", script, re.MULTILINE)
    assert set(ast.literal_eval(named).values()) == {form.described() for form in FORMS[1:]}


@pytest.mark.parametrize(
    ("form", "described", "known"),
    [
        (Free(7), "", True),
        (MultipleChoice(4), "multiple choice, four options", True),
        (MultipleChoice(3, ("yes", "no", "maybe")), "the answer is yes, no or maybe", True),
        (MultipleChoice(5), "multiple choice, five options", True),
        (MultipleChoice(2, ("yes", "no")), "the answer is yes or no", False),
        (MultipleChoice(12), "multiple choice, 12 options", True),
        (TrueFalse(), "a statement that is true or false, with the reason", True),
        (Code("python"), "a question whose answer is python code", True),
        (Named(), "a question with the name of its unit", False),
    ],
)
async def test_the_writer_is_told_the_form_and_what_it_does_not_know_is_asked_as_of_any_base_model(
    form: QuestionForm, described: str, known: bool
) -> None:
    assert form.described() == described
    assert writer_knows(form) == known
    shape = TaskShape.only("x", form)
    model = Scripted(json.dumps(demo_reply(DEMOS[0], form)), writer=True, chat=False)
    await PairWriter(model, shape).awrite(passage(), RUBRIC, seed=1, variant="x")
    (call,) = model.calls
    if known:
        assert call.messages[0]["content"] == writer_prompts.pair_prompt(TEXT, RUBRIC, described)
        assert (call.schema, call.stop) == (None, ("\n\n",))
    else:
        assert call.messages[0]["content"] == base_prompt(form, TEXT, RUBRIC)
        assert (call.schema, call.stop) == (open_schema(form, 1), ())


@pytest.mark.parametrize(
    ("form", "replies", "label", "value"),
    [
        (Free(), ["Quote: a\nQuestion: What is b?", " b"], "Answer", ("answer", "b")),
        (
            TrueFalse(),
            ["Quote: a\nQuestion: B is c.\nAnswer: true\n", " B is c.\nQuote: x"],
            "Reason",
            ("reason", "B is c."),
        ),
        (
            form_named("reasoning"),
            ["Quote: a\nQuestion: What is b?\nAnswer: c", " A is b, and so it is c.\nAnswer: c"],
            "Reasoning",
            ("answer", "c"),
        ),
        (
            Dialogue(),
            ["Quote: a\nQuestion: What is b?\nAnswer: It is c.", " And d?\nAnswer 2: D is e."],
            "Question 2",
            ("answer_2", "D is e."),
        ),
    ],
)
async def test_a_writer_that_leaves_a_line_out_goes_on_from_its_label(
    form: QuestionForm, replies: list[str], label: str, value: tuple[str, str]
) -> None:
    model = Scripted(lambda _: replies[len(model.calls) - 1], writer=True, chat=False)
    pair = await PairWriter(model, TaskShape.only("x", form)).awrite(passage(), RUBRIC, seed=1, variant="x")
    first, second = model.calls
    kept = replies[0].removesuffix("\nAnswer: c").rstrip()
    assert second.prompt == f"{first.prompt}{kept}\n{label}:"
    assert (second.stop, second.seed) == (first.stop, first.seed)
    read = read_pair(f"{kept}\n{label}:{replies[1]}", form)
    assert read[value[0]] == value[1]
    assert pair.answer == form.content(read, 1).answer


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (Free(), "Quote: a"),
        (Free(), "Quote: a\nAnswer: b"),
        (Free(), "nothing with a label"),
        (MultipleChoice(4), "Quote: a\nQuestion: What is b?\nAnswer: b"),
    ],
)
async def test_what_lacks_its_question_is_not_gone_on_with(form: QuestionForm, text: str) -> None:
    model = Scripted(text, writer=True, chat=False)
    with pytest.raises(ReplyError):
        await PairWriter(model, TaskShape.only("x", form)).awrite(passage(), RUBRIC, seed=1, variant="x")
    assert len(model.calls) == 1


@pytest.mark.parametrize("then", ["A is b.", "Is A b?"])
async def test_a_writer_that_asks_in_place_of_a_statement_is_given_its_label(then: str) -> None:
    def reply(call: Call) -> str:
        if call.prompt.endswith("Statement:"):
            return f" {then}\nAnswer: true\nReason: A is c."
        return "Quote: a\nQuestion: What is A?\nAnswer: b"

    model = Scripted(reply, writer=True, chat=False)
    pair = await PairWriter(model, TaskShape.only("x", TrueFalse())).awrite(passage(), RUBRIC, seed=1, variant="x")
    assert (pair.question, pair.answer, pair.details) == (then, "true", {"reason": "A is c."})
    first, second = model.calls
    assert second.prompt == f"{first.prompt}Quote: a\nStatement:"


@pytest.mark.parametrize("structured", [True, False])
async def test_a_writer_that_answers_beside_the_options_is_held_to_them(structured: bool) -> None:
    def reply(call: Call) -> str:
        if call.prompt.endswith("Answer:"):
            return '"false"'
        return " A is c." if call.prompt.endswith("Reason:") else "Quote: a\nQuestion: A is b.\nAnswer: b\nReason: No."

    model = Scripted(reply, writer=True, chat=False, structured=structured)
    writing = PairWriter(model, TaskShape.only("x", TrueFalse())).awrite(passage(), RUBRIC, seed=1, variant="x")
    if not structured:
        with pytest.raises(ReplyError, match="the answer 'b' is none of true, false"):
            await writing
        assert len(model.calls) == 1
        return
    pair = await writing
    assert (pair.question, pair.answer, pair.details) == ("A is b.", "false", {"reason": "A is c."})
    first, second, third = model.calls
    assert second.prompt == f"{first.prompt}Quote: a\nQuestion: A is b.\nAnswer:"
    assert (first.schema, second.schema, third.schema) == (None, {"enum": ["true", "false"]}, None)
    assert third.prompt == f"{second.prompt} false\nReason:"


async def test_going_on_ends() -> None:
    model = Scripted(
        lambda call: "" if call.prompt.endswith("Answer:") else "Quote: a\nQuestion: What is b?",
        writer=True,
        chat=False,
    )
    with pytest.raises(ReplyError, match="lacks `answer`"):
        await PairWriter(model, FREE).awrite(passage(), RUBRIC, seed=1, variant="x")
    assert len(model.calls) <= 5


def _question(answer: str, choices: tuple[str, ...] | None = None, **fields: Any) -> Question:
    index = choices.index(answer) if choices else None
    return Question(id="q", question="Is it so?", answer=answer, choices=choices, answer_index=index, **fields)


def test_shape_follows_the_questions() -> None:
    assert TaskShape.of([]) == TaskShape()
    free = TaskShape.of([_question("one two three"), _question("one"), _question("one two three four")])
    assert free == TaskShape.only("free", Free(answer_words=3))
    closed = TaskShape.of([_question(a, ("yes", "no", "maybe"), context="c") for a in ("yes", "no", "no")])
    assert closed == TaskShape.only("multiple_choice", FORMS[2], open_book=True)
    exam = TaskShape.of([_question("a", ("a", "b", "c", str(i))) for i in range(5)] + [_question("x")] * 5)
    assert [(each.name, each.share) for each in exam.forms] == [("multiple_choice", 0.5), ("free", 0.5)]
    assert exam.form("multiple_choice") == MultipleChoice(4, (), 1)
    kinds = [exam.kind_for(seed) for seed in range(400)]
    assert 140 < kinds.count("free") < 260
    assert kinds == [exam.kind_for(seed) for seed in range(400)]


@pytest.mark.slow
async def test_embedded_model_writes_valid_pairs() -> None:
    """The real model under the real server: nearly every reply parses, most pairs pass every check."""
    from optimsyn.llm.factory import load_language_model
    from optimsyn.programs.rubric import RubricWriter
    from optimsyn.recipe.recipe import ModelSpec

    model = load_language_model(ModelSpec(name="embedded", temperature=0.7, max_tokens=240))
    rubrics = RubricWriter(model, "Ask for one fact that matters.")
    checker = Checker(Checks())

    async def one(seed: int, shape: TaskShape) -> Pair:
        rubric = (await rubrics.acall(passage=passage(), kind=shape.kind_for(seed), seed=seed)).rubric
        return await PairWriter(model, shape).awrite(passage(), rubric, seed=seed, variant="x")

    shapes = (FREE, FREE, CHOICE)
    pairs = await asyncio.gather(*(one(seed, shape) for seed, shape in enumerate(shapes)))
    assert sum(checker.check(p, passage()).valid for p in pairs) >= 2


@pytest.mark.parametrize(
    ("quote", "text", "stretch"),
    [
        ("The fee is due.", "In May the fee\nis due. Later no fee.", "the fee\nis due."),
        ("Bank loans | 80.0 | 95.0", "| Bank loans |\n| 80.0 | 95.0 |", "Bank loans |\n| 80.0 | 95.0"),
        ("“Copper conducts”", "He wrote: copper conducts heat.", "copper conducts"),
        ("은행은 문을 닫았다", "그날 은행은 문을 닫았다.", "은행은 문을 닫았다"),
        ("the fee is low", "In May the fee is due.", "the fee is low"),
        ("…", "In May.", "…"),
        ("", "In May.", ""),
    ],
)
def test_a_quote_becomes_the_passages_own_stretch(quote: str, text: str, stretch: str) -> None:
    assert as_written(quote, text) == stretch
