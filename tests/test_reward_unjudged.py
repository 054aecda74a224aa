"""What cannot be judged is neither good nor bad: no group, no mean, no ledger, nothing for the policy to learn."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from optimize_helpers import BASE_TEXT, PairWriter, RubricModel, Shape, make_reward, passages, rubric, tiny_policy

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.base.files import iter_json
from optimsyn.data.records import Pair
from optimsyn.llm.outcome_log import OutcomeLog
from optimsyn.llm.replies import ReplyCache
from optimsyn.optimize.policy import train_policy
from optimsyn.optimize.policy_task import PolicyTask
from optimsyn.recipe.recipe import Lora, ModelSpec
from optimsyn.recipe.sections.optimizers import PolicyOptimizer, PromptOptimizer
from optimsyn.reward.reward import Judgement, RubricRequest

UNJUDGED = [outcome for outcome in Outcome if outcome.unjudged]
LINES = " mechanism\nQuestion quality: a\nAnswer quality: b\nAlignment: c\nTrainability: d\n\n"


class Moody(PairWriter):
    """Its replies to the requests with some seeds are cut, refused and so on."""

    def __init__(self, moods: dict[int, Outcome]) -> None:
        super().__init__()
        self.moods = moods

    async def awrite(self, passage: Any, rubric: Any, *, seed: int, **more: Any) -> Pair:
        if seed in self.moods:
            raise ReplyError("nothing there", self.moods[seed])
        return await super().awrite(passage, rubric, seed=seed, **more)


def requests(count: int) -> list[RubricRequest]:
    return [
        RubricRequest(passage=passage, kind="free", rubric=rubric("mechanism"), seed=index)
        for index, passage in enumerate(passages(count))
    ]


def judge(reward: Any, what: list[RubricRequest]) -> list[Judgement]:
    return asyncio.run(reward.judge(what))


@pytest.mark.parametrize("outcome", UNJUDGED)
def test_it_has_no_verdict_and_changes_nobody_elses(outcome: Outcome, tmp_path: Path) -> None:
    ledger = tmp_path / "rewards.jsonl"
    reward = make_reward(ledger, writer=Moody({1: outcome}))
    alone = judge(make_reward(), [requests(3)[0], requests(3)[2]])
    rows = judge(reward, requests(3))
    assert [row.unjudged for row in rows] == [None, outcome, None]
    assert rows[1].failed == (f"pair_{outcome}",) and not rows[1].valid
    assert "Not judged" in rows[1].feedback and "nothing there" in rows[1].feedback
    assert [rows[0].reward, rows[2].reward] == [row.reward for row in alone]
    assert [row["key"] for row in iter_json(ledger)] == [rows[0].key, rows[2].key]
    assert len(reward.answered) == 2
    # The same request is not written again in this process, and judged once there is something to judge.
    assert judge(reward, requests(3)) == rows
    again = judge(make_reward(ledger), requests(3))
    assert [again[0], again[2]] == [rows[0], rows[2]] and again[1].valid


def test_a_missing_rubric_is_not_judged_either() -> None:
    request = RubricRequest(passage=passages(1)[0], kind="free", error="cut", unjudged=Outcome.CUT, seed=9)
    wrong = request.model_copy(update={"unjudged": None, "error": "no rubric"})
    missing, invalid = judge(make_reward(), [request, wrong])
    assert (missing.unjudged, missing.failed) == (Outcome.CUT, ("rubric_cut",))
    assert (invalid.unjudged, invalid.failed, invalid.reward) == (None, ("rubric_format",), -0.1)


def columns(seeds: list[int]) -> dict[str, Any]:
    return {
        "passage": [passage.model_dump_json() for passage in passages(len(seeds))],
        "kind": ["free"] * len(seeds),
        "guiding_text": [BASE_TEXT] * len(seeds),
        "rubric_model": ["p"] * len(seeds),
        "seed": seeds,
    }


def test_trl_is_told_none_and_dspy_a_neutral_number(tmp_path: Path) -> None:
    ReplyCache(tmp_path / "replies.sqlite")
    log = OutcomeLog(tmp_path / "replies.sqlite")
    reward = make_reward(writer=Moody({1: Outcome.CUT}), neutral=0.125, outcomes=log)
    for _ in range(2):  # a step that is sampled again counts once
        rewards = reward(["p"] * 3, [LINES, LINES, "<think>Hm."], **columns([0, 1, 2]))
        assert rewards[0] > 0.2 and rewards[1:] == [None, -0.1]
    assert log.counts() == {"policy": {"read": 2, "cut": 1}}
    gold = dspy.Example(passage=passages(2)[1], kind="free", seed=1)
    told = reward.metric(gold, dspy.Prediction(rubric=rubric("mechanism")))
    assert told.score == 0.125 and "Not judged" in told.feedback
    told = reward.metric(gold, dspy.Prediction(error="refused", unjudged=Outcome.REFUSAL))
    assert told.score == 0.125


def test_a_policy_learns_nothing_from_what_was_not_judged(tmp_path: Path) -> None:
    """Where no pair at all can be judged, the weights stay what they were, whatever the rubrics."""
    policy = tiny_policy(tmp_path / "model")
    every = Moody({})
    every.moods = _Always()  # type: ignore[assignment]
    settings = PolicyOptimizer(
        steps=2, group_size=4, passages_per_step=2, temperature=1.0, lr=1e-1, max_tokens=16, kl=0.0, lora=Lora(r=4)
    )
    spec = ModelSpec(name=str(policy), device="cpu")
    reward = make_reward(writer=every, checks=None)
    found = train_policy(PolicyTask(spec, settings, reward, passages(2), BASE_TEXT, Shape(), tmp_path / "run", 11))
    from safetensors.torch import load_file

    trained = load_file(found.adapter / "adapter_model.safetensors")
    assert all(not value.any() for name, value in trained.items() if "lora_B" in name)
    assert [row["step"] for row in found.history] == [1, 2]
    json.dumps(found.history, allow_nan=False)


class _Always(dict[int, Outcome]):
    def __contains__(self, seed: object) -> bool:
        return True

    def __getitem__(self, seed: int) -> Outcome:
        return Outcome.REFUSAL


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_a_search_for_a_guiding_text_ends_with_and_without_verdicts(tmp_path: Path, share: float) -> None:
    from optimsyn.optimize.prompt import optimize_guiding_text
    from optimsyn.optimize.prompt_task import PromptTask
    from optimsyn.programs.rubric import RubricWriter

    class Some(_Always):
        def __contains__(self, seed: object) -> bool:
            return int(str(seed)[-2:]) % 10 < 10 * share if share < 1 else True

    writer = Moody({})
    writer.moods = Some()
    reward = make_reward(writer=writer, neutral=0.05)
    config = PromptOptimizer(metric_calls=40, minibatch=3, passages=6)
    writer = RubricWriter(RubricModel(), BASE_TEXT)
    found = optimize_guiding_text(PromptTask(config, writer, reward, passages(8), Shape(), 5, tmp_path))
    assert found.guiding_text.startswith(BASE_TEXT)
    if share == 1:
        assert (found.guiding_text, found.judged, found.score) == (BASE_TEXT, 0, pytest.approx(0.05))
    else:
        assert 0 < found.judged <= 40
