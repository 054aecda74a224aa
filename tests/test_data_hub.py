"""Hub datasets: reading, and the layouts that the domain recipes rely on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import load_documents, text_of

from optimsyn.base.errors import DataError
from optimsyn.data.documents import read_documents
from optimsyn.data.files import hub
from optimsyn.data.passages import split_passages
from optimsyn.data.questions import QuestionSets, load_questions
from optimsyn.data.records import Document
from optimsyn.recipe.recipe import Recipe, Source

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset in the hub's form, as a folder: two configurations with one split each."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "dataset"
    header = "---\nconfigs:\n"
    for name in ("law", "sociology"):
        (folder / name).mkdir(parents=True)
        rows = [{"question": f"{name} {i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(6)]
        pq.write_table(pa.Table.from_pylist(rows), folder / name / "test.parquet")
        header += f"- config_name: {name}\n  data_files: [{{split: test, path: {name}/test.parquet}}]\n"
    (folder / "README.md").write_text(header + "---\n")
    return str(folder)


def test_rows_of_a_split(dataset: str) -> None:
    rows = list(hub.read_hub(Source(hub=dataset, config="law", split="test[:4]")))
    assert [row["question"] for row in rows] == [f"law {i}?" for i in range(4)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "test"}, "set `config` to one of: law, sociology"),
        ({"config": "lwa", "split": "test"}, "set `config` to one of: law, sociology"),
        ({"config": "law", "split": "train"}, "Unknown split"),
    ],
)
def test_wrong_configurations_and_splits(dataset: str, values: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(hub.read_hub(Source.model_validate({"hub": dataset, **values})))


def test_faults_that_nobody_can_mend_on_the_hub_are_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": text_of(40), "id": 1}, {"text": text_of(40).upper(), "id": 2}, {"text": None, "id": 3}]
    rows += [{"text": text_of(40, 70), "id": 1}]
    serve(monkeypatch, rows)
    recipe = Recipe.load(RECIPES / "medicine.yaml")
    config = recipe.documents.model_copy(update={"source": Source(hub="org/data")})
    found = read_documents(config)
    assert found.problems == []
    assert [d.id for d in found.documents] == ["1", "1~2"]
    assert [(loss.id, loss.reason) for loss in found.losses] == [("3", "has no `text`"), ("2", "same text as 1")]
    # A question about the dropped copy still finds its text.
    assert {d.id for d in load_documents(config, 0, everything=True)} == {"1", "1~2", "2"}


def serve(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> None:
    monkeypatch.setattr(hub, "read_hub", lambda source: iter(rows))


def loaded(name: str) -> tuple[list[Document], QuestionSets]:
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    documents = load_documents(recipe.documents, 0)
    assert split_passages(documents, recipe.documents)[0]
    everything = load_documents(recipe.documents, 0, everything=True)
    return documents, load_questions(recipe.questions, everything, 0)


def test_medicine_reads_the_layout_of_pubmedqa(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "pubid": 100 + i,
            "question": f"Does treatment {i} help?",
            "context": {"contexts": [text_of(60, 9 * i), f"Results {i}."], "labels": ["M", "R"], "meshes": []},
            "long_answer": "It does.",
            "final_decision": ("yes", "no", "maybe")[i % 3],
        }
        for i in range(8)
    ]
    serve(monkeypatch, rows)
    documents, sets = loaded("medicine")
    assert len(documents) == 8
    assert documents[0].text.endswith("\n\nResults 0.")
    assert (len(sets.validation), len(sets.test)) == (4, 4)
    question = min([*sets.validation, *sets.test], key=lambda q: q.id)
    assert (question.choices, question.answer, question.document_id) == (("yes", "no", "maybe"), "yes", "100")
    assert question.context == documents[0].text


def squad_rows(titles: int, first: int = 0) -> list[dict[str, Any]]:
    """The layout that SQuAD 2.0 and CUAD share: a text repeated for each question, some without an answer."""
    return [
        {
            "id": f"{title}-{i}",
            "title": f"Title {title}",
            "context": text_of(80, 40 * title),
            "question": f"What is item {i} of {title}?",
            "answers": {"text": [f"Note {40 * title}", "a note"] if i else [], "answer_start": [0, 3] if i else []},
        }
        for title in range(first, first + titles)
        for i in range(3)
    ]


@pytest.mark.parametrize("name", ["humanities", "law"])
def test_humanities_and_law_read_the_layout_of_squad(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train = squad_rows(6)
    test = squad_rows(3, first=20)
    monkeypatch.setattr(hub, "read_hub", lambda source: iter(test if source.split == "test" else train))
    documents, sets = loaded(name)
    assert len(documents) == 6
    assert all(q.context in {d.text for d in documents} for q in sets.validation)
    assert sets.test
    assert all(q.answers == (q.answer, "a note") for q in sets.validation)
    assert {q.group for q in sets.validation}.isdisjoint({q.group for q in sets.test})
    assert "has no answer" in {loss.reason.split(";")[0] for loss in sets.losses}


def test_finance_reads_the_layout_of_tat_qa(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(mark: str) -> list[dict[str, Any]]:
        return [
            {
                "table": {"uid": f"{mark}{i}", "table": [["", "2019"], [f"Sales {mark}{i}", "$ 5"]]},
                "paragraphs": [{"uid": "p", "order": 1, "text": text_of(40, 60 * i)}],
                "questions": [
                    {
                        "uid": f"{mark}{i}a",
                        "question": f"What were sales {i}?",
                        "answer": ["$ 5"],
                        "answer_type": "span",
                    },
                    {
                        "uid": f"{mark}{i}b",
                        "question": f"What changed {i}?",
                        "answer": -12.6,
                        "answer_type": "arithmetic",
                        "scale": "percent",
                    },
                    {
                        "uid": f"{mark}{i}c",
                        "question": f"What were the costs and wages {i}?",
                        "answer": ["$ 5", "4.1"],
                        "answer_type": "multi-span",
                        "scale": "million",
                    },
                ],
            }
            for i in range(4)
        ]

    monkeypatch.setattr(hub, "read_hub", lambda source: iter(rows("d" if source.split == "validation" else "t")))
    documents, sets = loaded("finance")
    assert len(documents) == 4
    assert documents[0].text.endswith("|  | 2019 |\n| Sales t0 | $ 5 |")
    assert (len(sets.validation), len(sets.test)) == (12, 12)
    first = {q.id: q for q in sets.validation}["t0b"]
    assert (first.answer, first.subtask, first.group) == ("-12.6%", "arithmetic", "t0")
    assert {q.id: q for q in sets.validation}["t0c"].details == {"spans": ["$ 5 million", "4.1 million"]}
    assert first.context is not None
    assert "| Sales t0 | $ 5 |" in first.context


def test_the_files_of_tat_qa_load_as_they_lie_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON arrays named after their splits, whose answers are lists, texts and numbers.

    Versions of datasets before 4.7 stop at the mixed answers ("cannot mix list and non-list, non-null values").
    """
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    answers: list[Any] = [["$ 1,452.4"], ["a", "b"], "sales rose", 12, -3.25]
    folder = tmp_path / "TAT-QA"
    folder.mkdir()
    for name in ("train", "dev", "test", "test_gold"):
        rows = [
            {
                "table": {"uid": f"{name}{i}", "table": [["", "2019"], ["Sales", str(i)]]},
                "paragraphs": [{"uid": f"p{i}", "order": 1, "text": "Sales rose."}],
                "questions": [
                    {"uid": f"q{i}-{j}", "order": j, "question": "What?", "answer": answer, "answer_type": "span"}
                    for j, answer in enumerate(answers)
                ],
            }
            for i in range(4)
        ]
        (folder / f"tatqa_dataset_{name}.json").write_text(json.dumps(rows))
    for split, name in (("train", "train"), ("validation", "dev")):
        read = list(hub.read_hub(Source(hub=str(folder), split=split)))
        assert [row["table"]["uid"] for row in read] == [f"{name}{i}" for i in range(4)]
        assert [question["answer"] for question in read[0]["questions"]] == answers


def test_social_sciences_read_the_layout_of_mmlu(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(source: Source) -> Any:
        if source.hub == "cais/mmlu":
            options = ["Weber", "Marx", "Durkheim", "Simmel"]
            return iter(
                {"question": f"Who wrote book {i}?", "subject": "sociology", "choices": options, "answer": i % 4}
                for i in range(10)
            )
        return iter({"id": str(i), "url": "u", "title": f"T{i}", "text": text_of(60, 70 * i)} for i in range(5))

    monkeypatch.setattr(hub, "read_hub", rows)
    documents, sets = loaded("social_sciences")
    assert len(documents) == 5
    assert (len(sets.validation), len(sets.test)) == (4, 6)
    assert all(q.context is None and q.kind == "multiple_choice" and q.subtask == "sociology" for q in sets.test)
