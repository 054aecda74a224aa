"""A target that is warmed up again between rounds: all rubrics are judged by the newest one, also after a kill."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from optimize_helpers import BASE_TEXT, WORTH, PairWriter, Scorer, Shape, make_reward, passages, rubric, tiny_policy

from optimsyn.base.errors import RecipeError, ServiceError
from optimsyn.base.files import iter_json
from optimsyn.data.records import Pair
from optimsyn.optimize.policy import train_policy
from optimsyn.optimize.policy_task import WARM_UP, PolicyTask
from optimsyn.recipe.recipe import Lora, ModelSpec
from optimsyn.recipe.sections.optimizers import PolicyOptimizer
from optimsyn.reward.drafting import RubricRequest


class Learned(Scorer):
    """A target that has learned what the other one wants: only quantities are worth something to it."""

    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = "test-scorer-learned"

    def worth(self, pair: Pair) -> float:
        return super().worth(pair) - 2 * WORTH["mechanism"] * ("mechanism" in pair.answer)


class Renewed:
    """Warms up after each round; `refuses` as where too few first drafts are valid."""

    def __init__(self, folder: Path, writer: PairWriter, *, refuses: bool = False) -> None:
        self.folder, self.writer, self.refuses = folder, writer, refuses
        self.asked: list[Sequence[RubricRequest] | None] = []

    @property
    def blanks(self) -> list[RubricRequest]:
        return [RubricRequest(passage=each, kind="free", seed=n) for n, each in enumerate(passages(20)[15:])]

    def has(self, number: int) -> bool:
        return self._path(number).is_file()

    def reward(self, number: int, requests: Sequence[RubricRequest] | None) -> Any:
        self.asked.append(requests)
        path = self._path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        if self.refuses:
            return None
        ledger = path.parent / "rewards.jsonl"
        return make_reward(ledger, scorer=Learned(), writer=self.writer, source="train_policy")

    def _path(self, number: int) -> Path:
        return self.folder / f"{WARM_UP}{number}" / "pairs.jsonl"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model")


def task_of(policy: Path, folder: Path, writer: PairWriter, **more: Any) -> PolicyTask:
    config = PolicyOptimizer(
        method="dpo", rounds=2, steps=3, passages_per_step=2, group_size=8, temperature=1.0, max_tokens=16,
        held_passages=6, lora=Lora(r=4), lr=1e-2, epochs=6, kl=0.1, warm_up_again=True,
    )  # fmt: skip
    reward = make_reward(folder / "rewards.jsonl", writer=writer, source="train_policy")
    spec, renewed = ModelSpec(name=str(policy), device="cpu"), Renewed(folder, writer, **more)
    return PolicyTask(
        spec, config, reward, passages(14), BASE_TEXT, Shape(), folder, 11, renewal=renewed
    )  # fmt: skip


def kind_of(row: dict[str, Any]) -> str | None:
    return next((name for name in WORTH if f" {row['text'].strip()}".splitlines()[0].endswith(f" {name}")), None)


def test_all_rubrics_are_judged_by_the_newest_target(policy: Path, tmp_path: Path) -> None:
    task = task_of(policy, tmp_path, PairWriter())
    found = train_policy(task)
    assert [row["step"] for row in found.history] == [1, 2]
    (asked,) = task.renewal.asked
    assert [request.seed for request in asked] == [0, 1, 2, 3, 4]
    assert {request.guiding_text for request in asked} == {BASE_TEXT} and any(request.rubric for request in asked)
    rubrics = list(iter_json(tmp_path / "rubrics.jsonl"))
    assert {row["warm_up"] for row in rubrics} == {1}
    valid = [row for row in rubrics if row["valid"]]
    assert {row["round"] for row in valid} == {0, 1, 2}
    for row in valid:
        # The helpers' noise is at most .02.
        worth = WORTH[kind_of(row)] - 2 * WORTH["mechanism"] * (kind_of(row) == "mechanism")
        assert row["reward"] == pytest.approx(worth, abs=0.021)
    assert found.history[1]["held_untrained"] == pytest.approx(
        fmean(row["reward"] for row in rubrics if row["held"] and row["round"] == 0)
    )
    # The first round's figures are by the newest target too, so that the two can be compared.
    assert found.history[0]["held_untrained"] == found.history[1]["held_untrained"]
    for row in found.history:
        of_round = [each for each in rubrics if each["round"] == row["step"]]
        assert row["reward"] == pytest.approx(fmean(each["reward"] for each in of_round if not each["held"]))
        assert row["held_reward"] == pytest.approx(fmean(each["reward"] for each in of_round if each["held"]))
    # What the first reward has judged stays as it was, and no pair is written twice.
    first = list(iter_json(tmp_path / "rewards.jsonl"))
    assert {row["scorer"] for row in first} == {"test-scorer-None"}
    assert {row["key"] for row in first}.isdisjoint(
        row["key"] for row in iter_json(tmp_path / "warm_up-1/rewards.jsonl")
    )


def test_a_failure_after_the_warm_up_and_the_next_call_end_like_an_undisturbed_training(
    policy: Path, tmp_path: Path
) -> None:
    writer = PairWriter()
    whole = train_policy(task_of(policy, tmp_path / "whole", writer))
    by_first = sum(1 for _ in iter_json(tmp_path / "whole" / "rewards.jsonl"))
    # While rubrics are judged again, while they still are, and in the second round.
    for fail_at in (by_first + 5, 3, len(writer.written) - by_first - 20):
        broken = PairWriter(fail_at=fail_at)
        broken.fails = ServiceError("connection refused")
        with pytest.raises(ServiceError, match="connection refused"):
            train_policy(task_of(policy, tmp_path / "broken", broken))
    task = task_of(policy, tmp_path / "broken", PairWriter())
    found = train_policy(task)
    assert found.outcome == whole.outcome
    names = ("whole", "broken")
    assert len({(tmp_path / each / "adapter" / "adapter_model.safetensors").read_bytes() for each in names}) == 1


def test_a_rubric_of_the_author_is_judged_again_as_it_was_written(policy: Path, tmp_path: Path) -> None:
    task = task_of(policy, tmp_path, PairWriter())
    lessons = [
        RubricRequest(
            passage=each, kind="free", rubric=rubric("**quantity**"), guiding_text="", seed=900 + n, variant="author"
        )
        for n, each in enumerate(task.passages)
    ]
    task.taught = asyncio.run(task.reward.judge(lessons))
    train_policy(task)
    again = [row for row in iter_json(tmp_path / "warm_up-1" / "rewards.jsonl") if row["seed"] >= 900]
    again = [row for row in again if row["seed"] < 900 + len(lessons)]
    held = task.config.held_passages
    assert [row["rubric"]["question_type"] for row in again] == ["**quantity**"] * (len(lessons) - held)


def test_a_target_that_could_not_be_warmed_up_again_keeps_judging(policy: Path, tmp_path: Path) -> None:
    found = train_policy(task_of(policy, tmp_path, PairWriter(), refuses=True))
    assert len(found.history) == 2
    assert {row["warm_up"] for row in iter_json(tmp_path / "rubrics.jsonl")} == {0}


def test_it_needs_rounds_to_be_between() -> None:
    for settings in ({"method": "grpo"}, {"method": "dpo", "rounds": 1}):
        with pytest.raises(RecipeError, match="warm_up_again: .* there are none"):
            PolicyOptimizer(**settings, warm_up_again=True)
    assert PolicyOptimizer(method="expert", rounds=3, warm_up_again=True).warm_ups == 2
