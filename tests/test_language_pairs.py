"""The right and wrong pairs in other languages are as many and as varied as their README says."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "languages"
LANGUAGES = sorted(path.stem for path in FOLDER.glob("*.jsonl") if not path.stem.endswith("_passages"))
WRONG_KINDS = {
    "wrong_figure",
    "wrong_name",
    "invented",
    "other_language",
    "fragment",
    "empty_or_refusal",
    "answered_by_itself",
    "mentions_passage",
    "not_alone",
    "repeated",
    "not_a_question",
}


@cache
def lines(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def passages(language: str) -> dict[str, str]:
    return {row["id"]: row["passage"] for row in lines(f"{language}_passages")}


def share_in(answer: str, passage: str) -> float:
    """Share of the answer's characters that stand in the passage beside the same neighbour.

    Returns:
        Between 0 and 1; letters and digits only, without case.
    """
    plain = (unicodedata.normalize("NFKC", text).casefold() for text in (answer, passage))
    kept, where = ("".join(filter(str.isalnum, text)) for text in plain)
    if len(kept) < 2:
        return float(kept in where)
    pairs = [kept[at : at + 2] in where for at in range(len(kept) - 1)]
    return sum(a or b for a, b in zip([False, *pairs], [*pairs, False], strict=True)) / len(kept)


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_enough_of_every_kind_and_none_twice(language: str) -> None:
    rows, texts = lines(language), passages(language)
    assert len(texts) >= 40
    assert len(set(texts.values())) == len(lines(f"{language}_passages"))
    assert {row["passage_id"] for row in rows} == set(texts)
    assert {row["lang"] for row in rows} == {language}
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({(row["passage_id"], row["question"], row["answer"]) for row in rows}) == len(rows)
    right = [row for row in rows if row["valid"]]
    wrong = Counter(row["kind"] for row in rows if not row["valid"])
    assert len(right) >= 200
    assert {row["kind"] for row in right} <= {"extractive", "rephrased"}
    assert wrong.total() >= 200
    assert wrong.keys() - {"type_mismatch"} == WRONG_KINDS
    assert min(wrong[kind] for kind in WRONG_KINDS) >= 10
    assert max(wrong.values()) <= wrong.total() / 5


@pytest.mark.parametrize("language", LANGUAGES)
def test_right_answers_are_of_their_passage_and_wrong_ones_are_not(language: str) -> None:
    texts = passages(language)
    for row in lines(language):
        passage, answer = texts[row["passage_id"]], row["answer"]
        if row["kind"] == "extractive":
            assert answer in passage, row["id"]
        elif row["kind"] == "rephrased":
            assert share_in(answer, passage) >= 0.4, row["id"]
        elif row["kind"] in {"wrong_figure", "wrong_name", "invented", "other_language"}:
            assert answer not in passage, row["id"]
