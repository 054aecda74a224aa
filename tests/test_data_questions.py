"""Questions of every habit, splits, and the wall between validation and test."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from data_helpers import load_documents, row, text_of, write_lines
from hypothesis import given
from hypothesis import strategies as st

from optimsyn.base.errors import DataError
from optimsyn.data.duplicates import NearDuplicates, overlap, unique_pairs
from optimsyn.data.files.rows import exploded
from optimsyn.data.question_rows import Library, UnknownDocumentError, question_of
from optimsyn.data.questions import load_questions, read_questions
from optimsyn.data.records import Document, Pair, Question
from optimsyn.data.splits import balanced_sample, split_by_group
from optimsyn.recipe.recipe import Documents, Questions, Source

DOCUMENT = Document(id="d1", text=text_of(40), group="mill")


def read(force: bool | None = None, column: str | None = None, **values: Any) -> Question:
    given_row = row(**{"question": "Who built it?", **values})
    return question_of(given_row, Library.of([DOCUMENT]), open_book=force, subtask=column)


@pytest.mark.parametrize(
    "values",
    [
        {"choices": ["Ann", "Bea"], "answer": "Bea"},
        {"choices": ["Ann", "Bea"], "answer": " bea "},
        {"choices": ["Ann", "Bea"], "answer": "B"},
        {"choices": ["Ann", "Bea"], "answer": "(b)"},
        {"choices": ["Ann", "Bea"], "answer": 1},
        {"choices": ["Ann", "Bea"], "label": "B"},
        {"choices": ["Ann", "Bea"], "answer_index": 1},
        {"choices": ["Ann", "Bea"], "answer_index": "1", "answer": "Bea"},
        {"choices": ["Ann", "Bea"], "answer_index": 1.0, "answer": "B."},
        {"choices": '["Ann", "Bea"]', "answer": "B"},
        {"choices": "['Ann', 'Bea']", "answer": "Bea"},
        {"choices": {"label": ["A", "B"], "text": ["Ann", "Bea"]}, "answer": "B"},
        {"choices": {"label": ["1", "2"], "text": ["Ann", "Bea"]}, "answer": "2"},
        {"choices": '{"label": ["1", "2"], "text": ["Ann", "Bea"]}', "answer": "2"},
        {"choices": [{"label": "X", "text": "Ann"}, {"label": "Y", "text": "Bea"}], "answer": "Y"},
    ],
)
def test_every_way_to_name_the_gold_option(values: dict[str, Any]) -> None:
    question = read(**values)
    assert (question.choices, question.answer_index, question.answer) == (("Ann", "Bea"), 1, "Bea")
    assert question.kind == "multiple_choice"


def test_the_text_of_an_option_comes_before_letters_and_indices() -> None:
    assert read(choices=["B", "A"], answer="A").answer_index == 1
    assert read(choices=[3, 1, 0], answer=1).answer_index == 1
    assert read(choices=["yes", "no"], answer=False).answer == "no"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "has no answer"),
        ({"answer": "  "}, "has no answer"),
        ({"answers": {"text": [], "answer_start": []}}, "has no answer"),
        ({"answer": {"a": 1}}, "`answer` is an object, it must be a list"),
        ({"question": None, "answer": "x"}, "has no `question`"),
        ({"question": 5, "answer": "x"}, "`question` is a number"),
        ({"question": " ", "answer": "x"}, "`question` is empty"),
        ({"choices": ["Ann", "Bea"]}, "has choices but no answer"),
        ({"choices": ["Ann", "Bea"], "answer": "Cid"}, "neither one of its 2 choices nor their letter"),
        ({"choices": ["Ann", "Bea"], "answer": "C"}, "neither one of its 2 choices nor their letter"),
        ({"choices": ["Ann", "Bea"], "answer": "2"}, "index only in `answer_index`"),
        ({"choices": ["Ann", "Bea"], "answer_index": 2}, r"names none of its 2 choices \(counted from 0\)"),
        ({"choices": ["Ann", "Bea"], "answer_index": -1}, "names none"),
        ({"choices": ["Ann", "Bea"], "answer_index": "one"}, "names none"),
        ({"choices": ["Ann", "Bea"], "answer_index": 0, "answer": "Bea"}, "contradictory"),
        ({"choices": ["Ann", "Ann"], "answer": "Ann"}, "listed twice"),
        ({"choices": ["Ann"], "answer": "Ann"}, "has 1 option"),
        ({"choices": ["Ann", ""], "answer": "Ann"}, "option B of `choices` is empty"),
        ({"choices": "Ann|Bea", "answer": "Ann"}, r'must be a list \(in CSV: \["first", "second"\]\)'),
        ({"choices": "[Ann, Bea", "answer": "Ann"}, "not valid JSON"),
        ({"choices": ["Ann", ["x"]], "answer": "Ann"}, "is a list, it must be text"),
        ({"answer": "x", "open_book": True}, "neither `document_id` nor `context`"),
        ({"answer": "x", "open_book": "perhaps"}, "must be true or false"),
        ({"answer": "half \ud83d"}, "surrogate"),
        ({"choices": "[" * 99_999, "answer": "a"}, "`choices` is not valid JSON"),
        ({"answer": "a", "id": "q\ud83d"}, "surrogate"),
        ({"answer": "a", "subtask": "s\ud83d"}, "surrogate"),
        ({"answer": "a", "group": "g\ud83d"}, "surrogate"),
        ({"answer": "a", "context": 3}, "`context` is a number, it must be text"),
        ({"answer": "a", "context": {"contexts": ["x"]}}, "`context` is an object.*their.column"),
    ],
)
def test_unusable_rows_say_why(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(**values)


def test_free_answers() -> None:
    assert read(answer=1742).answer == "1742"
    assert read(answer=True).answer == "yes"
    assert read(answers=["the mill", "a mill", "the mill"]).answers == ("the mill", "a mill")
    assert read(answer="a mill", answers='["the mill"]').answers == ("a mill", "the mill")
    assert read(answers={"text": ["1742", "in 1742"], "answer_start": [4, 1]}).answers == ("1742", "in 1742")
    assert read(answer="[sic] a mill").answer == "[sic] a mill"


def test_open_and_closed_book() -> None:
    closed = read(answer="x", document_id="d1")
    assert (closed.context, closed.group, closed.document_id) == (None, "mill", "d1")
    assert read(answer="x", document_id="d1", open_book="true").context == DOCUMENT.text
    assert read(answer="x", document_id="d1", open_book=True).context == DOCUMENT.text
    assert read(force=True, answer="x", document_id="d1").context == DOCUMENT.text
    assert read(force=False, answer="x", context="Text.", open_book=True).context is None
    own = read(answer="x", context=["One.", "Two."])
    assert own.context == "One.\n\nTwo."
    # A context that is one of the documents is recognised.
    assert read(answer="x", context=DOCUMENT.text.upper()).group == "mill"
    with pytest.raises(UnknownDocumentError, match="'d9' is not among the documents"):
        read(answer="x", document_id="d9", open_book=True)


def test_a_context_that_cannot_be_read_is_no_matter_closed_book() -> None:
    assert read(answer="Dutch engineers", context=3, open_book=False).context is None
    assert read(force=False, answer="Dutch engineers", context={"x": 1}).context is None
    assert read(answer="Dutch engineers", context=[]).context is None


def test_subtask_column() -> None:
    assert read(answer="x").subtask == "all"
    assert read(answer="x", subtask="dates").subtask == "dates"
    assert read(answer="x", field="law", column="field").subtask == "law"
    with pytest.raises(DataError, match=r"has no `filed`.*columns there: answer, field, question"):
        read(answer="x", field="law", column="filed")


def test_a_column_in_other_letters_is_named() -> None:
    shouting = row(QUESTION="Who?", Answer="Ann")
    with pytest.raises(DataError, match=r"has no `question`; .*\{question: QUESTION\}"):
        question_of(shouting, Library.of([]), open_book=None, subtask=None)


def test_a_row_with_several_questions() -> None:
    columns = {"id": "qs.uid", "question": "qs.q", "answer": "qs.a", "context": "t", "group": "uid"}
    held = row(
        id=["1", "2"], question=["A?", "B?"], answer=[["x", "y"], 4.5], context=["p", "q"], group="g", qs=[], t=[]
    )
    source = Source(hub="some/data", columns=columns)
    questions = [question_of(r, Library.of([]), open_book=None, subtask=None) for r in exploded([held], source)]
    assert [(q.id, q.question, q.answers, q.context, q.group) for q in questions] == [
        ("1", "A?", ("x", "y"), "p\n\nq", "g"),
        ("2", "B?", ("4.5",), "p\n\nq", "g"),
    ]


def test_csv_questions(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text('question,answer,choices\nIs it old?,A,"[""yes"", ""no""]"\nWho built it?,Dutch engineers,\n')
    sets = read_questions(Questions(validation=Source(path=str(path))), [], 0)
    kinds = {q.question: (q.kind, q.answer) for q in [*sets.validation, *sets.test]}
    assert kinds == {"Is it old?": ("multiple_choice", "yes"), "Who built it?": ("free", "Dutch engineers")}


def questions_file(path: Path, count: int, **values: Any) -> Path:
    rows = [
        {"id": f"{path.stem}{i}", "question": f"What is in room {path.stem} {i}?", "answer": "salt", **values}
        for i in range(count)
    ]
    return write_lines(path, rows)


def test_faults_name_file_and_row(tmp_path: Path) -> None:
    path = questions_file(tmp_path / "v.jsonl", 4)
    with path.open("a") as file:
        file.write(json.dumps({"id": "v0", "question": "Again?", "answer": "salt"}) + "\n")
        file.write(json.dumps({"question": "And?"}) + "\n")
    with pytest.raises(
        DataError, match=r"(?s)v\.jsonl:6: question has no answer.*v\.jsonl:5: id 'v0' is taken by .*v\.jsonl:1"
    ):
        load_questions(Questions(validation=Source(path=str(path))), [], 0)


def test_a_test_question_among_the_validation_questions_is_refused(tmp_path: Path) -> None:
    validation = questions_file(tmp_path / "v.jsonl", 6)
    test = questions_file(tmp_path / "t.jsonl", 6)
    with test.open("a") as file:
        file.write(json.dumps({"id": "leak", "question": "what is in  ROOM v 3", "answer": "x"}) + "\n")
    config = Questions(validation=Source(path=str(validation)), test=Source(path=str(test)))
    with pytest.raises(
        DataError, match=r"t\.jsonl:7: test question 'leak' is also validation question 'v3' \(.*v\.jsonl:4"
    ):
        load_questions(config, [], 0)


def test_a_nearly_equal_test_question_is_left_out_and_listed(tmp_path: Path) -> None:
    words = "Which of the two engineers who came from Delft drew the plan of the sluice gate"
    validation = write_lines(tmp_path / "v.jsonl", [{"id": "v", "question": f"{words}?", "answer": "x"}])
    rows = [
        {"id": "near", "question": f"{words} then?", "answer": "x"},
        {"id": "far", "question": "When?", "answer": "y"},
    ]
    config = Questions(
        validation=Source(path=str(validation)), test=Source(path=str(write_lines(tmp_path / "t.jsonl", rows)))
    )
    sets = load_questions(config, [], 0)
    assert [q.id for q in sets.test] == ["far"]
    assert [(loss.id, loss.stage) for loss in sets.losses] == [("near", "split")]
    assert "nearly the same as validation question v" in sets.losses[0].reason
    assert sets.warnings


def test_the_same_question_about_another_text_is_another_question(tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "question": "Who owned the mill?", "answer": "x", "context": text_of(30, 50 * i)}
        for i in range(4)
    ]
    sets = load_questions(Questions(validation=Source(path=str(write_lines(tmp_path / "q.jsonl", rows)))), [], 0)
    assert len(sets.validation) == len(sets.test) == 2
    assert sets.losses == []


def test_one_file_read_as_both_sets_is_explained(tmp_path: Path) -> None:
    path = str(questions_file(tmp_path / "v.jsonl", 9))
    config = Questions(validation=Source(path=path), test=Source(path=path))
    with pytest.raises(DataError, match="is read as a validation and as a test question; set `where`"):
        load_questions(config, [], 0)


def test_where_splits_one_file(tmp_path: Path) -> None:
    rows = [{"question": f"Room {i}?", "answer": "x", "split": "test" if i % 3 else "validation"} for i in range(9)]
    path = str(write_lines(tmp_path / "q.jsonl", rows))
    config = Questions(
        validation=Source(path=path, where={"split": "validation"}), test=Source(path=path, where={"split": "test"})
    )
    sets = load_questions(config, [], 0)
    assert (len(sets.validation), len(sets.test)) == (3, 6)


def test_questions_on_documents_outside_the_sample(tmp_path: Path) -> None:
    texts = [{"id": f"d{i}", "text": text_of(40, 30 * i)} for i in range(20)]
    config = Documents(source=Source(path=str(write_lines(tmp_path / "d.jsonl", texts)), limit=5))
    rows = [{"question": f"Q{i}?", "answer": "x", "document_id": f"d{i}", "open_book": True} for i in range(20)]
    questions = Questions(validation=Source(path=str(write_lines(tmp_path / "q.jsonl", rows))))
    few = load_questions(questions, load_documents(config, 0), 0)
    assert len(few.validation) + len(few.test) == 5
    assert len(few.losses) == 15
    whole = load_questions(questions, load_documents(config, 0, everything=True), 0)
    assert len(whole.validation) + len(whole.test) == 20
    unknown = read_questions(questions, load_documents(config, 0), 0, complete=True)
    assert unknown.problems == []
    assert "15 of 20 questions" in unknown.warnings[0]


def made(groups: list[int], subtasks: int = 1) -> list[Question]:
    return [
        Question(id=str(i), question=f"Q{i}", answer="x", group=f"g{group}", subtask=f"s{i % subtasks}")
        for i, group in enumerate(groups)
    ]


@given(
    groups=st.lists(st.integers(0, 12), min_size=2, max_size=80).filter(lambda g: len(set(g)) > 1),
    fraction=st.floats(0.1, 0.9),
    seed=st.integers(0, 5),
)
def test_splits_keep_groups_whole_and_lose_nothing(groups: list[int], fraction: float, seed: int) -> None:
    questions = made(groups)
    validation, test = split_by_group(questions, fraction, seed)
    assert {q.group for q in validation}.isdisjoint({q.group for q in test})
    assert sorted(q.id for q in [*validation, *test]) == sorted(q.id for q in questions)
    assert validation
    assert test
    backwards, _ = split_by_group(questions[::-1], fraction, seed)
    assert {q.id for q in backwards} == {q.id for q in validation}


def test_single_questions_split_to_the_fraction() -> None:
    validation, test = split_by_group(made(list(range(100))), 0.3, 0)
    assert (len(validation), len(test)) == (70, 30)


def test_one_group_is_split_by_document() -> None:
    questions = [q.model_copy(update={"document_id": f"d{i // 2}"}) for i, q in enumerate(made([1] * 8))]
    validation, test = split_by_group(questions, 0.5, 0)
    assert len(validation) == len(test) == 4
    assert not {q.document_id for q in validation} & {q.document_id for q in test}


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"all 3 questions are of one group \('g1'\).*questions\.test"):
        split_by_group(made([1, 1, 1]), 0.5, 0)


@given(limit=st.integers(1, 40), seed=st.integers(0, 3))
def test_balanced_samples_take_from_every_subtask(limit: int, seed: int) -> None:
    questions = [*made([0] * 30, subtasks=3), Question(id="rare", question="R", answer="x", subtask="rare")]
    sample = balanced_sample(questions, limit, seed)
    assert len(sample) == min(limit, 31)
    assert [q.id for q in sample] == [q.id for q in questions if q in sample]
    counts = Counter(q.subtask for q in sample)
    if limit >= 4:
        assert counts["rare"] == 1
        assert max(counts.values()) - min(counts[f"s{i}"] for i in range(3)) <= 1


def test_near_duplicates() -> None:
    index = NearDuplicates(
        ["What were the total sales of the mill in 2018?", "Which vitamin prevents scurvy?", "Is it?"]
    )
    assert index.match("what were the TOTAL sales of the mill in 2018") is not None
    assert index.match("What were the total sales of the mill in 2019?") is None
    match = index.match("In 2018, what were the total sales of the mill?")
    assert match is not None
    assert match.index == 0
    assert match.similarity < 1
    assert index.match("Which vitamin prevents rickets?") is None
    assert index.match("Was it?") is None
    assert index.match("") is None


@given(st.lists(st.text(alphabet="abc 12?"), max_size=12), st.text(alphabet="abc 12?"))
def test_an_indexed_text_is_always_found(texts: list[str], text: str) -> None:
    index = NearDuplicates([*texts, text])
    match = index.match(text)
    assert match is not None
    assert match.similarity == 1
    assert index.match(texts[0]) is not None if texts else True


def test_questions_of_one_stock_phrase_are_not_all_compared_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"What does note {i} of the ledger of {i * 7919 % 1000} record in {i % 97}?" for i in range(10_000)]
    looked_at: list[int] = []
    candidates = NearDuplicates.candidates

    def counted(self: NearDuplicates, features: frozenset[str]) -> set[int]:
        found = candidates(self, features)
        looked_at.append(len(found))
        return found

    monkeypatch.setattr(NearDuplicates, "candidates", counted)
    index = NearDuplicates(texts[::2])
    assert [text for text in texts[1::2] if index.match(text) is not None] == []
    # Every text shares the stock phrase with all 5,000.
    assert len(looked_at) == 5000
    assert sum(looked_at) / len(looked_at) < 250


@given(
    texts=st.lists(st.lists(st.sampled_from("ab cd ef gh ij 12".split()), max_size=9).map(" ".join), max_size=9),
    words=st.lists(st.sampled_from("ab cd ef gh ij 12".split()), max_size=9),
    threshold=st.sampled_from([0.3, 0.5, 0.8, 1.0]),
)
def test_the_most_alike_text_is_found_whatever_is_left_out_of_the_search(
    texts: list[str], words: list[str], threshold: float
) -> None:
    def features(text: str) -> set[str]:
        found = text.split()
        return {*found, *(f"{a} {b}" for a, b in pairwise(found))}

    text = " ".join(words)
    found = NearDuplicates(texts, threshold).match(text)
    alike = [
        len(features(text) & features(other)) / len(features(text) | features(other))
        for other in texts
        if features(text) | features(other) and other.split().count("12") == words.count("12")
    ]
    if max(alike, default=0.0) >= threshold and threshold < 1:
        assert found is not None
        assert found.similarity >= min(0.999, max(alike)) or sorted(texts[found.index].split()) == sorted(words)


def test_overlap_compares_options_of_stock_questions() -> None:
    def choice(name: str, *options: str) -> Question:
        return Question(id=name, question="Which is true?", answer=options[0], choices=options, answer_index=0)

    assert overlap([choice("a", "x y", "z")], [choice("b", "p q", "r")]) == []
    assert overlap([choice("a", "x y", "z")], [choice("b", "x y", "z")]) == [(0, 0, True)]


def test_unique_pairs_keep_the_first_of_each_kind() -> None:
    def pair(question: str, answer: str, context: str | None = None) -> Pair:
        return Pair(id=question + answer, question=question, answer=answer, passage_id="p", context=context)

    pairs = [
        pair("Who built the old tidal mill at the river mouth?", "Dutch engineers"),
        pair("Who built the old tidal mill at the river mouth", "Dutch engineers"),
        pair("Who built the very old tidal mill at the river mouth?", "dutch engineers"),
        pair("who built the old tidal mill at the river mouth?", "Griet"),
        pair("Who burnt the old tidal mill at the river mouth?", "a storm"),
        pair("Who built the old tidal mill at the river mouth?", "Dutch engineers", "Another text."),
    ]
    assert unique_pairs(pairs) == [0, 4, 5]


def test_quickstart_questions_come_with_the_package() -> None:
    documents = load_documents(Documents(source=Source(path="embedded:quickstart")), 0)
    config = Questions(
        validation=Source(path="embedded:quickstart", where={"split": "validation"}),
        test=Source(path="embedded:quickstart", where={"split": "test"}),
    )
    sets = read_questions(config, documents, 0, complete=True)
    assert sets.problems == []
    assert (len(sets.validation), len(sets.test)) == (60, 60)
