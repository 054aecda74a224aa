"""The reader of replies: good ones are read right however they are wrapped, odd ones are told apart."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.data.forms import QuestionForm
from optimsyn.data.forms.free import Free
from optimsyn.data.forms.multiple_choice import MultipleChoice
from optimsyn.llm.reading.json_objects import mend_escapes
from optimsyn.llm.reading.plain_text import storable
from optimsyn.llm.reading.values import longest_text, plain_text
from optimsyn.llm.replies import Reply
from optimsyn.programs.pair_reader import read_pair
from optimsyn.programs.rubric import complete_rubric, parse_rubric
from tests.reply_fuzz import (
    QUESTION,
    THOUGHTS,
    fuzzed,
    json_wrappings,
    pair_text,
    rubric_fields,
    rubric_lines,
    wrappings,
)

FREE, YES_NO, FOUR = Free(), MultipleChoice(3, ("yes", "no", "maybe")), MultipleChoice(4)
GOOD = json.dumps({"question": QUESTION, "answer": "copper"})
# Damaged JSON ends where its text does: these put something after it.
NOTHING_AFTER = {"no brace", "string"}
SOMETHING_AFTER = {"prose", "prose after", "after", "unclosed after", "end token"}


def answer_of(value: Any, form: QuestionForm = FREE, **more: Any) -> str:
    """What is read as the answer where JSON holds this value."""
    return read_pair(json.dumps({"question": "Is it so?", "answer": value, **more}), form)["answer"]


def outcome_of(reply: Reply | str, form: QuestionForm = FREE, max_tokens: int | None = 400) -> Outcome:
    """What comes of a reply."""
    try:
        read_pair(reply, form, max_tokens=max_tokens)
    except ReplyError as error:
        str(error).encode()
        return error.outcome
    return Outcome.READ


@pytest.mark.parametrize("wrapping", wrappings())
@pytest.mark.parametrize("shape", json_wrappings())
def test_a_good_pair_is_read_right_however_it_is_wrapped(shape: str, wrapping: str) -> None:
    if shape in NOTHING_AFTER and wrapping in SOMETHING_AFTER:
        return
    for seed in range(6):
        draw = random.Random(seed)
        text, right = pair_text(draw)
        for thought in THOUGHTS:
            reply = wrappings()[wrapping](thought, json_wrappings()[shape](text))
            assert read_pair(reply, FREE) == right, reply


@pytest.mark.parametrize("wrapping", wrappings())
def test_a_good_rubric_is_read_right_however_it_is_wrapped(wrapping: str) -> None:
    compact = {"type": "question_type", "question": "question_quality", "answer": "answer_quality"}
    short = {key: rubric_fields()[name] for key, name in compact.items()} | {
        name: rubric_fields()[name] for name in ("alignment", "trainability")
    }
    for thought in THOUGHTS:
        for text in (rubric_lines(), json.dumps(rubric_fields()), json.dumps({"rubric": short}), json.dumps([short])):
            reply = wrappings()[wrapping](thought, text)
            assert parse_rubric(reply).model_dump() == complete_rubric(reply).model_dump() == rubric_fields(), reply


@pytest.mark.parametrize("wrapping", ["bare", "<think>", "fence", "unopened", "harmony"])
@pytest.mark.parametrize("finish", ["length", "stop"])
def test_a_reply_that_is_cut_anywhere_is_read_whole_or_not_at_all(wrapping: str, finish: str) -> None:
    for seed in range(4):
        text, right = pair_text(random.Random(seed))
        whole = wrappings()[wrapping]("Let me see: {a,b}.", text)
        for end in range(len(whole)):
            reply = Reply(text=whole[:end], finish_reason=finish)
            outcome = outcome_of(reply)
            if outcome is not Outcome.READ:
                assert finish == "stop" or outcome is Outcome.CUT, reply.text
                continue
            found = read_pair(reply, FREE)
            assert (found["question"], found["answer"]) == (right["question"], right["answer"]), reply.text


def test_a_rubric_is_cut_until_its_last_line_ends() -> None:
    lines = rubric_lines()
    for end in range(len(lines) + 1):
        with pytest.raises(ReplyError) as caught:
            parse_rubric(Reply(text=lines[:end], finish_reason="length"))
        assert caught.value.outcome is Outcome.CUT
    assert parse_rubric(Reply(text=lines + "\n", finish_reason="length")).model_dump() == rubric_fields()
    assert parse_rubric(Reply(text=lines + "\nQuestion ty", finish_reason="length")).model_dump() == rubric_fields()
    assert parse_rubric(lines).model_dump() == rubric_fields(), "a policy's completion has no reason to have ended"


@pytest.mark.parametrize("seeds", [range(2_000), pytest.param(range(2_000, 10_000), marks=pytest.mark.slow)], ids=str)
def test_nothing_but_a_reply_error_leaves_the_reader(seeds: range) -> None:
    """Odd replies, a seed each; whatever is read can be written to a file."""
    forms = (FREE, YES_NO, FOUR)
    for seed in seeds:
        reply = fuzzed(seed)
        try:
            if seed % 3:
                read = str(read_pair(reply, forms[seed % 2], max_tokens=(400, 32_000)[seed % 2]))
            else:
                read = str(complete_rubric(reply) if seed % 2 else parse_rubric(reply, max_tokens=160))
        except ReplyError as error:
            read = str(error)
        assert storable(read).split() == read.split(), seed
        read.encode()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 500,
        "{" * 300,
        '{"a":' * 3000,
        '["' * 20_000,
        '{"question": "' + '\\"x' * 300_000,
        '{"question": "' + '"' * 300_000,
        "<think>" * 50_000,
        "</think>" * 50_000,
        "<|channel|>final<|message|>" * 20_000,
        "```{" * 50_000,
        "\\f" * 200_000,
        "{'a': (" * 20_000,
        '{"a" "b",' * 20_000,
        " " * 5_000_000 + GOOD,
        "{\n" + " " * 100_000 + '"question"' + "\n" * 100_000,
        "Question type:" * 20_000,
        "I cannot " * 50_000,
    ],
    ids=lambda text: text[:12],
)
def test_what_takes_parsers_apart_is_invalid(text: str) -> None:
    # What grows with the square of such a length would not end today.
    for finish in ("stop", "length"):
        assert outcome_of(Reply(text=text, finish_reason=finish)) in (Outcome.INVALID, Outcome.CUT)
        with pytest.raises(ReplyError):
            parse_rubric(Reply(text=text, finish_reason=finish), max_tokens=32_000)


def test_a_reply_is_no_longer_than_its_tokens_explain() -> None:
    assert longest_text(None) == longest_text(16) == longest_text(400) < longest_text(4000) < longest_text(10**9)
    with pytest.raises(ReplyError, match="more than its tokens explain"):
        read_pair("x" * 200_000 + GOOD, FREE, max_tokens=400)
    assert read_pair(GOOD + " " * 5_000_000, FREE, max_tokens=400)["answer"] == "copper"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("copper\ud83d", "copper"),
        ("co\x00pper\u202e", "copper"),
        ("\ufeffcop\u2066per\u2069 \u200f", "copper"),
        ("red\u2028blue\x0c green", "red blue green"),
        ("🙂 \ud83d\ude42", "🙂 🙂"),
        ("می‌خواهم", "می‌خواهم"),
        (["vitamin C"], "vitamin C"),
        (["iron", "zinc"], "iron, zinc"),
        ({"text": "vitamin C"}, "vitamin C"),
        ({"value": 5, "unit": "mg"}, "5 mg"),
        ({"answer": ["vitamin C"], "note": "x"}, "vitamin C"),
        (10**16, "10000000000000000"),
        (True, "yes"),
        ("iron<eos> and <end_of_turn> zinc", "iron<eos> and <end_of_turn> zinc"),
        ("What <think> does", "What <think> does"),
    ],
)
def test_values_become_one_storable_line(value: Any, read: str) -> None:
    assert answer_of(value) == read
    assert answer_of(value).encode()


@pytest.mark.parametrize(
    "written", ["1e16", "1E+16", "0.10", "-3.50", "007.5e-3", "12345678901234567890", "1" + "0" * 5000]
)
@pytest.mark.parametrize("end", ["}", ",}"])
def test_numbers_stay_as_they_were_written(written: str, end: str) -> None:
    if written.startswith("00") and end == "}":
        end = ",}"
    read = read_pair(f'{{"question": "How many?", "answer": {written}{end}', FREE)["answer"]
    assert read == written


def test_what_is_no_answer_is_none() -> None:
    for value in (None, "", [], {}, [[[["x"]]]], "\x00", "\ud83d"):
        assert outcome_of(json.dumps({"question": "Is it?", "answer": value})) is Outcome.INVALID
    # Several texts may be one free answer, but not one option.
    wrong = {f"wrong_{index}": f"w{index}" for index in (1, 2, 3)}
    assert outcome_of(json.dumps({"question": "Is it?", "answer": ["a", "b"], **wrong}), FOUR) is Outcome.INVALID
    listed = {"question": "Is it?", "answer": "a", "distractors": ["b", "c", "d"]}
    assert read_pair(json.dumps(listed), FOUR)["wrong_3"] == "d"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"$\frac{hc}{\lambda}$", r"$\frac{hc}{\lambda}$"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"$\\frac{hc}{\\lambda}$", r"$\frac{hc}{\lambda}$"),
        (r"$2 \times 10^3\,\text{m}$", r"$2 \times 10^3\,\text{m}$"),
        (
            r"$\beta \bar{x} \rho \right) \nu \nabla \theta \tau$",
            r"$\beta \bar{x} \rho \right) \nu \nabla \theta \tau$",
        ),
        (r"\(a \neq b\)", r"\(a \neq b\)"),
        (r"5\% of \$10", r"5\% of \$10"),
        (r"\upsilon and \u00e9t\u00e9", r"\upsilon and été"),
        (r"first\nnext\tthen\r\nlast", "first next then last"),
        (r"it\'s", "it's"),
        (r"copper\ud83", "copper"),
        (r"copper \ud83d\ude0", "copper"),
        (r"a \"quoted\" one", 'a "quoted" one'),
        (r"C:\\temp\\new", r"C:\temp\new"),
    ],
)
def test_single_backslashes_of_latex_survive(written: str, read: str) -> None:
    assert read_pair(f'{{"question": "Which?", "answer": "{written}"}}', FREE)["answer"] == read
    assert mend_escapes(mend_escapes(written)) == mend_escapes(written)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("{'question': 'Who?', 'answer': 'it''s me'}", None),
        ("{question: 'Who?', answer: 'me'}", "me"),
        ("{“question”: “Who?”, “answer”: “me”}", "me"),
        ('{"question": "Who said "no"?", "answer": "me"}', "me"),
        ('{"question": "Who?" "answer": "me"}', "me"),
        ('{"question": "Who?", // asks\n "answer": "me"}', "me"),
        ('{"question": "Who?", "answer": True}', "yes"),
        ('{"Question": "Who?", "ANSWER ": "me"}', "me"),
        ('{"question": "Who?", "answer": "two\nlines"}', "two lines"),
        ('{\\"question\\": \\"Who?\\", \\"answer\\": \\"me\\"}', "me"),
        ('{"q": "Who?", "a": "me"}', "me"),
        ('{"error": "bad"}\n{"question": "Who?", "answer": "me"}', "me"),
        ('[{"question": "Who?", "answer": "me"}, {"question": "Whe', "me"),
    ],
)
def test_damage_is_mended_within_limits(text: str, answer: str | None) -> None:
    if answer is None:
        assert outcome_of(text) in (Outcome.READ, Outcome.INVALID, Outcome.CUT)
    else:
        assert read_pair(text, FREE)["answer"] == answer


@pytest.mark.parametrize(
    ("reply", "outcome", "words"),
    [
        (Reply(text=GOOD, finish_reason="length"), Outcome.READ, ""),
        (Reply(text=GOOD + "\n" * 50, finish_reason="content_filter"), Outcome.READ, ""),
        (Reply(text="", finish_reason="length"), Outcome.CUT, "went to reasoning"),
        (Reply(text="", finish_reason="length", reasoning=GOOD), Outcome.CUT, "went to reasoning"),
        (Reply(text="<think>Let me see.", finish_reason="stop"), Outcome.CUT, "went to reasoning"),
        (Reply(text="<|channel|>analysis<|message|>Hm.", finish_reason="length"), Outcome.CUT, "went to reasoning"),
        (Reply(text='{"question": "Which?", "answer": "cop', finish_reason="stop"), Outcome.CUT, "breaks off"),
        (Reply(text='{"question": "Which?", "answer": ["cop"', finish_reason="stop"), Outcome.CUT, "breaks off"),
        (Reply(text='{"question": "Which?", "answer": 10', finish_reason="stop"), Outcome.CUT, "breaks off"),
        (Reply(text='{"question": "Which?",', finish_reason="stop"), Outcome.CUT, "breaks off"),
        (Reply(text='{"question": "Which?"}', finish_reason="length"), Outcome.CUT, "cut before"),
        (Reply(text="", reasoning=GOOD), Outcome.READ, ""),
        (Reply(text=" ", reasoning=f"Hm: {{a}}. Draft: {{}}\n```json\n{GOOD}\n```"), Outcome.READ, ""),
        (Reply(text="", reasoning="I think that it is copper."), Outcome.EMPTY, "thinking off"),
        (Reply(text="  \n"), Outcome.EMPTY, "empty"),
        (Reply(text="", refusal="I can't help with that."), Outcome.REFUSAL, "can't help"),
        (Reply(text="", finish_reason="content_filter"), Outcome.REFUSAL, "content_filter"),
        (Reply(text="", finish_reason="SAFETY"), Outcome.REFUSAL, "SAFETY"),
        (Reply(text="", finish_reason="tool_calls", tool_call="look_up"), Outcome.TOOL_CALL, "look_up"),
        (Reply(text="", finish_reason="tool_calls", tool_call=GOOD), Outcome.READ, ""),
        (Reply(text='{"error": "I am sorry, but I cannot help."}'), Outcome.REFUSAL, "refuses"),
        (Reply(text='{"question": "", "answer": "", "reason": "Lo siento."}'), Outcome.REFUSAL, "refuses"),
        (Reply(text="Copper is a metal."), Outcome.INVALID, "no question and answer"),
        (Reply(text='{"question": "Which?"}'), Outcome.INVALID, "lacks `answer`"),
    ],
)
def test_outcomes_are_told_apart(reply: Reply, outcome: Outcome, words: str) -> None:
    if outcome is Outcome.READ:
        assert read_pair(reply, FREE)["answer"] == "copper"
        return
    with pytest.raises(ReplyError, match=words) as caught:
        read_pair(reply, FREE)
    assert caught.value.outcome is outcome
    assert outcome.unjudged == (outcome is not Outcome.INVALID)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m unable to assist with this request.",
        "Sorry, I cannot create exam questions about this.",
        "As an AI, I must be careful here.",
        "Je suis désolé, je ne peux pas vous aider.",
        "Lo siento, no puedo ayudar con eso.",
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
        "Ich kann dir dabei leider nicht helfen.",
        "Mi dispiace, non posso aiutarti.",
        "Desculpe, não posso ajudar.",
        "К сожалению, я не могу помочь.",
        "抱歉，我无法提供帮助。",
        "申し訳ありませんが、お手伝いできません。",
        "죄송하지만 도와드릴 수 없습니다.",
        "عذرًا، لا أستطيع المساعدة.",
        "Üzgünüm, bu konuda yardımcı olamam.",
        "<think>Is this allowed?</think>I can’t do that.",
    ],
)
def test_refusals_are_known_in_many_languages(text: str) -> None:
    assert outcome_of(text) is Outcome.REFUSAL


def test_an_answer_that_sounds_like_a_refusal_is_an_answer() -> None:
    assert answer_of("I'm sorry, but I can't help with that.").startswith("I'm sorry")
    assert outcome_of("The passage says that nobody could. I cannot " + "say more. " * 300) is Outcome.INVALID


def test_a_plain_text_is_whole_or_none() -> None:
    assert plain_text("<think>Hm.</think>Ask for the dose.") == "Ask for the dose."
    for reply, outcome in (
        (Reply(text="Ask for the", finish_reason="length"), Outcome.CUT),
        (Reply(text="<think>Ask for"), Outcome.CUT),
        (Reply(text="Ask for the", finish_reason="content_filter"), Outcome.REFUSAL),
        (Reply(text=""), Outcome.EMPTY),
    ):
        with pytest.raises(ReplyError) as caught:
            plain_text(reply)
        assert caught.value.outcome is outcome


def test_a_rubric_reads_lists_and_the_cue_where_it_belongs() -> None:
    fields = {**rubric_fields(), "alignment": ["one", "two"]}
    assert parse_rubric(json.dumps(fields)).alignment == "one, two"
    completion = rubric_lines().removeprefix("Question type:")
    assert complete_rubric(completion).model_dump() == rubric_fields()
    # A base model goes on with the next rubric; a chat model may say something first.
    assert complete_rubric(f"{completion}\n\nRubric:\nQuestion type: a date\n").model_dump() == rubric_fields()
    assert complete_rubric(f"Here is the rubric:\n{rubric_lines()}").model_dump() == rubric_fields()


@pytest.mark.parametrize("fence", ["", "\n", "\n```"])
def test_an_object_with_its_closing_bracket_was_not_cut_whatever_quotes_it_lacks(fence: str) -> None:
    whole = '{"question": "Was the fee paid?", "answer": no"}' + fence
    assert outcome_of(Reply(text=whole, finish_reason="stop")) is Outcome.INVALID
    # The service says that it was cut, or the bracket is missing.
    assert outcome_of(Reply(text=whole, finish_reason="length")) is Outcome.CUT
    assert (
        outcome_of(Reply(text='{"question": "Was the fee paid?", "answer": no"', finish_reason="stop")) is Outcome.CUT
    )
