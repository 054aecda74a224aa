"""The target warmed up again between rounds in a run: what it judges by, what it costs, and what follows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from optimize_helpers import WORTH, tiny_policy

from optimsyn.base.errors import RecipeError, ReplyError
from optimsyn.base.files import iter_json, read_jsonl
from optimsyn.data.records import Pair
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.machine.disk_need import disk_need
from optimsyn.machine.forecast.lengths import measure
from optimsyn.machine.forecast.requests import forecast
from optimsyn.programs.rubric import complete_rubric
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.stages.candidates import judged_by_an_optimiser
from optimsyn.stages.policy.warm_up_again import WarmUpAgain
from optimsyn.stages.shared import Tools
from optimsyn.target.target import Target
from optimsyn.target.warm_up.parts import parts_of
from tests.llm_helpers import Answer, Service, said
from tests.stages_helpers import answer, asked_twice, run_stage

ASKS = {"mechanism": "How did", "quantity": "How much did", "comparison": "What more did", "definition": "What did"}
POLICY = {
    "method": "expert", "rounds": 2, "steps": 2, "passages_per_step": 2, "group_size": 4, "temperature": 1.0,
    "max_tokens": 16, "held_passages": 0, "epochs": 1, "lora": {"r": 4}, "enabled": True, "warm_up_again": True,
}  # fmt: skip


def by_rubric(number: int, request: dict[str, Any]) -> Answer:
    """As `answer`, with a question that depends on the rubric."""
    text = request["messages"][-1]["content"]
    kind = next((name for name in WORTH if name in text), None)
    if kind is None:
        return answer(number, request)
    name = re.findall(r"The city of (\w+) mined (\w+)", text)[-1]
    return said(json.dumps({"quote": "", "question": f"{ASKS[kind]} {name[0]} dig for?", "answer": name[1]}))


def as_read(text: str) -> str:
    try:
        return str(complete_rubric(text))
    except ReplyError as error:
        return str(error)


@pytest.fixture
def learning(recipe: Recipe, served: Service, tmp_path: Path) -> Recipe:
    served.answer = by_rubric
    raw = recipe.model_dump(mode="json")
    raw["models"]["rubric"] = {"name": str(tiny_policy(tmp_path / "policy")), "device": "cpu", "max_tokens": 16}
    raw["warm_up"]["pairs"] = 12
    raw["optimizers"] |= {"policy": POLICY, "prompt": {"enabled": False}}
    return Recipe.parse(raw)


def test_a_run_judges_all_rubrics_by_the_newest_target_and_everything_else_by_its_own(
    learning: Recipe, served: Service, tmp_path: Path
) -> None:
    run = Run.open(learning, tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt"):
        run_stage(run, stage)
    result = run_stage(run, "train_policy")
    assert [step.step for step in result.history] == [1, 2]
    assert any(re.search(r"After round 1 the target was warmed up again, on \d+ valid", note) for note in result.notes)

    folder = run.path("train_policy", "warm_up-1")
    pairs = read_jsonl(folder / "pairs.jsonl", Pair)
    assert {pair.rubric.question_type for pair in pairs if pair.rubric} <= {*WORTH, "forbidden"}
    # The same warm-up on a target that was never warmed up before.
    target, config = Target.load(learning.models.target, seed=learning.seed_of("data")), learning.warm_up
    trained, unseen, search = parts_of(learning, pairs)
    questions = Tools(run).validation
    target.warm_up(
        trained, questions=questions, unseen=unseen, search=search, steps=config.steps, lr=config.lr,
        batch_size=config.batch_size, max_grad_norm=config.max_grad_norm, seed=learning.seed_of("data"),
    )  # fmt: skip
    again = {row["key"]: row for row in iter_json(folder / "rewards.jsonl")}
    assert len({row["scorer"] for row in again.values()}) == 1
    rubrics = list(iter_json(run.path("train_policy", "rubrics.jsonl")))
    assert {row["warm_up"] for row in rubrics} == {1} and {row["round"] for row in rubrics} == {1, 2}
    scored = [(row["influence"], Pair.model_validate(row["pair"])) for row in again.values() if row["valid"]]
    scorer = InfluenceScorer(target, questions, tokens=learning.influence.tokens)
    expected = scorer.score([pair for _, pair in scored]).total.tolist()
    assert [value for value, _ in scored] == pytest.approx(expected, rel=1e-3, abs=1e-9)

    # Its own ledger is of its own warm-up, and nothing later takes notice of the other.
    first = list(iter_json(run.path("rewards.jsonl")))
    assert {row["scorer"] for row in first}.isdisjoint(row["scorer"] for row in again.values())
    by_pair = {(row["passage_id"], row["seed"], str(row["rubric"])): row["influence"] for row in first if row["valid"]}
    both = [
        (by_pair[key], row["influence"])
        for row in again.values()
        if row["valid"] and (key := (row["passage_id"], row["seed"], str(row["rubric"]))) in by_pair
    ]
    assert both and all(before != after for before, after in both)
    asked = {(row["passage_id"], row["seed"], as_read(row["text"])) for row in rubrics}
    assert judged_by_an_optimiser(Tools(run)) == len(asked) + config.pairs
    # What comes after the training finds the run's own warm-up in the target.
    tools = Tools(run)
    own = tools.target.checkpoints[-1].state
    tools.target.add_checkpoints_from(folder / "checkpoints")
    WarmUpAgain(tools, cast("Any", None), "", cast("Any", None)).end()
    for name, parameter in tools.target.parameters.items():
        assert parameter.detach().equal(own[name])
    assert not any("another scorer" in note for note in run_stage(run, "synthesize").notes)
    assert asked_twice(served) == []


def test_what_it_costs_is_foreseen_and_what_it_cannot_follow_is_refused(learning: Recipe) -> None:
    once = changed(learning, {"optimizers.policy.warm_up_again": False})

    def sent(recipe: Recipe) -> float:
        return forecast(recipe, measure(recipe, [], None)).of("train_policy").requests.expected

    assert sent(learning) - sent(once) == learning.warm_up.pairs
    assert once.fingerprint != learning.fingerprint
    more, less = (disk_need(each, Path("runs")).parts["policy training"] for each in (learning, once))
    assert more > less
    # A reward that does not ask the target has none warmed up.
    assert changed(learning, {"reward.source": "random"}).further_warm_ups == 0
    with pytest.raises(RecipeError, match="warm_up_again has all rubrics judged again"):
        changed(learning, {"reward.given": "judged"})
