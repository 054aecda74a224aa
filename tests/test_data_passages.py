"""Passages: exact offsets, sizes, nothing lost unseen."""

from __future__ import annotations

import pytest
from data_helpers import text_of
from hypothesis import given, settings
from hypothesis import strategies as st

from optimsyn.data.excerpt import excerpt
from optimsyn.data.passages import passage_spans, split_passages
from optimsyn.data.records import Document
from optimsyn.data.text import word_count
from optimsyn.recipe.recipe import Documents, Source


def config(words: int, least: int = 5) -> Documents:
    return Documents(source=Source(path="x"), passage_words=words, min_words=least)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet=st.sampled_from("ab é中.?!,;:\n\r\t\u2028 -"), max_size=900),
    longest=st.integers(min_value=20, max_value=60),
)
def test_offsets_are_exact_ordered_and_cover_all_words(text: str, longest: int) -> None:
    spans = passage_spans(text, longest)
    covered = 0
    for start, end in spans:
        assert 0 <= covered <= start < end <= len(text)
        # What lies between two passages is white space only.
        assert not text[covered:start].strip()
        assert not text[start].isspace()
        assert not text[end - 1].isspace()
        assert word_count(text[start:end]) <= longest
        covered = end
    assert not text[covered:].strip()


def test_passages_point_into_their_document() -> None:
    documents = [Document(id=f"d{i}", text=text_of(50 * i, i), title="T", group="g") for i in range(1, 9)]
    passages, losses = split_passages(documents, config(80))
    texts = {d.id: d.text for d in documents}
    assert losses == []
    assert all(texts[p.document_id][p.char_start : p.char_end] == p.text for p in passages)
    assert len({p.id for p in passages}) == len(passages)
    assert {p.group for p in passages} == {"g"}


def test_a_little_too_long_makes_two_of_like_length() -> None:
    passages, _ = split_passages([Document(id="d", text=text_of(170))], config(160))
    sizes = [word_count(p.text) for p in passages]
    assert len(sizes) == 2
    assert min(sizes) > 60


def test_passages_end_with_sentences() -> None:
    passages, _ = split_passages([Document(id="d", text=text_of(700))], config(100))
    assert all(p.text.endswith(".") for p in passages)


def test_short_passages_are_lost_by_name() -> None:
    documents = [Document(id="a", text="Too short."), Document(id="b", text=text_of(60))]
    passages, losses = split_passages(documents, config(100, least=20))
    assert [p.document_id for p in passages] == ["b"]
    assert [(loss.id, loss.stage) for loss in losses] == [("a#0", "passages")]
    assert "2 words, fewer than documents.min_words = 20" in losses[0].reason


def test_text_without_spaces_is_cut_too() -> None:
    passages, _ = split_passages([Document(id="d", text="水车每天转动两次。" * 200)], config(100))
    assert len(passages) > 2
    assert all(len(p.text) <= 620 for p in passages)


def test_the_work_grows_with_the_length_of_a_document_and_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = 0

    def counting(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return word_count(text)

    monkeypatch.setattr("optimsyn.data.passages.word_count", counting)
    work = []
    for words in (15_000, 60_000):
        counted = 0
        passages, _ = split_passages([Document(id="d", text=text_of(words))], config(160))
        assert len(passages) > words / 170
        work.append(counted)
    assert work[1] < 6 * work[0]


def test_excerpt_holds_the_answer_and_keeps_short_texts() -> None:
    long = text_of(3000) + " The warden of the sluice was Griet Janssen. " + text_of(3000, 500)
    part = excerpt(long, "Who was the warden of the sluice?", ["Griet Janssen"], words=120)
    assert "Griet Janssen" in part
    assert word_count(part) <= 120
    assert part in long
    assert excerpt("A short text.", "What?", ["x"]) == "A short text."


def test_excerpt_of_common_answers_follows_the_question() -> None:
    long = text_of(2000).replace("Dutch", "Dutch, yes,") + " Pelicans nested on the lighthouse. " + text_of(2000, 400)
    assert "Pelicans" in excerpt(long, "Did pelicans nest on the lighthouse?", ["yes"], words=100)
