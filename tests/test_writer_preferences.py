"""The writer's preferences: what is better of its own pairs, and what it is asked for."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from prefer_writer import Lesson, by_hand, preferences, rank, repeated, replies, with_other_answers  # noqa: E402
from writer_wishes import is_kept_out, passages, wishes_of  # noqa: E402

FOLDERS = [ROOT / "benchmarks" / "writer_prompts", ROOT / "benchmarks" / "writer_practice"]


def row(reply: str, *, obeys: bool = True, failed: bool = False, prompt: str = "p", **others: Any) -> dict[str, Any]:
    reasons = {"grounded": "it says more than the passage"} if failed else {}
    return {
        "passage_id": "one",
        "prompt": prompt,
        "reply": reply,
        "question": "?",
        "obeys": obeys,
        "failed": reasons,
        **others,
    }


def test_a_pair_without_its_form_or_invalid_is_worse_than_any_other() -> None:
    assert rank(row("a", obeys=False, grade=2)) == rank(row("a", failed=True, grade=2)) < rank(row("a", grade=0))
    assert rank(row("a")) == rank(row("a", grade=0)) < rank(row("a", grade=1)) < rank(row("a", grade=2))


def test_the_best_stands_beside_the_worst_of_the_same_rubric() -> None:
    rows = [row("b", grade=1), row("d", obeys=False), row("a", grade=2), row("c", grade=0)]
    assert list(preferences(rows)) == [Lesson("one", "p", "a", ("d", "c"))]


def test_a_good_pair_without_a_worse_one_is_learned_as_it_is() -> None:
    assert list(preferences([row("a", grade=1), row("b", grade=1)])) == [Lesson("one", "p", "b")]
    assert list(preferences([row("a", grade=2), row("b", failed=True, prompt="q")])) == [Lesson("one", "p", "a")]


def test_of_the_same_reply_the_best_judgement_counts() -> None:
    assert list(preferences([row("a", grade=2), row("a"), row("b", obeys=False)])) == [Lesson("one", "p", "a", ("b",))]


@pytest.mark.parametrize(
    "rows",
    [
        [row("a"), row("b", failed=True)],  # nobody has read the valid one
        [row("a", grade=0), row("b", failed=True)],  # the better one is not good
        [row("a", obeys=False, grade=2)],
    ],
)
def test_there_is_nothing_to_learn(rows: list[dict[str, Any]]) -> None:
    assert list(preferences(rows)) == []


def test_samples_meet_the_pair_that_was_written_by_hand() -> None:
    one = next(each for each in passages(FOLDERS[:1]) if "pair" in each["wanted"][0])
    wish = next(each for each in wishes_of(one, 6, seed=0) if each.form == one["wanted"][0]["form"])
    asked = {"passage_id": one["id"], "asked": wish.rubric.question_type}
    good = {"quote": "", "options": None, "obeys": True, "failed": {}}
    own = [
        {**asked, **good, "sample": 0, "question": "Who?", "answer": "Nobody"},
        {**asked, **good, "sample": 1, "question": None, "answer": None},  # a reply that cannot be read
        {**asked, **good, "asked": "something else", "sample": 0, "question": "Who?", "answer": "Nobody"},
    ]
    (lesson,) = preferences(replies(own + by_hand([one])[:1], [wish]))
    assert one["passage"].split()[0] in lesson.prompt
    assert one["wanted"][0]["pair"]["question"] in lesson.better
    assert ["Answer: Nobody" in worse for worse in lesson.worse] == [True]


def test_an_answer_stands_beside_one_to_another_question_of_its_passage() -> None:
    replies_ = ["Question: a?\nAnswer: 1", "Question: b?\nOptions: 1 | 2\nAnswer: 2", "Question: c?\nAnswer: 1"]
    lessons = [Lesson("one", "p", reply, ("w",)) for reply in replies_] + [
        Lesson("two", "p", "Question: d?\nAnswer: 9")
    ]
    assert [lesson.worse for lesson in with_other_answers(lessons)] == [
        ("w", "Question: a?\nAnswer: 2"),
        ("w",),
        ("w", "Question: c?\nAnswer: 2"),
        (),
    ]


def test_what_was_learned_before_is_repeated() -> None:
    passages_ = repeated([ROOT / "benchmarks" / "writer_languages", ROOT / "benchmarks" / "writer_forms"], 30, seed=0)
    assert len(passages_) == 30
    texts = ["".join(row["completion"] for row in rows) for rows in passages_]
    assert any("Reasoning: " in text for text in texts)
    assert any(re.search("[가-힣]", text) for text in texts)
    for rows in passages_:
        assert any(row["prompt"].endswith("Rubric:\n") for row in rows)
        assert len({row["prompt"][:60] for row in rows}) == 1


def test_a_passage_is_asked_for_what_it_can_give() -> None:
    rows = passages(FOLDERS)
    kept = [one for one in rows if is_kept_out(one)]
    assert 0.05 < len(kept) / len(rows) < 0.15
    for one in rows:
        wishes = wishes_of(one, 6, seed=0)
        assert wishes == wishes_of(one, 6, seed=0)
        forms = [wish.form for wish in wishes]
        assert len(set(forms)) == len(forms), one["id"]
        learned = {example["form"] for example in one.get("examples", ())}
        assert not learned & set(forms), one["id"]
        general = [wish for wish in wishes if wish.form not in {each["form"] for each in one.get("wanted", ())}]
        if any(wish.form == "date" for wish in general):
            assert re.search(r"\d{4}", one["passage"])
    with pytest.raises(SystemExit, match="writer_prompts"):
        passages([ROOT / "tools"])
