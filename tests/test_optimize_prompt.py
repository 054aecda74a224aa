"""GEPA on the guiding text: it improves, keeps the start text, resumes by replay, and never hides a failure."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optimize_helpers import BASE_TEXT, WORTH, PairWriter, RubricModel, Scorer, Shape, make_reward, passages
from optimize_run import run_prompt

from optimsyn.base.errors import BudgetError, ModelError, ServiceError
from optimsyn.base.files import iter_json
from optimsyn.llm.language_model import Call
from optimsyn.optimize.history import read_history
from optimsyn.optimize.prompt import PromptResult, optimize_guiding_text
from optimsyn.optimize.prompt_task import PromptTask
from optimsyn.programs.rubric import RubricWriter
from optimsyn.recipe.sections.optimizers import PromptOptimizer

SCRIPT = Path(__file__).with_name("optimize_run.py")


def search(folder: Path, *, calls: int = 60, reward: Any = None, model: Any = None, **more: Any) -> PromptResult:
    config = PromptOptimizer(metric_calls=calls, minibatch=3, passages=6)
    writer = RubricWriter(model or RubricModel(), BASE_TEXT)
    reward = reward or make_reward(source="optimize_prompt")
    return optimize_guiding_text(PromptTask(config, writer, reward, passages(8), Shape(), 5, folder, **more))


def test_search_improves_within_its_budget_and_writes_a_history(tmp_path: Path) -> None:
    reward = make_reward(source="optimize_prompt")
    found = search(tmp_path, reward=reward)
    assert found.score > found.start_score + 0.1
    assert found.guiding_text.startswith(BASE_TEXT)
    assert "Question types that taught most: mechanism" in found.guiding_text
    assert found.score == pytest.approx(WORTH["mechanism"], abs=0.02)
    assert found.judged == len(reward.answered) <= 60
    assert len({row.passage_id for row in reward.answered}) == 6
    rows = read_history(tmp_path / "history.jsonl")
    assert rows == found.history
    assert rows[0]["status"] == "start"
    assert rows[0]["guiding_text"] == BASE_TEXT
    assert {row["status"] for row in rows} == {"start", "compared", "rejected"}
    assert found.candidates == len(rows)
    assert {row["passages"] for row in rows if row["status"] != "rejected"} == {6}
    assert {row["passages"] for row in rows if row["status"] == "rejected"} == {3}
    best = [row["best"] for row in rows]
    assert best == sorted(best)
    assert best[-1] == found.score


def test_the_start_text_stays_when_nothing_beats_it(tmp_path: Path) -> None:
    class Same(Scorer):
        def worth(self, pair: Any) -> float:
            return 0.1

    found = search(tmp_path, reward=make_reward(scorer=Same()))
    assert found.guiding_text == BASE_TEXT
    assert found.score == found.start_score == pytest.approx(0.1)


def test_a_small_budget_still_compares_one_proposal_in_full(tmp_path: Path) -> None:
    found = search(tmp_path, calls=4)
    assert found.judged <= 4
    assert found.candidates >= 2


def test_a_finished_search_is_not_repeated_and_another_one_is_not_mistaken_for_it(tmp_path: Path) -> None:
    first = search(tmp_path)
    idle = make_reward()
    assert search(tmp_path, reward=idle) == first
    assert idle.answered == []
    assert search(tmp_path, calls=20, reward=idle).judged <= 20


@pytest.mark.slow
def test_replay_from_the_ledger_takes_the_same_path_and_buys_nothing(tmp_path: Path) -> None:
    first = run_prompt(tmp_path, None)
    bought = (tmp_path / "written.log").read_text()
    (tmp_path / "prompt" / "result.json").unlink()
    again = run_prompt(tmp_path, None)
    assert again.pop("requests") == 0
    assert first.pop("requests") > 0
    assert again == first
    assert (tmp_path / "written.log").read_text() == bought


@pytest.mark.parametrize(
    "error", [ServiceError("connection refused"), BudgetError("cap reached"), ModelError("no memory"), KeyError("bug")]
)
def test_an_error_of_the_generator_stops_the_search(tmp_path: Path, error: Exception) -> None:
    writer = PairWriter(fail_at=10)
    writer.fails = error
    with pytest.raises(type(error), match=str(error.args[0])):
        search(tmp_path, reward=make_reward(writer=writer))
    # Nothing is bought after it but what was under way.
    assert len(writer.written) <= 10
    assert not (tmp_path / "result.json").exists()


def test_an_error_of_the_rubric_model_stops_the_search(tmp_path: Path) -> None:
    model = RubricModel(fails=ServiceError("models.rubric: wrong key"))
    with pytest.raises(ServiceError, match="wrong key"):
        search(tmp_path, model=model)
    assert model.requests <= 6


def test_a_number_that_is_none_stops_the_search(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a finite number"):
        search(tmp_path, reward=make_reward(scorer=Scorer(float("nan"))))


def test_a_rubric_model_of_garbage_stops_the_search_only_after_a_while(tmp_path: Path) -> None:
    model = RubricModel(garbage=True)
    with pytest.raises(ServiceError, match=r"test/rubrics.*12 replies in a row"):
        search(tmp_path, model=model)
    assert model.requests == 6, "gepa evaluates the start text again, and no equal request is sent twice"


class Reflection(RubricModel):
    """Proposes a fixed text, junk or nothing."""

    chat = True

    def __init__(self, reply: str, fails: Exception | None = None) -> None:
        super().__init__(fails=fails)
        self.reply = reply
        self.name = "test/reflection"
        self.seen: list[str] = []

    def text_for(self, call: Call, kind: str) -> str:
        self.seen.append(json.dumps(call.messages))
        return self.reply


@pytest.mark.slow
def test_a_reflection_model_sees_the_feedback_and_its_text_is_tried(tmp_path: Path) -> None:
    text = "Ask how things work. Question types that taught most: mechanism."
    reflection = Reflection(json.dumps({"new_instruction": text}))
    found = search(tmp_path, reflection=reflection)
    assert found.guiding_text == text
    assert "influence" in reflection.seen[0]
    assert BASE_TEXT in reflection.seen[0]
    assert "would teach the model" in reflection.seen[0]


def test_a_failing_reflection_service_surfaces(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"models.reflection: timed out"):
        search(tmp_path, reflection=Reflection("", ServiceError("models.reflection: timed out")))


def test_a_junk_reflection_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"test/reflection.*3 proposals in a row were unusable"):
        search(tmp_path, reflection=Reflection("certainly!"))
    assert [row["status"] for row in read_history(tmp_path / "history.jsonl")].count("proposal failed") == 3


async def test_it_also_runs_inside_a_running_event_loop(tmp_path: Path) -> None:
    await asyncio.sleep(0)
    assert search(tmp_path, calls=20).score > 0


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [4, 30])
def test_kill_9_then_again_ends_like_an_undisturbed_search_and_repeats_no_judged_pair(
    tmp_path: Path, kill_at: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    expected = run_prompt(whole, None)

    def start(*limit: str) -> int:
        command = [sys.executable, str(SCRIPT), "prompt", str(killed), *limit]
        return subprocess.run(command, check=False, capture_output=True, timeout=600).returncode

    assert start(str(kill_at)) == -9
    ledger = killed / "rewards.jsonl"
    judged = {row["pair"]["id"] for row in iter_json(ledger, tolerate_torn=True)} if ledger.exists() else set()
    before = len((killed / "written.log").read_text().split())
    assert start() == 0
    written_again = set((killed / "written.log").read_text().split()[before:])
    assert not judged & written_again
    found = json.loads((killed / "outcome.json").read_text())
    found.pop("requests")
    expected.pop("requests")
    assert found == expected
    rows = list(iter_json(ledger))
    assert len({row["key"] for row in rows}) == len(rows) == expected["judged"]
