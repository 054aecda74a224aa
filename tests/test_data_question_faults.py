"""Faults of question files are told in one round, and documents that are named and not there are noted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_helpers import recipe_of, text_of, write_lines

from optimsyn.base.errors import DataError
from optimsyn.data.documents import load_document_set, read_documents
from optimsyn.data.duplicates import contradicting
from optimsyn.data.files.rows import shortened
from optimsyn.data.missing_documents import Names
from optimsyn.data.questions import check_questions, load_questions, read_questions
from optimsyn.data.records import Document, Question
from optimsyn.machine.preflight import validate
from optimsyn.recipe.recipe import Documents, Questions, Source

DOCUMENTS = [Document(id=f"texts/d{i}.md", text=text_of(40, 30 * i), group=f"g{i}") for i in range(4)]


def config(path: Path, **source: Any) -> Questions:
    return Questions(validation=Source(path=str(path), **source))


def problems(questions: Questions, documents: list[Document] | None = None) -> str:
    return "\n".join(read_questions(questions, documents, 0).problems)


def test_every_kind_of_fault_is_told_in_one_round(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows: list[Any] = [
        {"id": "a", "question": "Who built it?", "answer": "engineers"},
        "torn",
        [1],
        {"id": "b", "question": " ", "answer": ""},
        {"id": "a", "question": 5, "answer": "x"},
        {"id": "c", "question": "Old?", "choices": ["yes", "yes"], "answer": "yes", "open_book": "perhaps"},
        {"id": "d", "question": "half \ud83d", "answer": "x"},
        {"id": "e", "question": "When?", "answer": "1742"},
    ]
    path.write_text("\n".join('{"id": "t", "quest' if row == "torn" else json.dumps(row) for row in rows))
    lines = problems(config(path)).splitlines()
    for place, said in (
        (2, "not valid JSON"),
        (3, "a row must be a JSON object, this is a list"),
        (4, "question `question` is empty; and has no answer"),
        (5, "`question` is a number"),
        (5, "id 'a' is taken by"),
        (6, "listed twice among the choices; and open_book is 'perhaps'"),
        (7, "surrogate"),
    ):
        assert any(f"q.jsonl:{place}: " in line and said in line for line in lines), (place, said)
    assert len(lines) == 7
    with pytest.raises(DataError, match=r"(?s)q\.jsonl:2: .*q\.jsonl:7: "):
        load_questions(config(path), [], 0)


def test_both_files_are_told_of_at_once(tmp_path: Path) -> None:
    good = {"question": "Which wheel turned twice a day?", "answer": "the mill's"}
    validation = write_lines(
        tmp_path / "v.jsonl", [good, {"question": "Why?"}, {"question": "When?", "answer": "then"}]
    )
    test = write_lines(tmp_path / "t.jsonl", [{"question": "Where?"}, {**good, "id": "leak"}])
    both = Questions(validation=Source(path=str(validation)), test=Source(path=str(test)))
    said = problems(both)
    assert "v.jsonl:2: question has no answer" in said
    assert "t.jsonl:1: question has no answer" in said
    assert "t.jsonl:2: test question 'leak' is also validation question 'v:1'" in said
    (tmp_path / "x.csv").write_bytes(b"question,answer\n\xff\xfe\x00")
    (tmp_path / "y.json").write_text("{")
    unreadable = Questions(validation=Source(path=str(tmp_path / "x.csv")), test=Source(path=str(tmp_path / "y.json")))
    with pytest.raises(DataError, match=r"(?s)x\.csv.*\n.*y\.json:1: not valid JSON"):
        read_questions(unreadable, None, 0)
    (tmp_path / "empty.jsonl").touch()
    empty = Source(path=str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError) as nothing:
        read_questions(Questions(validation=empty, test=empty), None, 0)
    said = "empty.jsonl: there are no rows in it; name a file or dataset that has some"
    assert str(nothing.value).splitlines() == [f"questions.validation: {said}", f"questions.test: {said}"]
    with pytest.raises(DataError, match=f"^documents.source: {said}"):
        load_document_set(Documents(source=empty))
    with pytest.raises(DataError, match=r"(?s)y\.json:1: not valid JSON.*\n.*v\.jsonl:2: question has no answer"):
        read_questions(
            Questions(validation=Source(path=str(validation)), test=Source(path=str(tmp_path / "y.json"))), [], 0
        )


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("q.csv", "question,answer\nA?,x,y,z\n,x\nB?,x,y\nC?,ok\nD?,ok\n", (2, 3, 4)),
        ("q.json", '[{"question": "A?"}, 3, {"question": "B?", "answer": "x"}, "y"]', (1, 2, 4)),
        ("q.jsonl", '{"question": "A?", "answer": "x"}\n{\n{"question": "B?"}\n', (2, 3)),
    ],
)
def test_every_format_tells_all_of_its_rows(tmp_path: Path, name: str, text: str, lines: tuple[int, ...]) -> None:
    (tmp_path / name).write_text(text)
    said = problems(config(tmp_path / name)).splitlines()
    assert [line.removeprefix(f"{tmp_path / name}:").partition(":")[0] for line in said] == [str(n) for n in lines]


def test_wrong_columns_are_told_with_what_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"q": "A?", "a": "x", "lang": "en"}\n{"q\n')
    with pytest.raises(DataError) as caught:
        read_questions(config(path, columns={"question": "qq", "answer": "aa"}, where={"lag": "en"}), [], 0)
    for part in ("q.jsonl:2: not valid JSON", "columns.question", "columns.answer", "where.lag"):
        assert part in str(caught.value)


def test_rows_outside_of_the_sample_are_checked_too(tmp_path: Path) -> None:
    """Whoever fixes a file by removing rows draws another sample, and would meet the next faults there."""
    rows = [{"question": f"Q{i}?", "answer": "x" if i % 2 else ""} for i in range(20)]
    path = write_lines(tmp_path / "q.jsonl", rows)
    assert len(read_questions(config(path, limit=4), [], 0).problems) == 10
    kept = write_lines(tmp_path / "k.jsonl", rows[1::2])
    sets = read_questions(config(kept, limit=4), [], 0)
    assert sets.problems == []
    assert len(sets.validation) + len(sets.test) == 4


def test_few_lines_hold_some_of_every_kind() -> None:
    found = [f"q.jsonl:{i}: question has no answer; give it one" for i in range(1, 60)]
    found += ["q.jsonl:60: `question` is empty", "q.jsonl:61: id 'z' is taken by q.jsonl:3; ids must be unique"]
    shown = shortened(found, "questions")
    assert len(shown) == 21
    assert shown[-3:] == [*found[-2:], "... and 41 more of questions"]
    assert shown[:18] == found[:18]
    assert shortened(found[:20]) == found[:20]


def test_a_file_without_a_usable_row_is_short_and_shows_every_kind(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": f"Q{i}?"} for i in range(50)]
    rows += [{"question": "What?", "answer": "x", "choices": ["a", "b"]}]
    said = problems(config(write_lines(tmp_path / "q.jsonl", rows))).splitlines()
    assert len(said) == 8
    assert said[-1] == "questions.validation: none of 51 rows is usable"
    assert "neither one of its 2 choices" in said[-3]


def test_documents_are_told_in_one_round_too(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "a", "text": "One text."}\n{\n{"id": "b", "text": " "}\n{"id": "c", "text": "one TEXT."}\n')
    said = "\n".join(read_documents(Documents(source=Source(path=str(path)))).problems)
    assert "d.jsonl:2: not valid JSON" in said
    assert "d.jsonl:3: document `text` is empty" in said
    assert "d.jsonl:4: the same text as" in said


def test_questions_that_are_too_long_are_told_with_the_other_faults(tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "question": "word " * (60 if i else 1) + "?", "answer": "x"} for i in range(3)]
    write_lines(tmp_path / "questions.jsonl", [*rows, {"question": "Why?"}])
    found = validate(recipe_of(tmp_path, models={"target": {"name": "embedded", "max_length": 40}}))
    said = "\n".join(found.problems)
    assert "questions.jsonl:4: question has no answer" in said
    assert "question 'q1' takes at least" in said


def test_unknown_documents_are_noted_with_the_closest_ids(tmp_path: Path) -> None:
    named = ["texts/d0.md", "d1", "D2.md", "d1", "zzz", "D02.MD", "quite other", "no"]
    rows = [{"question": f"Q{i}?", "answer": "x", "document_id": name} for i, name in enumerate(named)]
    path = write_lines(tmp_path / "q.jsonl", rows)
    sets = read_questions(config(path), DOCUMENTS, 0, complete=True)
    assert sets.problems == []
    assert len(sets.validation) + len(sets.test) == 8
    assert sets.warnings == sets.astray
    (note,) = sets.astray
    assert note.startswith("questions.validation: 7 of 8 questions name a document_id that no document has: ")
    assert "'d1' (q.jsonl:2, did you mean 'texts/d1.md'?)" in note
    assert "'D2.md' (q.jsonl:3, did you mean 'texts/d2.md'?)" in note
    assert "'zzz' (q.jsonl:5) and 3 more; they are used, but no document tells which of them belong together" in note
    assert str(tmp_path) not in note
    # Where not all documents were given, nobody can tell.
    assert read_questions(config(path), DOCUMENTS, 0).astray == []
    assert read_questions(config(path), None, 0, complete=False).astray == []


def test_questions_with_and_without_the_text_are_told_apart(tmp_path: Path) -> None:
    rows = [
        {"question": "A?", "answer": "x", "document_id": "d9", "open_book": True},
        {"question": "B?", "answer": "x", "document_id": "d9", "context": "A text of its own."},
        {"question": "C?", "answer": "x", "document_id": "d8"},
        {"question": "D?", "answer": "x"},
        {"question": "E?", "answer": "x"},
    ]
    path = write_lines(tmp_path / "q.jsonl", rows)
    left_out, used = read_questions(config(path), DOCUMENTS, 0, complete=True).astray
    assert "1 of 5 questions" in left_out
    assert "so they are left out" in left_out
    assert "2 of 5 questions" in used
    found, notes = check_questions(
        config(path), Source(path=str(path)), "questions.validation", DOCUMENTS, complete=True
    )
    assert (found, notes) == ([], [left_out, used])
    documents = write_lines(tmp_path / "documents.jsonl", [d.model_dump() for d in DOCUMENTS])
    recipe = recipe_of(tmp_path, documents={"source": str(documents)}, questions={"validation": str(path)})
    assert {left_out, used} <= set(validate(recipe, offline=True, here=False).warnings)


def test_closest_ids() -> None:
    names = Names(["a/Scurvy.md", "rickets_2.pdf", "PMC00123", "beriberi"])
    assert names.closest("scurvy") == "a/Scurvy.md"
    assert names.closest("other/scurvy.txt") == "a/Scurvy.md"
    assert names.closest("rickets-02") == "rickets_2.pdf"
    assert names.closest("beriberry") == "beriberi"
    assert names.closest("pellagra") is None
    assert names.closest("...") is None
    many = Names(f"doc{i}" for i in range(50_000))
    assert many.closest("doc31x") is not None


def test_what_a_header_lacks_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("id,frage,antwort\n1,A?,x\n2,B?,\n3,,z\n")
    said = problems(config(path)).splitlines()
    assert len(said) == 2 and said[0].startswith(f"{path}:2: question has no `question`")
    assert "has no answer" in said[0] and said[0].endswith("(the same in all 3 rows)")
    path.write_text("id,question,antwort\n1,A?,x\n2, ,y\n3,C?,z\n")
    said = problems(config(path)).splitlines()
    assert "has no answer" in said[0] and said[0].endswith("(the same in all 3 rows)")
    assert [line.count("has no answer") for line in said] == [1, 0, 0] and ":3: question" in said[1]


def test_figures_of_one_value_do_not_contradict() -> None:
    def asked(answer: str) -> Question:
        return Question(id=answer, question="What was the revenue?", answer=answer, form="figure")

    first, second = asked("$1,452.4 million"), asked("1.4524 billion dollars")
    assert contradicting([first, second]) == []
    assert contradicting([first, asked("$1,452.5 million")]) == [(0, 1)]


def test_a_share_of_test_questions_that_groups_do_not_allow_is_said(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n}?", "answer": str(n), "group": "one" if n < 20 else f"g{n}"} for n in range(22)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (told,) = (line for line in read_questions(config(path), [], 0).warnings if "test_fraction" in line)
    assert "2 of 22 are" in told or "20 of 22 are" in told


def test_contradicting_answers_are_named(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "Which vitamin prevents scurvy?", "answer": "C", "answers": ["vitamin C"]},
        {"id": "b", "question": "which vitamin prevents  scurvy", "answer": "vitamin c"},
        {"id": "c", "question": "Which vitamin prevents scurvy?", "answer": "D"},
        *({"id": f"n{i}", "question": "How many bones has a hand?", "answer": str(20 + i)} for i in range(5)),
        {"id": "e", "question": "Which sea?", "answer": "Baltic", "context": "one text"},
        {"id": "f", "question": "Which sea?", "answer": "Black", "context": "another text"},
    ]
    path = write_lines(tmp_path / "q.jsonl", rows)
    told = [line for line in read_questions(config(path), [], 0).warnings if "contradict" in line]
    assert len(told) == 4 and told[-1] == "questions: and 2 more that contradict an earlier one"
    for part in (":3: ", "'c'", "'Which vitamin prevents scurvy?'", ":1, ", "'a'", "'D'", "'C'"):
        assert part in told[0]
