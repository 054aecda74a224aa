"""Long answers, lists, code, reasoning and dialogues: rows, replies, checks, marks, and what a target learns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from control_tokens_helpers import SHAPES, Shape
from hypothesis import given, settings
from hypothesis import strategies as st
from programs_helpers import TEXT, Scripted, pair, passage

from optimsyn.base.errors import DataError
from optimsyn.data.chat import sample_of
from optimsyn.data.forms import Heard, form_named
from optimsyn.data.forms.code import unnamed_note
from optimsyn.data.forms.long_answer import rouge_l
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.llm.reading.plain_text import item_lines
from optimsyn.programs.checker import Checker
from optimsyn.programs.pair import PairWriter
from optimsyn.programs.pair_reader import read_pair
from optimsyn.programs.prompts.writer_prompts import form_reply, pair_prompt
from optimsyn.programs.task_shape import TaskShape
from optimsyn.recipe.sections.synthesis import Checks
from optimsyn.target.encoding import encode, fitted

NEW = ("long_answer", "list", "code", "reasoning", "dialogue")
QUESTIONS = Path(__file__).parent / "questions_of_forms"
TABLE = "Lending grew:\n\n| year | books |\n|---|---|\n| 1904 | 600 |\n\nSee $\\frac{45000}{600}$.  \n  indented"
TURNS = ("When did the library of Harlow open?", "In 1904.", "How many books did Miss Crane give?", "600 books.")


def dialogue(*texts: str) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"form": "dialogue", "question": texts[0], "answer": texts[-1], "details": {"messages": messages}}


def question(**fields: Any) -> Question:
    return Question.model_validate({"id": "q", "question": "What of the library?", "answer": "x", **fields})


@pytest.mark.parametrize("name", NEW)
def test_rows_of_the_forms_are_read(name: str) -> None:
    form = form_named(name)
    rows = [json.loads(line) for line in (QUESTIONS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["split"] for row in rows} == {"validation", "test"}
    golds = [form.read_row(row) for row in rows]
    assert all(gold.answer.strip() for gold in golds)
    assert set(form.columns) <= {"language", "reasoning", "messages"}


def test_white_space_of_a_long_answer_survives_row_and_reply() -> None:
    form = form_named("long_answer")
    assert form.read_row({"answer": f"\n{TABLE}\n\n"}).answer == TABLE
    reply = json.dumps({"quote": "", "answer": TABLE, "question": "How did lending grow?"})
    assert read_pair(reply, form)["answer"] == TABLE
    lines = f"Quote: x\nAnswer: {TABLE}\nQuestion: How did lending grow?"
    assert read_pair(lines, form)["answer"] == TABLE
    asked = question(form="long_answer", answer=TABLE)
    assert sample_of(asked).messages[-1]["content"] == TABLE
    assert Question.model_validate_json(asked.model_dump_json()).answer == TABLE


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r'"$\frac{1}{2}$ and $\beta$"', r"$\frac{1}{2}$ and $\beta$"),
        (r'"$2 \times 3$, $\theta$, $\rho$, $\nabla f$"', r"$2 \times 3$, $\theta$, $\rho$, $\nabla f$"),
        (r'"one\nnot two\tthree"', "one\nnot two\tthree"),
        (r'["first line", "second line"]', "first line\nsecond line"),
    ],
)
def test_latex_that_json_has_cut_is_mended(written: str, meant: str) -> None:
    reply = f'{{"quote": "", "answer": {written}, "question": "How is it?"}}'
    assert read_pair(reply, form_named("long_answer"))["answer"] == meant


ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("long_answer", {}, "has no answer"),
    ("list", {"answer": "liver"}, "is no list of items"),
    ("list", {"answer": ["liver", "Liver"]}, "has an item twice"),
    ("list", {}, "has no answer"),
    ("code", {"answer": "```python\n```"}, "has no answer"),
    ("reasoning", {"answer": "1904"}, "has no `reasoning`"),
    ("dialogue", {}, "has no `messages`"),
    ("dialogue", {"messages": "[{"}, "not valid JSON"),
    (
        "dialogue",
        {"messages": [{"role": "system", "content": "Be kind."}]},
        "message 1 of `messages` has the role 'system'",
    ),
    ("dialogue", {"messages": dialogue("Who?", "She.")["details"]["messages"]}, "has 1 exchanges"),
    ("dialogue", {"messages": dialogue(*TURNS[:3])["details"]["messages"]}, "ends with the user's message"),
    ("dialogue", {"messages": [{"role": "user", "content": " "}]}, "message 1 of `messages` has no text"),
]


@pytest.mark.parametrize(("name", "row", "message"), ROWS)
def test_unusable_rows_say_what_is_wrong(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        form_named(name).read_row(row)


def test_further_spellings_of_rows() -> None:
    assert form_named("list").read_row({"answer": "a tax; a fee"}).details == {"items": ["a tax", "a fee"]}
    assert form_named("list").read_row({"answers": '["a", "b, c"]'}).answer == "- a\n- b, c"
    code = form_named("code").read_row({"answer": "    x = 1\n    if x:\n        y = 2\n"})
    assert code.answer == "x = 1\nif x:\n    y = 2"
    assert form_named("code").read_row({"answer": "```sql\nSELECT 1;\n```"}).details == {
        "language": "sql",
        "syntax_checked": False,
    }
    gsm = form_named("reasoning").read_row({"answer": "It opened in 1904. It moved 27 years later.\n#### 1931"})
    assert (gsm.answer, gsm.details) == ("1931", {"reasoning": "It opened in 1904. It moved 27 years later."})
    shared = [{"from": "human", "value": "When?"}, {"from": "gpt", "value": "In 1904."}] * 2
    gold = form_named("dialogue").read_row({"messages": json.dumps(shared)})
    assert (gold.question, gold.answer, len(gold.details["messages"])) == ("When?", "In 1904.", 4)


LONG = (
    "The library of Harlow opened in 1904 with 600 books, which Miss Edith Crane gave from her own house.\n\n"
    "- In 1931 it moved to a larger building beside the canal.\n- Today it lends about 45,000 books a year."
)
FINE: dict[str, dict[str, Any]] = {
    "long_answer": {"question": "How did the lending library of Harlow grow?", "answer": LONG},
    "list": {
        "question": "What does the library of Harlow lend and keep?",
        "answer": "- books\n- letters of the mill owners",
        "details": {"items": ["books", "letters of the mill owners"]},
    },
    "code": {
        "question": "Write a Python function that says whether the library of Harlow had moved by a year.",
        "answer": "def moved(year):\n    return year >= 1931",
        "details": {"language": "python", "syntax_checked": True},
    },
    "reasoning": {
        "question": "Which year did the library of Harlow leave its first reading room?",
        "answer": "1931",
        "details": {
            "reasoning": "It opened in 1904. In 1931 it moved to a larger building, so it left the room in 1931."
        },
    },
    "dialogue": dialogue(*TURNS),
}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("long_answer", {"answer": "It grew."}, "long_answer_well_formed"),
    (
        "long_answer",
        {"answer": LONG + "\n\nIn 1931 it moved to a larger building beside the"},
        "long_answer_well_formed",
    ),
    ("long_answer", {"answer": LONG + "\n```\nbooks"}, "long_answer_well_formed"),
    ("long_answer", {"answer": LONG + "\n| a | b |\n| c |"}, "long_answer_well_formed"),
    ("long_answer", {"answer": LONG + "\n\\begin{align} x"}, "long_answer_well_formed"),
    ("long_answer", {"answer": LONG + "\nQuestion: What else?"}, "long_answer_well_formed"),
    ("long_answer", {"answer": LONG.replace("45,000", "99,000")}, "long_answer_grounded"),
    ("long_answer", {"answer": TEXT}, "long_answer_grounded"),
    ("long_answer", {"answer": LONG + " <|im_end|>"}, "format"),
    ("list", {"details": {"items": ["books", "Books"]}}, "items_well_formed"),
    ("list", {"details": {"items": ["books"]}}, "items_well_formed"),
    ("list", {"details": {"items": ["books", "aeroplanes"]}}, "items_grounded"),
    ("code", {"answer": "def moved(year)\n    return"}, "code_well_formed"),
    ("code", {"answer": "books"}, "code_well_formed"),
    ("code", {"answer": "{'a': 1}", "details": {"language": "json"}}, "code_well_formed"),
    ("code", {"question": "Write a Python function for the age of emperors."}, "code_task_grounded"),
    ("reasoning", {"details": {"reasoning": "It opened in 1904 and then it moved."}}, "reasoning_well_formed"),
    ("reasoning", {"details": {"reasoning": "1931"}}, "reasoning_well_formed"),
    (
        "reasoning",
        {"details": {"reasoning": "Emperor Hadrian built walls and conquered Gaul before 1931."}},
        "reasoning_grounded",
    ),
    (
        "reasoning",
        {"answer": "1932", "details": {"reasoning": "In 1931 it moved, so one year later is 1932."}},
        "grounded",
    ),
    ("dialogue", dialogue(*TURNS[:2]), "dialogue_well_formed"),
    ("dialogue", dialogue(*TURNS[:2], *TURNS[:2]), "dialogue_well_formed"),
    ("dialogue", dialogue(*TURNS[:3], "600 books.\nUser: Thanks."), "dialogue_well_formed"),
    ("dialogue", dialogue(*TURNS[:3], "700 books."), "dialogue_grounded"),
]


def checked(name: str, **fields: Any) -> tuple[str, ...]:
    values = {"form": name, "quote": "", **fields}
    return Checker(Checks()).check(pair(**values), passage()).failed


@pytest.mark.parametrize("name", NEW)
def test_good_pairs_of_the_forms_are_valid(name: str) -> None:
    assert checked(name, **FINE[name]) == ()


@pytest.mark.parametrize(("name", "fields", "check"), BAD)
def test_each_check_of_the_forms_catches(name: str, fields: dict[str, Any], check: str) -> None:
    assert check in checked(name, **(FINE[name] | fields))


def test_code_in_other_languages_is_not_parsed_and_says_so() -> None:
    sql = {"answer": "SELEC nothing", "details": {"language": "sql", "syntax_checked": False}}
    assert checked("code", **(FINE["code"] | sql)) == ()
    content = form_named("code").content({"question": "q", "answer": "```sql\nSELECT 1\n```"}, 0)
    assert content.details == {"language": "sql", "syntax_checked": False}


@pytest.mark.parametrize(
    ("answer", "is_code"),
    [
        ("Limes prevent scurvy.", False),
        ("Limes (and lemons) prevent scurvy, said the surgeon", False),
        ("1904", False),
        ('"1904"', False),
        ("SELECT title FROM books", True),
        ("const opened = 1904", True),
        ('{"opened": 1904}', True),
        ("import library\nlibrary", True),
        ("ls -l books", True),
    ],
)
def test_code_of_no_named_language_parses_or_has_a_sign_of_code(answer: str, is_code: bool) -> None:
    fine = FINE["code"] | {"answer": answer, "details": {"syntax_checked": False}}
    assert ("code_well_formed" not in checked("code", **fine)) == is_code


def test_questions_of_code_without_a_language_are_noted() -> None:
    named = Question(id="a", question="q", answer="x = 1", form="code", details={"language": "python"})
    assert unnamed_note([named]) is None
    note = unnamed_note([named, named.model_copy(update={"details": {}})])
    assert note is not None and note.startswith("questions: 1 question whose answer is code names no language")


REPLIES: dict[str, dict[str, Any]] = {
    "long_answer": {"answer": LONG, "question": FINE["long_answer"]["question"]},
    "list": {"question": FINE["list"]["question"], "answer": ["books", "letters of the mill owners"]},
    "code": {"question": FINE["code"]["question"], "answer": "```python\n" + FINE["code"]["answer"] + "\n```"},
    "reasoning": {**{k: FINE["reasoning"][k] for k in ("question", "answer")}, **FINE["reasoning"]["details"]},
    "dialogue": {"messages": FINE["dialogue"]["details"]["messages"]},
}


@pytest.mark.parametrize("manner", ["chat", "base", "writer"])
@pytest.mark.parametrize("name", NEW)
def test_pairs_of_the_forms_are_written(name: str, manner: str) -> None:
    reply = json.dumps({"quote": "", **REPLIES[name]})
    if manner == "writer":
        form = form_named(name)
        # It leaves out the blank lines of a text.
        values = form.mended(dict(REPLIES[name]))
        reply = form_reply(form, "", {key: item_lines(value) for key, value in values.items()})
    model = Scripted(reply, chat=manner == "chat", writer=manner == "writer")
    made = PairWriter(model, TaskShape.only(name))(passage()).pair
    assert made.kind == name
    answer = FINE[name]["answer"]
    assert made.question == FINE[name]["question"]
    assert made.answer == (answer.replace("\n\n", "\n") if manner == "writer" else answer)
    assert made.details == FINE[name].get("details", {})
    call = model.calls[-1]
    asked = "\n".join(message["content"] for message in call.messages)
    if manner == "writer":
        assert (call.schema, call.stop) == (None, ("\n\n",))
        assert asked == pair_prompt(TEXT, None, form_named(name).described())
        return
    for key in form_named(name).reply_keys():
        assert f'"{key.name}"' in asked
    schema = call.schema
    assert schema is not None
    assert list(schema["properties"]) == ["quote", *(key.name for key in form_named(name).reply_keys())]


MARKS: list[tuple[str, dict[str, Any], str, bool | None, float, dict[str, float]]] = [
    # Words in common 4, lengths 5 and 6; longest common subsequence 4.
    (
        "long_answer",
        {"answer": "It moved in 1931, they say."},
        "It moved\nin 1931 then",
        None,
        8 / 11,
        {"rouge_l": 8 / 11},
    ),
    (
        "list",
        {"details": {"items": ["a tax", "fees"]}, "answer": "- a tax\n- fees"},
        "1. Fees\n2. tax",
        True,
        2 / 3,  # the numbers are words there
        {"item_f1": 1.0},
    ),
    (
        "list",
        {"details": {"items": ["tax", "fees"]}, "answer": "- tax\n- fees"},
        "tax, tolls and rent",
        False,
        1 / 3,
        {"item_f1": 0.4},
    ),
    ("code", {"answer": "x = 1\ny = 2"}, "Here:\n```python\n  x = 1  \n\n  y = 2\n```\nDone.", True, 1.0, {}),
    ("code", {"answer": "x = 1"}, "x = 2", False, 2 / 3, {}),
    ("reasoning", {"answer": "1931", "answers": ("1931",)}, "It moved.\n**Answer:** 1931.", True, 1.0, {}),
    ("reasoning", {"answer": "1931"}, "So it is \\boxed{1931}", True, 1.0, {}),
    ("reasoning", {"answer": "1931"}, "Answer: 1904\nNo.\n#### 1931", True, 1.0, {}),
    ("reasoning", {"answer": "1931"}, "It moved in 1931.\nIn 1904", False, 0.0, {}),
    ("dialogue", dialogue(*TURNS), "600 books", True, 1.0, {}),
]


@pytest.mark.parametrize(("name", "fields", "text", "correct", "f1", "further"), MARKS)
def test_marks(
    name: str, fields: dict[str, Any], text: str, correct: bool | None, f1: float, further: dict[str, float]
) -> None:
    marks = form_named(name).marks(question(**{"form": name, **fields}), Heard(text, (-1.0,)))
    assert marks.correct is correct
    assert marks.token_f1 == pytest.approx(f1)
    assert marks.further == pytest.approx(further)


def test_rouge_l_is_that_of_the_package() -> None:
    # From the package rouge-score 0.1.2, `RougeScorer(["rougeL"])`, on texts without articles and punctuation.
    gold = "police killed gunman in city on friday"
    assert rouge_l("police kill gunman on friday in city", [gold]) == pytest.approx(0.5714, abs=1e-4)
    assert rouge_l("gunman police killed", [gold]) == pytest.approx(0.4)
    assert rouge_l("", [gold]) == 0.0


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The longest common subsequence by its definition: the longest one of one text's that the other has in order."""
    for size in range(min(len(one), len(other)), 0, -1):
        for some in combinations(one, size):
            rest = iter(other)
            if all(word in rest for word in some):
                return size
    return 0


WORDS = st.lists(st.sampled_from("library moved bridge canal 1931 books".split()), max_size=7)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=2))
@settings(deadline=None, max_examples=60)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(said: list[str], golds: list[list[str]]) -> None:
    wanted = 0.0
    for gold in golds:
        common = longest_common(said, gold)
        if common:
            precision, recall = common / len(said), common / len(gold)
            wanted = max(wanted, 2 * precision * recall / (precision + recall))
    assert rouge_l(" ".join(said), [" ".join(gold) for gold in golds]) == pytest.approx(wanted)


CHATS = [shape for shape in SHAPES if shape.template]
SAMPLES: dict[str, Question | Pair] = {
    "free": question(answer="In 1904."),
    "open book": question(answer="In 1904.", context=TEXT),
    "long_answer": question(form="long_answer", answer=LONG),
    "code": question(form="code", answer="x = 1", details={"language": "python"}),
    "reasoning": pair(form="reasoning", **FINE["reasoning"]),
    "dialogue": question(**FINE["dialogue"]),
    "dialogue, open book": question(**FINE["dialogue"], context=TEXT),
}


def learned_text(tokenizer: Any, sample: Sample, max_length: int = 10_000) -> tuple[str, str]:
    """The text of a sample, and the part of it whose tokens are learned, by the tokenizer's offsets."""
    tokens, _ = fitted(tokenizer, sample, max_length)
    assert tokens.offsets is not None
    places = [place for place in tokens.learned if place < len(tokens.offsets)]
    # The bytes of one letter have one place in the text.
    spans = dict.fromkeys(tokens.offsets[place] for place in places)
    return tokens.text, "".join(tokens.text[start:stop] for start, stop in spans)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("shape", CHATS, ids=lambda shape: shape.name)
def test_tokens_are_those_of_the_template(shape: Shape, sample: str) -> None:
    """What is exported as messages gives, in a trainer's template, the tokens that are trained and scored here."""
    tokenizer = shape.tokenizer()
    # The template's date is fixed here, and a trainer's is today's.
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024")
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ strftime_now(form) }}", "2024-07-26")
    made = sample_of(SAMPLES[sample])
    assert not any(label in message["content"] for message in made.messages for label in ("Passage:", "Question:"))
    encoded = encode(tokenizer, made, 10_000)
    messages = [dict(message) for message in made.messages]
    assert encoded.input_ids == list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
    _, text = learned_text(tokenizer, made)
    places = [text.find(m["content"]) for m in made.messages if m["role"] == "assistant"]
    assert -1 not in places
    assert places == sorted(places)
    assert not any(m["content"].splitlines()[-1] in text for m in made.messages if m["role"] == "user")


MASKED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>user\n{{ m['content'] }}<|im_end|>\n{% else %}"
    "<|im_start|>assistant\n{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n{% endif %}{% endfor %}"
)


def test_a_dialogue_learns_what_the_templates_own_mask_marks() -> None:
    tokenizer = next(shape for shape in SHAPES if shape.name == "chatml").tokenizer()
    tokenizer.chat_template = MASKED
    made = sample_of(question(**FINE["dialogue"], context=TEXT))
    encoded = encode(tokenizer, made, 10_000)
    given = tokenizer.apply_chat_template(
        [dict(message) for message in made.messages],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert encoded.input_ids == list(given["input_ids"])
    assert [int(label != -100) for label in encoded.labels] == list(given["assistant_masks"])
    assert len(encoded.earlier_ends) == encoded.end_tokens == 1


def test_a_long_dialogue_loses_the_left_of_its_context_only() -> None:
    for shape in (CHATS[0], next(shape for shape in SHAPES if shape.name == "gpt")):
        tokenizer = shape.tokenizer()
        made = sample_of(question(**FINE["dialogue"], context=TEXT))
        longest = len(encode(tokenizer, made, 10_000).input_ids) - 40
        encoded = encode(tokenizer, made, longest)
        assert encoded.truncated
        assert len(encoded.input_ids) <= longest
        text, learned = learned_text(tokenizer, made, longest)
        assert learned == learned_text(tokenizer, made)[1]
        assert TEXT not in text
        assert all(turn in text for turn in (TEXT[-40:], *TURNS))


def test_a_base_model_sees_a_dialogue_and_steps_with_labels() -> None:
    made = sample_of(question(**FINE["dialogue"], context="Text."))
    assert made.prompt + made.completion == (
        "Passage: Text.\nUser: When did the library of Harlow open?\nAssistant: In 1904.\n"
        "User: How many books did Miss Crane give?\nAssistant: 600 books."
    )
    assert [made.prompt[start:stop] for start, stop in made.earlier] == [" In 1904."]
    tokenizer = next(shape for shape in SHAPES if shape.name == "gpt").tokenizer()
    encoded = encode(tokenizer, made, 10_000)
    learned = tokenizer.decode([label for label in encoded.labels if label != -100])
    assert learned == " In 1904. 600 books.<|endoftext|>"
    steps = sample_of(question(form="reasoning", answer="1931", details={"reasoning": "It moved."}))
    assert steps.prompt + steps.completion == "Question: What of the library?\nReasoning: It moved.\nAnswer: 1931"
