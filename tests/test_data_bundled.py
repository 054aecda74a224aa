"""The texts and questions that come with optimsyn: sound, checkable, split by group, and in the wheel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from data_helpers import load_documents

import optimsyn
from optimsyn.data.duplicates import overlap
from optimsyn.data.questions import read_questions
from optimsyn.data.records import Document, Question
from optimsyn.recipe.bundled import bundled_domains
from optimsyn.recipe.recipe import Documents, Questions, Source

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(optimsyn.__file__).parent / "data" / "bundled"
DOMAINS = ("finance", "humanities", "law", "medicine", "social_sciences")
LANGUAGES = ("german", "korean")
OPEN_BOOK = ("finance", "humanities", "law", "medicine")


def rows(domain: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / domain / name).read_text(encoding="utf-8").splitlines()]


def documents_of(domain: str) -> list[Document]:
    return load_documents(Documents(source=Source(path=f"embedded:{domain}")), 0)


def sets_of(domain: str) -> tuple[list[Question], list[Question]]:
    config = Questions(
        validation=Source(path=f"embedded:{domain}", where={"split": "validation"}),
        test=Source(path=f"embedded:{domain}", where={"split": "test"}),
    )
    sets = read_questions(config, documents_of(domain), 0, complete=True)
    assert sets.problems == sets.warnings == sets.losses == []
    return sets.validation, sets.test


def questions_of(domain: str) -> list[Question]:
    validation, test = sets_of(domain)
    return [*validation, *test]


def numbers_in(text: str) -> set[str]:
    return {number.replace(",", "") for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)}


def test_each_domain_is_bundled() -> None:
    assert bundled_domains() == tuple(sorted([*DOMAINS, *LANGUAGES, "quickstart"]))


def test_ids_and_texts_are_unique_over_all_domains() -> None:
    for name in ("documents.jsonl", "questions.jsonl"):
        every = [row for domain in bundled_domains() for row in rows(domain, name)]
        for field in ("id", "text" if name == "documents.jsonl" else "question"):
            values = [row[field] for row in every]
            assert len(set(values)) == len(values), f"{name}: {field}"


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_are_short_free_and_of_several_groups(domain: str) -> None:
    found = rows(domain, "documents.jsonl")
    assert 8 <= len(found) <= 10
    assert len({row["group"] for row in found}) >= 4
    for row in found:
        assert 90 <= len(row["text"].split()) <= 160, row["id"]
        assert row["id"].startswith(f"{domain}:")
        assert row["source"].startswith("written for optimsyn")
        assert row["license"] == "CC0-1.0"
        assert row["title"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_questions_are_split_by_group(domain: str) -> None:
    validation, test = sets_of(domain)
    assert len(validation) >= 8
    assert len(test) >= 8
    assert {q.group for q in validation}.isdisjoint(q.group for q in test)
    group_of = {document.id: document.group for document in documents_of(domain)}
    for question in [*validation, *test]:
        assert question.group == group_of[question.document_id or ""], question.id
        assert question.question[0].isupper()
    assert list(overlap(validation, test)) == []


@pytest.mark.parametrize("domain", LANGUAGES)
def test_domains_in_other_languages_are_split_by_group(domain: str) -> None:
    validation, test = sets_of(domain)
    assert len(validation) == len(test) >= 30
    assert {q.group for q in validation}.isdisjoint(q.group for q in test)
    assert {row["license"] for row in rows(domain, "documents.jsonl")} == {"CC0-1.0"}


@pytest.mark.parametrize("domain", [*OPEN_BOOK, *LANGUAGES])
def test_open_book_answers_are_in_the_document(domain: str) -> None:
    for row in rows(domain, "questions.jsonl"):
        text = next(document.text for document in documents_of(domain) if document.id == row["document_id"])
        assert row["open_book"] is True
        if "derivation" in row:
            first, last = (float(number) for number in row["derivation"].split(" - "))
            assert round(first - last, 2) == float(row["answer"]), row["id"]
            assert numbers_in(row["derivation"]) <= numbers_in(text), row["id"]
        elif "choices" not in row:
            assert row["answer"] in text, row["id"]
    for question in questions_of(domain):
        assert question.context in {document.text for document in documents_of(domain)}


def test_tables_of_reports_add_up() -> None:
    for row in rows("finance", "documents.jsonl"):
        table = [re.findall(r"\d[\d,.]*", line) for line in row["text"].splitlines() if line.startswith("| ")][1:]
        columns = list(zip(*([float(cell.replace(",", "")) for cell in line] for line in table), strict=True))
        assert len(columns) == 2, row["id"]
        for *parts, total in columns:
            expected = parts[0] - parts[1] if row["id"].endswith("interest") else sum(parts)
            assert total == pytest.approx(expected), row["id"]


def test_each_domain_has_the_form_of_its_recipe() -> None:
    assert {question.choices for question in questions_of("medicine")} == {("yes", "no", "maybe")}
    for side in sets_of("medicine"):
        assert {question.answer for question in side} == {"yes", "no", "maybe"}
    for domain in ("law", "finance", "humanities"):
        assert {question.kind for question in questions_of(domain)} == {"free"}
    for side in sets_of("finance"):
        assert {question.subtask for question in side} == {"span", "arithmetic"}
    for side in sets_of("social_sciences"):
        assert {question.subtask for question in side} == {"sociology", "economics", "psychology"}
        assert {len(question.choices or ()) for question in side} == {4}
        assert all(question.context is None for question in side)
        assert len({question.answer_index for question in side}) > 2


def test_a_wheel_carries_them() -> None:
    from hatchling.builders.wheel import WheelBuilder

    carried = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    for domain in bundled_domains():
        for name in ("documents.jsonl", "questions.jsonl"):
            assert f"optimsyn/data/bundled/{domain}/{name}" in carried
    assert {f"optimsyn/_recipes/{domain}.yaml" for domain in (*DOMAINS, *LANGUAGES)} <= carried
