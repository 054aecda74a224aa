"""Pairs: the writer, the form that it imitates, and the schema that holds a base model to it."""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs_helpers import RUBRIC, TEXT, Scripted, pair, passage

from optimsyn.base.errors import ReplyError
from optimsyn.data.demonstrations import DEMOS
from optimsyn.data.forms import QuestionForm
from optimsyn.data.forms.free import Free
from optimsyn.data.forms.multiple_choice import MultipleChoice
from optimsyn.data.records import Pair, Question, Rubric
from optimsyn.llm.language_model import Call
from optimsyn.programs.checks import Checker
from optimsyn.programs.constrained.pair_form import tight_schema
from optimsyn.programs.constrained.questions import question_pattern
from optimsyn.programs.constrained.spans import answers_in, is_english, sentences
from optimsyn.programs.constrained.steering import Steer
from optimsyn.programs.pair import PairWriter, TaskShape
from optimsyn.programs.pair_reader import read_pair
from optimsyn.programs.prompts.pair_prompts import base_prompt, chat_messages
from optimsyn.recipe.sections.synthesis import Checks

FORMS = [Free(), MultipleChoice(4), MultipleChoice(3, ("yes", "no", "maybe"))]
FREE, CHOICE = TaskShape(), TaskShape.only("multiple_choice")
CLOSED = TaskShape.only("multiple_choice", FORMS[2], open_book=True)


@given(st.text(max_size=600))
def test_sentences_are_stretches_of_the_text(text: str) -> None:
    for part in sentences(text):
        assert part in text
        assert len(part) <= 240


def test_sentences_of_ordinary_text() -> None:
    assert len(sentences(TEXT)) == 5
    assert sentences("Dr. Crane met J. Smith in Harlow. They had 3.5 tons of paper.") == [
        "Dr. Crane met J. Smith in Harlow.",
        "They had 3.5 tons of paper.",
    ]


@given(st.text(max_size=300), st.booleans())
def test_answers_are_stretches_of_the_sentence(text: str, english: bool) -> None:
    for answer in answers_in(text, english=english):
        assert answer.text in " ".join(text.split())
        if (pattern := question_pattern(answer)) is not None:
            re.compile(pattern)


def test_languages() -> None:
    assert is_english(TEXT)
    assert not is_english("Die Bibliothek wurde 1904 eröffnet und steht heute am Kanal der Stadt.")


@pytest.mark.parametrize(
    ("sentence", "answer", "question"),
    [
        ("The town council of Harlow opened its first lending library in 1904.", "1904",
         "When did the town council of Harlow open its first lending library?"),
        ("In 1931, the library moved to a larger building.", "larger building", "What did the library move to?"),
        ("Miss Edith Crane gave her books to the town.", "Miss Edith Crane", "Who gave her books to the town?"),
        ("The bridge was built by Roman soldiers in the north.", "Roman soldiers", "What was the bridge built by?"),
        ("The town keeps the letters of the mill owners.", "letters of the mill owners", "What does the town keep?"),
        ("More than 600 books were given to the library.", "600", "How many books were given to the library?"),
        ("About 25% of the readers worked in the mills.", "25%", "What percentage of the readers worked in the mills?"),
        ("The mayor has owned three mills since 1900.", "three", "How many mills has the mayor owned?"),
    ],
)  # fmt: skip
def test_questions_that_an_answer_allows(sentence: str, answer: str, question: str) -> None:
    found = {item.text: item for item in answers_in(sentence, english=True)}
    assert answer in found
    pattern = question_pattern(found[answer])
    assert pattern is not None
    assert re.fullmatch(pattern, question), pattern


def test_what_cannot_be_turned_round_is_left_alone() -> None:
    assert all(question_pattern(a) is None for a in answers_in("He gave it to them.", english=True))
    assert "6" not in {a.text for a in answers_in("See Note 6 of the report.", english=True)}


def _reply(schema: dict[str, Any], draw: random.Random, data: st.DataObject) -> dict[str, Any]:
    """A random reply that a schema of ours allows."""
    if "anyOf" in schema:
        return _reply(draw.choice(schema["anyOf"]), draw, data)
    reply = {}
    for key, part in schema["properties"].items():
        if "const" in part:
            reply[key] = part["const"]
        elif "enum" in part:
            reply[key] = draw.choice(part["enum"])
        else:
            reply[key] = data.draw(st.from_regex(part["pattern"], fullmatch=True))
    return reply


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 10_000), st.sampled_from(FORMS[:2]))
def test_whatever_the_schema_allows_is_a_grounded_pair(data: st.DataObject, seed: int, form: QuestionForm) -> None:
    reply = _reply(tight_schema(form, TEXT, seed), random.Random(seed), data)
    read = read_pair(json.dumps(reply), form)
    assert list(reply)[:3] == ["quote", "answer", "question"]
    assert len(json.dumps(reply)) < 700
    written = pair(question=read["question"], answer=read["answer"], quote=read["quote"])
    failed = Checker(Checks()).check(written, passage()).failed
    assert not {"grounded", "mentions_document", "answered_by_itself", "answer_fits_question", "demo_copy"} & set(
        failed
    )
    options = [reply["answer"], *(reply[key] for key in reply if key.startswith("wrong_"))]
    assert len({option.casefold() for option in options}) == len(options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "text",
    [
        "Kurz.",
        "| a | b |\n| 1 | 2 |",
        "东京是日本的首都。它有一千四百万人口。",
        "word " * 300,
        "No.",
        "1 2 3",
        '"{}[]()\\',
    ],
)
def test_a_schema_for_any_text(form: QuestionForm, text: str) -> None:
    schema = tight_schema(form, text, 1)
    for branch in schema.get("anyOf", [schema]):
        assert list(branch["properties"]) == branch["required"]
        for part in branch["properties"].values():
            if "pattern" in part:
                re.compile(part["pattern"])
                # llama.cpp silently drops a pattern with one of these in a class.
                assert not re.search(r"\[[^\]]*(?:\\s|[^\x00-\x7f])[^\]]*\]", part["pattern"])


def test_seeds_bring_in_other_sentences() -> None:
    def quotes(seed: int) -> set[str]:
        return {branch["properties"]["quote"]["const"] for branch in tight_schema(Free(), TEXT, seed)["anyOf"]}

    assert quotes(1) == quotes(1)
    assert len(set.union(*(quotes(seed) for seed in range(30)))) == 5
    assert all(len(quotes(seed)) <= 3 for seed in range(5))


def test_a_rubric_steers_what_a_small_model_may_quote_and_answer() -> None:
    text = (
        "The town of Brill had a market from 1229. The windmill is made of oak. The mill was closed in 1924. "
        "Wheat was carried by the river Thame. A tramway with six stations linked the town to Quainton."
    )

    def offered(rubric: Rubric | None, seed: int) -> set[tuple[str, str]]:
        schema = tight_schema(Free(), text, seed, Steer.of(rubric))
        parts = [branch["properties"] for branch in schema.get("anyOf", [schema])]
        return {(part["quote"]["const"], part["answer"]["const"]) for part in parts}

    plain = dict.fromkeys(("question_quality", "answer_quality", "alignment", "trainability"), "clear")
    years = Rubric(question_type="the year of an event", **plain)
    assert {answer for _, answer in offered(years, 3)} == {"1229", "1924"}
    mill = Rubric(question_type="the material that the windmill is made of", **plain)
    assert all(any("windmill" in quote for quote, _ in offered(mill, seed)) for seed in range(20))
    assert not all(any("windmill" in quote for quote, _ in offered(None, seed)) for seed in range(20))
    # Nothing in the text is a percentage: the rubric then rules nothing out.
    assert offered(Rubric(question_type="a percentage", **plain), 5)


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


@pytest.mark.parametrize(
    ("model", "tight"),
    [
        (Scripted(_chat), False),
        (Scripted(_chat, chat=False), True),
        (Scripted(_chat, api_base="http://localhost:1/v1"), False),
        (Scripted(_chat, structured_output=True), False),
        (Scripted(_chat, api_base="http://localhost:1/v1", structured_output=True), False),
    ],
)
async def test_who_is_held_to_the_passage(model: Scripted, tight: bool) -> None:
    await PairWriter(model, FREE).awrite(passage(), None, seed=1, variant="x")
    schema = model.calls[-1].schema
    assert schema is not None
    assert ("anyOf" in schema) == tight
    if not tight:
        assert set(schema["properties"]) == {"quote", "answer", "question"}
        assert "Edith" not in json.dumps(schema)


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
        ("There is a town.", "no JSON object"),
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
    """The real base model under the real server: every reply parses, most pairs pass every check."""
    from optimsyn.llm.factory import load_language_model
    from optimsyn.programs.rubric import RubricWriter
    from optimsyn.recipe.recipe import ModelSpec

    model = load_language_model(ModelSpec(name="embedded", temperature=0.4, max_tokens=200))
    rubrics = RubricWriter(model, "Ask for one fact that matters.")
    checker = Checker(Checks())

    async def one(seed: int, shape: TaskShape) -> Pair:
        rubric = (await rubrics.acall(passage=passage(), kind=shape.kind_for(seed), seed=seed)).rubric
        return await PairWriter(model, shape).awrite(passage(), rubric, seed=seed, variant="x")

    shapes = (FREE, FREE, CHOICE)
    pairs = await asyncio.gather(*(one(seed, shape) for seed, shape in enumerate(shapes)))
    assert sum(checker.check(p, passage()).valid for p in pairs) >= 2
