"""The author in a run: its pairs and trajectories, a kill, what is foreseen, and what the policy learns of it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_helpers import recipe_of

from optimsyn.base.errors import BudgetError, RecipeError
from optimsyn.base.files import iter_json, read_jsonl
from optimsyn.machine.disk_need import disk_need
from optimsyn.machine.forecast.lengths import measure
from optimsyn.machine.forecast.requests import forecast
from optimsyn.machine.preflight import validate
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.report.page.report import write_report
from optimsyn.reward.author.trajectory import Ending, Trajectory
from optimsyn.runs.folder import Run
from optimsyn.runs.results.built_in import SynthesizeResult
from tests.llm_helpers import Answer, Service, said
from tests.stages_helpers import answer, asked_twice, run_stage

RUBRIC = """Do: draft
Question type: {kind}
Question quality: names its city
Answer quality: one word
Alignment: the answer is a metal
Trainability: a fact of the mines"""
STEPS = (
    "Do: search mined harbour",
    "Do: questions",
    RUBRIC.format(kind="fact"),
    RUBRIC.format(kind="cause"),
    "Do: score 1 2",
)
NO_SEARCH = {"optimizers.prompt.enabled": False}
AUTHOR = {"author": {"enabled": True, "drafts": 2}, **NO_SEARCH}
BATCHED = {"name": "openai/gpt-4.1-mini", "batch": True}


def is_author(request: dict[str, Any]) -> bool:
    return "You work in steps." in request["messages"][0]["content"]


def with_author(number: int, request: dict[str, Any]) -> Answer:
    """As `answer`, and an author who finishes with the draft of the highest reward that it was shown.

    The pair depends on the rubric, so that drafts can differ in reward.
    """
    text = request["messages"][-1]["content"]
    if is_author(request):
        done = text.count("\nResult: ")
        if done < len(STEPS):
            return said(f"Thought: on to step {done + 1}\n{STEPS[done]}")
        rewards = re.findall(r"Draft (\d): reward (\S+)\.", text)
        return said(f"Do: finish {max(rewards, key=lambda each: float(each[1]))[0]}")
    if "Rubric: cause" in text:
        name = re.findall(r"The city of (\w+) mined (\w+)", text)[-1]
        return said(json.dumps({"quote": "", "question": f"What made {name[0]} rich?", "answer": name[1]}))
    return answer(number, request)


def synthesized(run: Run) -> SynthesizeResult:
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize"):
        run_stage(run, stage)
    return SynthesizeResult.load(run)


def test_the_author_is_a_variant_like_the_others(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    served.answer = with_author
    run = Run.open(changed(recipe, AUTHOR), tmp_path / "runs")
    found = synthesized(run)
    assert found.dataset == "author" and set(found.losses) == {"no_rubric", "static", "author"}
    candidates = list(iter_json(run.path("synthesize", "author.candidates.jsonl")))
    done = read_jsonl(run.path("synthesize", "author.trajectories.jsonl"), Trajectory)
    assert [(row["passage_id"], row["seed"]) for row in candidates] == [(each.passage_id, each.seed) for each in done]
    ledger = {row["key"]: row for row in iter_json(run.path("rewards.jsonl"))}
    for row, each in zip(candidates, done, strict=True):
        # The chosen draft is the candidate, and the better of the two by the ledger's own numbers.
        assert (each.ended, each.decided, len(each.steps)) == (Ending.FINISHED, "model", 6)
        judged = [ledger[draft.key or ""] for draft in each.drafts]
        assert [draft.reward for draft in each.drafts] == [step["reward"] for step in judged]
        assert row["key"] == max(judged, key=lambda one: one["reward"])["key"]
        assert each.reward == row["reward"] == max(one["reward"] for one in judged)
        assert {one["variant"] for one in judged} == {"author"}
    assert {row["rubric"]["question_type"] for row in candidates} <= {"fact", "cause"}
    # Test questions are in no prompt, and of the validation questions only what kind they are.
    prompts = "".join(json.dumps(request["messages"]) for request in served.requests if is_author(request))
    for part in ("test", "validation"):
        for question in iter_json(run.path("prepare", f"{part}.jsonl")):
            assert question["question"] not in prompts
    assert "They often begin: in which" in prompts
    assert not asked_twice(served)
    # What comes after knows it as a variant.
    for stage in ("fine_tune", "evaluate"):
        run_stage(run, stage)
    assert "author with tools" in write_report(run).read_text(encoding="utf-8")
    assert {row["variant"] for row in json.loads(run.path("evaluation.json").read_text())} >= {"author", "static"}


def test_a_cap_of_the_run_stops_it_and_it_goes_on_without_buying_twice(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    served.answer = with_author
    whole = Run.open(changed(recipe, AUTHOR), tmp_path / "whole")
    synthesized(whole)
    bought = len(served.requests)
    first = sum(map(is_author, served.requests))
    before = served.requests.copy()
    served.requests.clear()
    capped = changed(recipe, {**AUTHOR, "limits.requests": bought - first // 2})
    with pytest.raises(BudgetError, match="limits.requests"):
        synthesized(Run.open(capped, tmp_path / "capped"))
    run = Run.open(changed(recipe, AUTHOR), tmp_path / "capped")
    synthesized(run)
    assert len(served.requests) == bought and not asked_twice(served)
    assert Counter(map(json.dumps, before)) == Counter(map(json.dumps, served.requests))
    for name in ("author.trajectories.jsonl", "author.selected.jsonl"):
        assert run.path("synthesize", name).read_bytes() == whole.path("synthesize", name).read_bytes()


CHILD = """
import sys
from pathlib import Path
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.stages import synthesize
synthesize.run(Run.open(Recipe.load(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_a_killed_author_goes_on_where_it_was(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    def slowly(number: int, request: dict[str, Any]) -> Answer:
        reply = with_author(number, request)
        reply.delay_s = 0.05 if is_author(request) else 0.0
        return reply

    served.answer = slowly
    file = tmp_path / "mines.yaml"
    file.write_text(yaml.safe_dump(changed(recipe, AUTHOR).model_dump(mode="json")))
    run = Run.open(Recipe.load(file), tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy"):
        run_stage(run, stage)
    before = len(served.requests)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(file), str(tmp_path / "runs")])
    while sum(map(is_author, served.requests)) < 12 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    in_hand = served.most_busy
    run_stage(run, "synthesize")
    done = read_jsonl(run.path("synthesize", "author.trajectories.jsonl"), Trajectory)
    assert all(each.ended is Ending.FINISHED for each in done)
    # Only what was under way at the kill is asked for again.
    assert len(asked_twice(served)) <= in_hand
    assert len(served.requests) > before


def test_validate_and_forecast_know_what_the_author_asks_for(tmp_path: Path) -> None:
    base = changed(recipe_of(tmp_path), {"synthesis.pairs": 10, "synthesis.oversample": 2})
    chat = {"models.author": "openai/gpt-4.1-mini"}

    def sent(stage: str = "synthesize", **changes: Any) -> Any:
        recipe = changed(base, changes)
        return forecast(recipe, measure(recipe, [], None)).of(stage).requests

    arms = {"synthesis.arms": ["static", "author"], "author.drafts": 3, "author.steps": 12}
    static = sent(**{"synthesis.arms": ["static"]})
    # By the plan, two further drafts and their pairs for each of 20 candidates.
    assert sent(**arms).expected - static.expected == pytest.approx(20 * 2 * 2)
    by_model = sent(**arms, **chat)
    assert by_model.expected - static.expected == pytest.approx(20 * (9 + 3))
    assert by_model.high - static.high == pytest.approx(20 * (12 + 3))
    lessons = {"optimizers.policy": {"enabled": True, "method": "expert", "learn_from": "author"}, "author.lessons": 4}
    alone = sent("train_policy", **{"optimizers.policy": {"enabled": True, "method": "expert"}})
    assert sent("train_policy", **lessons, **chat).expected - alone.expected == pytest.approx(4 * (9 + 3))
    room = disk_need(changed(base, {**arms, **chat}), tmp_path).parts["replies"]
    assert room > disk_need(changed(base, {"synthesis.arms": ["static"]}), tmp_path).parts["replies"]

    def said_of(**changes: Any) -> str:
        found = validate(changed(base, changes), deep=False, here=False, offline=True)
        return "\n".join([*found.problems, *found.warnings])

    assert "follows no instructions and calls no tools, so nobody chooses: 3 drafts" in said_of(**arms)
    assert "nobody chooses" not in said_of(**arms, **chat)
    instruct = {"models.author": "text-completion-openai/gpt-3.5-turbo-instruct"}
    assert "as a model of mode completion, not of chat" in said_of(**arms, **instruct)
    unpriced = {"models.author": {"name": "openai/mine", "api_base": "http://localhost:1/v1"}, "author.cost_usd": 1}
    assert "models.author: author.cost_usd cannot hold" in said_of(**arms, **unpriced)
    assert "synthesis.arms does not name author" in said_of(**{"synthesis.arms": ["static"], "author.enabled": True})
    assert "learn_from is for expert and dpo" in said_of(
        **{"optimizers.policy": {"enabled": True, "learn_from": "author"}}
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"author": {"enabled": True, "decides": "model"}}, "models.rubric is 'embedded', a base model"),
        ({"models.author": "openai/gpt-4.1-mini"}, "models.author is named, and no author works"),
        ({"author": {"enabled": True, "text": "optimized"}, **NO_SEARCH}, "author.text: optimized"),
        ({"author.enabled": True, "models.author": BATCHED}, "models.author.batch"),
        ({"synthesis.dataset": "author"}, "its author is disabled"),
        ({"author.step": 3}, "author.step"),
    ],
)  # fmt: skip
def test_an_author_that_cannot_work_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        changed(recipe_of(tmp_path), changes)


def test_a_recipe_without_an_author_is_what_it_was(tmp_path: Path) -> None:
    raw = {"documents": {"source": "embedded:law"}, "questions": {"validation": "embedded:law"}}
    before = Recipe.parse({**raw, "name": "same", "guiding_text": "Ask about a duty that the clause sets."})
    assert before.fingerprint == "78df06ab7c"
    enabled = changed(before, {"author.enabled": True})
    assert enabled.fingerprint != before.fingerprint
    assert enabled.variants == ("no_rubric", "static", "author", "optimized", "policy")
    assert changed(enabled, {"author.enabled": False}).fingerprint == before.fingerprint
