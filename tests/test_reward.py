"""The reward: its formula, its memory, its ledger, and what it does when a service or a generator breaks."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimize_helpers import Checks, PairWriter, Scorer, Verdict, make_reward, passages, rubric

from optimsyn.base.errors import DataError, ModelError, ServiceError
from optimsyn.base.files import iter_json
from optimsyn.reward.judgements import Ledger
from optimsyn.reward.reward import WINDOW, Judgement, RubricRequest


def requests(count: int, kind: str = "mechanism", **more: Any) -> list[RubricRequest]:
    return [
        RubricRequest(passage=passage, kind="free", rubric=rubric(kind), seed=i, variant="t", **more)
        for i, passage in enumerate(passages(count))
    ]


def judge(reward: Any, what: list[RubricRequest]) -> list[Judgement]:
    return asyncio.run(reward.judge(what))


def test_valid_pairs_earn_their_influence_and_invalid_ones_the_penalty() -> None:
    reward = make_reward(invalid_penalty=0.25)
    unreadable = RubricRequest(passage=passages(1)[0], kind="free", error="lacks Alignment", seed=9)
    good, bad, none = judge(reward, [*requests(1), *requests(1, "forbidden"), unreadable])
    assert good.valid
    assert good.reward == good.influence == pytest.approx(reward.scorer.worth(good.pair))
    assert (bad.valid, bad.reward, bad.influence, bad.failed) == (False, -0.25, None, ("grounded",))
    assert (none.valid, none.reward, none.failed, none.pair) == (False, -0.25, ("rubric_format",), None)
    assert "lacks Alignment" in none.reasons["rubric_format"]
    # The invalid ones were neither scored nor, without a rubric, bought.
    assert reward.scorer.calls == [1]
    assert len(reward.pair_writer.written) == 2


def test_an_unreadable_pair_is_invalid_and_named() -> None:
    writer = PairWriter()
    writer.garbage = True
    (row,) = judge(make_reward(writer=writer), requests(1))
    assert (row.valid, row.failed, row.pair) == (False, ("pair_format",), None)
    assert "no question in the reply" in row.feedback


@given(st.lists(st.sampled_from(["mechanism", "quantity", "forbidden"]), min_size=1, max_size=12), st.floats(0, 5))
@settings(max_examples=25, deadline=None)
def test_reward_is_always_finite_and_an_invalid_pair_changes_nobody_else(kinds: list[str], penalty: float) -> None:
    everyone = [
        RubricRequest(passage=passage, kind="free", rubric=rubric(kind), seed=i)
        for i, (passage, kind) in enumerate(zip(passages(len(kinds)), kinds, strict=True))
    ]
    together = judge(make_reward(invalid_penalty=penalty), everyone)
    assert all(math.isfinite(row.reward) for row in together)
    for request, row in zip(everyone, together, strict=True):
        (alone,) = judge(make_reward(invalid_penalty=penalty), [request])
        assert alone.reward == row.reward


def test_equal_requests_are_bought_once_and_equal_contents_scored_once() -> None:
    reward = make_reward()
    (request,) = requests(1)
    other_seed = request.model_copy(update={"seed": 77})
    first, second, third = judge(reward, [request, request, other_seed])
    assert first == second
    assert third.key != first.key
    assert third.reward == first.reward
    assert len(reward.pair_writer.written) == 2
    assert reward.scorer.calls == [1]
    judge(reward, [request, other_seed])
    assert len(reward.pair_writer.written) == 2


def test_threads_that_ask_the_same_at_once_share_one_purchase() -> None:
    reward = make_reward()
    (request,) = requests(1)
    found: list[Judgement] = []
    gate = threading.Barrier(8)

    def ask() -> None:
        gate.wait()
        found.extend(judge(reward, [request]))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(str, found))) == 1
    assert len(reward.pair_writer.written) == 1


def test_a_new_process_answers_from_the_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "rewards.jsonl"
    first = judge(make_reward(ledger, source="one"), [*requests(3), *requests(2, "forbidden")])
    again = make_reward(ledger, source="two")
    assert judge(again, [*requests(3), *requests(2, "forbidden")]) == first
    assert again.pair_writer.written == []
    assert again.scorer.calls == []
    rows = list(iter_json(ledger))
    assert len(rows) == 5
    assert {row["source"] for row in rows} == {"one"}
    # Another penalty is another reward: nothing is taken from memory but the influence of equal contents.
    other = make_reward(ledger, invalid_penalty=0.5)
    judge(other, requests(3))
    assert len(other.pair_writer.written) == 3
    assert other.scorer.calls == []


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_torn_batch_is_judged_again_as_a_whole(tmp_path: Path, cut: int) -> None:
    ledger = tmp_path / "rewards.jsonl"
    whole = judge(make_reward(ledger), requests(3)) + judge(make_reward(ledger), requests(4, "quantity"))
    undisturbed = ledger.read_bytes()
    ledger.write_bytes(undisturbed[:-cut])
    resumed = make_reward(ledger)
    assert judge(resumed, requests(3)) + judge(resumed, requests(4, "quantity")) == whole
    assert resumed.scorer.calls == [4]
    assert ledger.read_bytes() == undisturbed


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    ledger = tmp_path / "rewards.jsonl"
    judge(make_reward(ledger), requests(3))
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text(lines[0] + "{broken}\n" + lines[2])
    with pytest.raises(DataError, match=r"rewards.jsonl:2: not a judgement"):
        Ledger(ledger)


def test_scores_of_a_window_are_made_together() -> None:
    reward = make_reward()
    judge(reward, requests(WINDOW + 3))
    assert reward.scorer.calls == [WINDOW, 3]


def test_a_service_failure_is_not_an_invalid_pair(tmp_path: Path) -> None:
    ledger = tmp_path / "rewards.jsonl"
    writer = PairWriter(fail_at=2)
    writer.fails = ServiceError("models.generator: connection refused")
    reward = make_reward(ledger, writer=writer)
    with pytest.raises(ServiceError, match="connection refused"):
        judge(reward, requests(5))
    assert not ledger.exists()
    writer.fail_at = None
    assert all(row.valid for row in judge(reward, requests(5)))


def test_a_generator_of_nothing_but_garbage_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "seed 18secret")
    writer = PairWriter()
    writer.garbage = True
    with pytest.raises(ServiceError, match=r"test/generator.*20 replies in a row"):
        judge(make_reward(writer=writer), requests(25))
    assert writer.model.set_aside == 20, "the garbage would be answered from the cache when the run continues"
    # One readable reply in between is enough to go on, and below the limit garbage is the pair's fault.
    reward = make_reward(writer=writer)
    assert not any(row.valid for row in judge(reward, requests(19)))
    writer.garbage = False
    judge(reward, requests(1, "quantity"))
    writer.garbage = True
    assert not any(row.valid for row in judge(reward, requests(19, "comparison")))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_refused_by_name(value: float, tmp_path: Path) -> None:
    reward = make_reward(tmp_path / "rewards.jsonl", scorer=Scorer(value))
    with pytest.raises(ModelError, match="not a finite number"):
        judge(reward, requests(2))
    assert not (tmp_path / "rewards.jsonl").exists()


def test_feedback_names_check_and_best_and_worst_of_the_same_passage() -> None:
    reward = make_reward()
    rows = judge(reward, [requests(1, kind)[0] for kind in ("mechanism", "quantity", "definition", "forbidden")])
    middle = reward.feedback(rows[1])
    assert "Better for the same passage: reward +0.2" in middle
    assert "question type 'mechanism'" in middle
    assert "Worse for the same passage: reward -0.1" in middle
    assert "grounded: no word of the answer" in reward.feedback(rows[3])
    assert "'hard' least" in rows[0].feedback


def columns(count: int, **more: Any) -> dict[str, Any]:
    rows = passages(count)
    return {
        "passage": [row.model_dump_json() for row in rows],
        "kind": ["free"] * count,
        "guiding_text": ["text"] * count,
        "rubric_model": ["m"] * count,
        "seed": [3] * count,
        "trainer_state": SimpleNamespace(global_step=2),
        **more,
    }


LINES = " mechanism\nQuestion quality: a\nAnswer quality: b\nAlignment: c\nTrainability: d\n\n"


def test_trl_face_reads_plain_and_chat_completions_and_logs() -> None:
    logged: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    reward = make_reward(source="train_policy")
    chat = [{"role": "assistant", "content": "Question type:" + LINES}]
    rewards = reward(
        ["p"] * 3,
        [LINES, chat, "nonsense"],
        **columns(3, log_metric=logged.__setitem__, log_extra=extra.__setitem__),
    )
    assert all(isinstance(value, float) for value in rewards)
    assert rewards[0] > 0.2
    assert rewards[1] > 0.2
    assert rewards[2] == -0.1
    assert logged["valid"] == pytest.approx(2 / 3)
    assert logged["influence"] == pytest.approx((rewards[0] + rewards[1]) / 2)
    assert extra["failed"] == ["", "", "rubric_format"]
    assert {row.variant for row in reward.answered} == {"train_policy"}


def test_trl_face_gives_equal_rubrics_of_a_group_equal_rewards() -> None:
    reward = make_reward()
    group = columns(1)
    for name in ("passage", "kind", "guiding_text", "rubric_model", "seed"):
        group[name] = group[name] * 2
    first, second = reward(["p"] * 2, [LINES, LINES], **group)
    assert first == second
    assert len(reward.pair_writer.written) == 1


def test_checks_of_a_plugin_may_leave_the_reason_out() -> None:
    class Silent(Checks):
        def check(self, pair: Any, passage: Any) -> Verdict:
            return Verdict(False, ("mine",), {})

    (row,) = judge(make_reward(checks=Silent()), requests(1))
    assert row.reasons == {"mine": ""}
    assert json.loads(row.model_dump_json())["feedback"].startswith("Invalid (mine)")
