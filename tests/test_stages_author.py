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
from optimize_helpers import make_reward

from optimsyn.base.errors import BudgetError, RecipeError
from optimsyn.base.event_loops import run_sync
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
from optimsyn.stages.candidates import author_of, blank_request
from optimsyn.stages.shared import Tools
from tests.llm_helpers import Answer, Service, said
from tests.stages_helpers import NAMES, answer, asked_twice, run_stage

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


BETTER = "Ask which metal a city mined. Draft a fact."
SEARCHED = {
    "author": {"enabled": True, "drafts": 2, "steps": 4, "text": "optimized"},
    "optimizers.prompt": {"program": "author", "metric_calls": 8, "passages": 2, "minibatch": 2, "confirm_passages": 0},
}


def told_to_draft(number: int, request: dict[str, Any]) -> Answer:
    """An author who drafts a fact where its guidance says so, else a rubric of an invalid pair; and a reflection."""
    text = "\n".join(message["content"] for message in request["messages"])
    if "on how to work" in text:
        return said(json.dumps({"new_instruction": BETTER}))
    if is_author(request):
        kind = "fact" if "Draft a fact." in text else "poor"
        steps = ("Do: search mined harbour", RUBRIC.format(kind=kind), "Do: score 1", "Do: finish 1")
        return said(steps[min(text.count("\nResult: "), 3)])
    if "Rubric: poor" in text:
        return said(json.dumps({"quote": "", "question": "What is in the text above?", "answer": "Saturn"}))
    return with_author(number, request)


def test_the_text_that_makes_it_work_better_is_found_and_followed_in_synthesis(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    served.answer = told_to_draft
    few = {"synthesis.arms": ["static", "author"], "synthesis.pairs": 2}
    searched = changed(recipe, {**SEARCHED, **few, "models.reflection": recipe.models.rubric.model_dump(mode="json")})
    run = Run.open(searched, tmp_path / "runs")
    for stage in ("prepare", "warm_up"):
        run_stage(run, stage)
    drafted = len(served.requests)
    capped = changed(searched, {"limits.requests": drafted + 12})
    with pytest.raises(BudgetError, match="limits.requests"):
        run_stage(Run.open(capped, tmp_path / "runs"), "optimize_prompt")
    assert drafted < len(served.requests) <= drafted + 12
    run = Run.open(searched, tmp_path / "runs")
    found = run_stage(run, "optimize_prompt")
    assert (found.text, found.changed) == (BETTER, True) and found.score > found.start_score
    # What was bought before the cap was reached is not bought again, and all of it was foreseen.
    assert not asked_twice(served)
    foreseen = forecast(searched, measure(searched, [], None), len(NAMES)).of("optimize_prompt").requests
    assert foreseen.low <= len(served.requests) - drafted <= foreseen.high
    done = read_jsonl(run.path("optimize_prompt", "author.jsonl"), Trajectory)
    assert {each.guiding_text for each in done} == {recipe.guiding_text, BETTER} and len(done) <= 8
    ledger = [row for row in iter_json(run.path("rewards.jsonl")) if row["source"] == "optimize_prompt"]
    assert {row["key"] for row in ledger} == {draft.key for each in done for draft in each.drafts}
    for stage in ("train_policy", "synthesize"):
        run_stage(run, stage)
    made = read_jsonl(run.path("synthesize", "author.trajectories.jsonl"), Trajectory)
    assert {each.guiding_text for each in made} == {BETTER}
    rows = list(iter_json(run.path("synthesize", "author.candidates.jsonl")))
    assert {row["rubric"]["question_type"] for row in rows} == {"fact"}
    static = iter_json(run.path("synthesize", "static.candidates.jsonl"))
    assert {row["guiding_text"] for row in static} == {recipe.guiding_text}
    # Where the rubric writer drafts (the plan), it follows the text that is tried.
    tools = Tools(run)
    request = blank_request(tools, "author", 0).model_copy(update={"guiding_text": "Ask for another thing."})
    run_sync(author_of(tools, make_reward()).write(request))
    assert "Ask for another thing." in served.requests[-1]["messages"][-1]["content"]


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
    searches = {"optimizers.prompt.program": "author", "author": {"enabled": True, "text": "optimized", "drafts": 3}}
    plain, improved = sent("optimize_prompt"), sent("optimize_prompt", **searches, **chat)
    # A rubric and a pair for each call before; now up to 12 steps and 3 pairs.
    assert (plain.high, improved.high) == (40 * 2, 40 * (12 + 3))
    assert improved.expected == pytest.approx(plain.expected / 2 * (9 + 3))
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
        ({"optimizers.prompt.program": "author"}, "author.enabled is false; set author.enabled: true"),
        ({**SEARCHED, "author.text": "own"}, "with author.text: own it follows the recipe's"),
        ({**SEARCHED, "synthesis.arms": ["static"]}, "synthesis.arms does not name it; name the arm author"),
        ({**SEARCHED, "synthesis.arms": ["author", "optimized"]}, "names optimized: optimizers.prompt.program"),
        ({**SEARCHED, "synthesis.dataset": "optimized"}, "finds a text for the author alone"),
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
    # The text that is found is the author's alone.
    assert changed(before, SEARCHED).variants == ("no_rubric", "static", "author", "policy")
