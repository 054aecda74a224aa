"""Successive halving on the guiding text: it improves, keeps its budget, and takes a reflection model's text."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimize_helpers import BASE_TEXT, WORTH, RubricModel, Shape, make_reward, passages

from optimsyn.base.errors import ServiceError
from optimsyn.llm.language_model import Call
from optimsyn.llm.replies import ReplyCache
from optimsyn.optimize.halving import most_pairs, rungs
from optimsyn.optimize.prompt import PromptResult, optimize_guiding_text
from optimsyn.optimize.prompt_task import PromptTask
from optimsyn.programs.rubric import RubricWriter
from optimsyn.recipe.sections.optimizers import PromptOptimizer


def search(folder: Path, *, reflection: Any = None, reward: Any = None, **config: Any) -> PromptResult:
    settings = PromptOptimizer(
        **{"method": "halving", "metric_calls": 60, "minibatch": 2, "passages": 8, "confirm_passages": 0, **config}
    )
    writer = RubricWriter(RubricModel(ReplyCache(folder / "replies.sqlite")), BASE_TEXT)
    reward = reward or make_reward(source="optimize_prompt")
    return optimize_guiding_text(
        PromptTask(settings, writer, reward, passages(30), Shape(), 5, folder / "s", reflection)
    )


@pytest.mark.parametrize("calls", [4, 9, 16, 33, 60, 200])
def test_it_never_exceeds_its_budget_and_finds_the_better_text_with_enough(tmp_path: Path, calls: int) -> None:
    reward = make_reward(source="optimize_prompt")
    found = search(tmp_path, metric_calls=calls, reward=reward)
    assert found.judged == len(reward.answered) <= calls
    assert found.candidates >= 2
    assert found.ended is not None
    if calls >= 33:
        assert "mechanism" in found.guiding_text
        assert found.score == pytest.approx(WORTH["mechanism"], abs=0.02)


def test_the_better_half_goes_on_on_twice_as_many_passages_and_all_see_the_same(tmp_path: Path) -> None:
    reward = make_reward(source="optimize_prompt")
    found = search(tmp_path, metric_calls=40, reward=reward, patience=1)
    judged: dict[str, list[str]] = defaultdict(list)
    for row in reward.answered:
        judged[row.guiding_text].append(row.passage_id)
    order = [f"p{i}" for i in range(8)]
    for ids in judged.values():
        assert sorted(ids, key=order.index) == order[: len(ids)] and len(ids) in (2, 4, 8)
    counts = sorted(map(len, judged.values()))
    assert counts.count(2) >= 3 and counts.count(8) >= 2
    rejected = [row for row in found.history if row["status"] == "rejected"]
    assert {row["passages"] for row in rejected} <= {2, 4, 8}


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_a_round_costs_no_more_than_was_reckoned(proposals: int, first: int, compared: int) -> None:
    sizes = rungs(first, compared)
    assert sizes[-1] == compared and all(b <= 2 * a for a, b in pairwise(sizes))
    # The worst case: the best text so far falls first, and each proposal that survives pays for its new passages.
    seen, left, paid = [0] * proposals, proposals + 1, 0
    for size in sizes:
        paid += sum(size - before for before in seen)
        left = left - left // 2
        seen = [size] * min(len(seen), left)
    assert paid == most_pairs(proposals, sizes)


class Reflection(RubricModel):
    """Proposes a different text by seed, or junk."""

    chat = True

    def __init__(self, junk: bool = False, cache: ReplyCache | None = None) -> None:
        super().__init__(cache)
        self.name, self.junk = "test/reflection", junk
        self.seen: list[str] = []

    def text_for(self, call: Call, kind: str) -> str:
        self.seen.append(json.dumps(call.messages))
        if self.junk:
            return "certainly!"
        named = list(WORTH)[(call.seed or 0) % len(WORTH)]
        return json.dumps({"new_instruction": f"Ask well. Question types that taught most: {named}."})


def test_a_reflection_model_proposes_from_the_feedback_and_not_one_text_twice(tmp_path: Path) -> None:
    reflection = Reflection()
    found = search(tmp_path, reflection=reflection, metric_calls=120)
    assert found.guiding_text == "Ask well. Question types that taught most: mechanism."
    texts = [row["guiding_text"] for row in found.history if row["status"] != "start"]
    assert len(set(texts)) == len(texts) >= 2
    assert "would teach the model" in reflection.seen[0] and BASE_TEXT in reflection.seen[0]
    assert "influence" in reflection.seen[0]


def test_a_junk_reflection_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"test/reflection.*3 proposals in a row were unusable"):
        search(tmp_path, reflection=Reflection(junk=True))
