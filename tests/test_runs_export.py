"""The final dataset, read back by the libraries that its users have."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import markdown
import pyarrow.parquet as pq
import pytest
from data_helpers import recipe_of

from optimsyn.base.errors import DataError
from optimsyn.data.chat import sample_of
from optimsyn.data.records import Document, Pair, Rubric
from optimsyn.reward.judgements import Judgement
from optimsyn.runs.datasets.export import export_dataset

RUBRIC = Rubric(question_type="cause", question_quality="a", answer_quality="b", alignment="c", trainability="d")


def judged(number: int, rubric: Rubric | None = RUBRIC) -> Judgement:
    choices = ("yes", "no") if number % 2 else None
    pair = Pair(
        id=f"p{number}",
        question=f"Is it | {number}?\nReally?",
        answer="yes",
        choices=choices,
        answer_index=0 if choices else None,
        context="The mill." if number % 3 == 0 else None,
        passage_id=f"d{number}#0",
        document_id=f"d{number}",
        char_start=3,
        char_end=12,
        variant="policy",
        rubric=rubric,
        generator="embedded",
        rubric_model="embedded" if rubric else "",
        guiding_text="Ask for causes." if rubric else "",
        seed=2**31 - 1,
    )
    return Judgement(
        key=str(number), passage_id=pair.passage_id, kind=pair.kind, pair=pair, valid=True, influence=0.01 * number,
        by_subtask={"b": 0.1, "a": 0.2}, gradient_norm=1.5, loss=2.0, reward=0.01 * number,
    )  # fmt: skip


def test_parquet_jsonl_and_card_agree(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, description="About a mill.")
    rows = [judged(i) for i in range(5)]
    folder = tmp_path / "dataset"
    texts = [Document(id="d0", text="x", license="CC0-1.0")]
    export_dataset(
        folder,
        rows,
        recipe=recipe,
        variant="policy",
        losses={"candidates": 9, "invalid": 4, "kept": 5},
        documents=texts,
    )
    table = pq.read_table(folder / "train.parquet").to_pylist()
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert len(table) == len(lines) == 5
    for row, line, verdict in zip(table, lines, rows, strict=True):
        assert verdict.pair is not None
        sample = sample_of(verdict.pair)
        assert row["messages"] == line["messages"] == [dict(m) for m in sample.messages]
        assert (row["prompt"], row["completion"]) == (sample.prompt, sample.completion)
        assert row["rubric"] == RUBRIC.model_dump()
        assert (row["passage_id"], row["char_start"], row["char_end"]) == (verdict.passage_id, 3, 12)
        assert (row["influence"], row["reward"]) == (verdict.influence, verdict.reward)
        assert row["influence_by_subtask"] == [{"subtask": "a", "influence": 0.2}, {"subtask": "b", "influence": 0.1}]
        assert row["choices"] == (list(verdict.pair.choices) if verdict.pair.choices else None)
    card = (folder / "README.md").read_text()
    assert "| invalid | 4 |" in card
    assert "CC0-1.0" in card
    assert "> Ask for causes." in card
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_card_has_a_header_that_the_hub_reads(tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    export_dataset(tmp_path / "d", [judged(1)], recipe=recipe_of(tmp_path), variant="policy", losses={})
    data = DatasetCard.load(tmp_path / "d" / "README.md").data
    assert data.size_categories == ["n<1K"]
    assert data.to_dict()["configs"][0]["data_files"] == [{"split": "train", "path": "train.parquet"}]


def test_datasets_without_rubrics_have_the_same_schema(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    export_dataset(tmp_path / "a", [judged(2)], recipe=recipe, variant="policy", losses={})
    export_dataset(tmp_path / "b", [judged(2, rubric=None)], recipe=recipe, variant="no_rubric", losses={})
    schemas = [pq.read_schema(tmp_path / name / "train.parquet") for name in ("a", "b")]
    assert schemas[0].equals(schemas[1])
    assert pq.read_table(tmp_path / "b" / "train.parquet").to_pylist()[0]["rubric"] is None


def test_the_datasets_library_loads_the_folder(tmp_path: Path) -> None:
    from datasets import load_dataset

    export_dataset(
        tmp_path / "d", [judged(i) for i in range(3)], recipe=recipe_of(tmp_path), variant="policy", losses={}
    )
    loaded = load_dataset(str(tmp_path / "d"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 3
    assert loaded[0]["messages"][1]["role"] == "assistant"


def test_nothing_to_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pair to export"):
        export_dataset(tmp_path / "d", [], recipe=recipe_of(tmp_path), variant="policy", losses={})


def test_the_card_shows_texts_and_does_not_run_them(tmp_path: Path) -> None:
    live = "<script>alert(1)</script> ![x](javascript:alert(2)) <img src=x onerror=alert(3)>\n\n# Head\n---\n| a | b |"
    recipe = recipe_of(tmp_path, description=live)
    row = judged(1)
    assert row.pair is not None
    row = row.model_copy(update={"pair": row.pair.model_copy(update={"guiding_text": live, "generator": live})})
    texts = [Document(id="d1", text="x", license='CC0 <b onclick="x()">1.0</b> [terms](javascript:x)')]
    export_dataset(tmp_path / "d", [row], recipe=recipe, variant="policy", losses={"kept": 1}, documents=texts)
    card = (tmp_path / "d" / "README.md").read_text().split("---\n", 2)[2]
    page = markdown.markdown(card, extensions=["tables"])
    inside = re.findall(r"<\s*/?\s*([a-zA-Z0-9]+)", page)
    assert set(inside) <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "blockquote", "code"}
    assert "javascript:" not in html.unescape(re.sub("&#58;", "", page))
    assert page.count("<h1") == 1
    assert "alert(1)" in page
