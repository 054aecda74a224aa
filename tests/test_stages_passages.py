"""Passages of their own for warm-up, optimisers and synthesis."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimsyn.base.seeds import derive_seed, shuffled
from optimsyn.data.records import Passage
from optimsyn.data.splits import PARTS, passage_notes, passage_parts
from optimsyn.machine.forecast.lengths import measure
from optimsyn.machine.forecast.requests import forecast
from optimsyn.machine.preflight import validate
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.stages.shared import Tools
from tests.stages_helpers import run_stage

DISJOINT = {"synthesis.passages": "disjoint"}
QUICKSTART = Recipe.load("recipes/quickstart.yaml")


@settings(max_examples=30)
@given(
    count=st.integers(1, 400),
    drafts=st.integers(2, 60),
    pairs=st.integers(2, 60),
    steps=st.integers(1, 90),
    on=st.booleans(),
)
def test_parts_are_disjoint_whole_and_in_proportion(count: int, drafts: int, pairs: int, steps: int, on: bool) -> None:
    changes = {"warm_up.pairs": drafts, "synthesis.pairs": pairs, "synthesis.oversample": 1.5}
    changes |= {"optimizers.policy.steps": steps, "optimizers.policy.enabled": on, "optimizers.prompt.enabled": False}
    recipe = changed(QUICKSTART, {**DISJOINT, **changes})
    assert passage_parts(changed(recipe, {"synthesis.passages": "all"}), count) is None
    parts = passage_parts(recipe, count)
    (note,) = passage_notes(recipe, count)
    candidates = recipe.synthesis.first_round
    if parts is None:
        assert "too few" in note
        assert count < 2 * (drafts + candidates)
        return
    assert [place for part in PARTS for place in parts[part]] == list(range(count))
    assert "share no passage" in note
    asked = {"warm_up": drafts, "synthesize": candidates}
    learning = steps * recipe.optimizers.policy.passages_per_step if on else 0
    assert (len(parts["optimize"]) > 0) == on
    total = drafts + candidates + min(learning, drafts + candidates)
    for part, requests in asked.items():
        assert abs(len(parts[part]) - count * requests / total) <= 1  # type: ignore[index]
        assert requests <= 4 * len(parts[part])  # type: ignore[index]


def tools_of(recipe: Recipe, count: int) -> Tools:
    found = Tools(SimpleNamespace(recipe=recipe))  # type: ignore[arg-type]
    rows = [Passage(id=f"p{i}", document_id="d", text=f"text {i}", char_start=0, char_end=6) for i in range(count)]
    vars(found)["passages"] = rows
    return found


def test_all_is_the_default_and_the_old_order() -> None:
    for recipe in (QUICKSTART, changed(QUICKSTART, {"synthesis.passages": "all"})):
        assert recipe.fingerprint == QUICKSTART.fingerprint
        tools = tools_of(recipe, 9)
        order = shuffled([f"p{i}" for i in range(9)], recipe.seed, "passages")
        for variant in ("first_draft", "static", "policy", ""):
            walked = [tools.candidate(index, variant) for index in range(20)]
            assert [passage.id for passage, _ in walked] == [order[index % 9] for index in range(20)]
            assert [seed for _, seed in walked] == [derive_seed(recipe.seed, "candidate", i) for i in range(20)]
        assert [passage.id for passage in tools.passages_for("optimize")] == order
    assert changed(QUICKSTART, DISJOINT).fingerprint != QUICKSTART.fingerprint


def test_a_run_of_before_keeps_its_order(tmp_path: Path) -> None:
    raw = QUICKSTART.model_dump(mode="json")
    raw["synthesis"].pop("passages")
    (tmp_path / "recipe.yaml").write_text(json.dumps(raw))
    assert Recipe.load(tmp_path / "recipe.yaml", of_run=True).synthesis.passages == "all"


def test_parts_walk_passages_of_their_own() -> None:
    tools = tools_of(changed(QUICKSTART, DISJOINT), 400)
    walked = {
        "warm_up": {tools.candidate(index, "first_draft")[0].id for index in range(500)},
        "optimize": {passage.id for passage in tools.passages_for("optimize")},
        "synthesize": {tools.candidate(index, "static")[0].id for index in range(500)},
    }
    assert all(walked.values())
    assert sum(map(len, walked.values())) == len(set().union(*walked.values())) == 400
    assert {tools.candidate(index, "policy")[0].id for index in range(500)} == walked["synthesize"]


def test_the_forecast_knows_which_candidates_are_those_of_the_first_draft() -> None:
    changes = {"optimizers.prompt.enabled": False, "optimizers.policy.enabled": False, "models.generator": "openai/g"}
    recipe = changed(QUICKSTART, {**changes, "models.rubric": "openai/r", "synthesis.pairs": 60})
    apart, drafts = changed(recipe, DISJOINT), recipe.warm_up.pairs

    def sent(of: Recipe, passages: int) -> Any:
        return forecast(of, measure(of, [], None), passages).of("synthesize").requests

    shared = sent(recipe, 400)
    # A rubric and a pair for each candidate that is not asked for again.
    assert sent(apart, 400).expected == pytest.approx(shared.expected + 2 * drafts)
    assert sent(recipe, 0) == shared
    few = 1
    assert passage_parts(apart, few) is None
    assert sent(apart, few) == shared, "shared after all"
    unread = sent(apart, 0)
    assert (unread.low, unread.high) == (shared.low, sent(apart, 400).high)


@pytest.mark.slow
def test_a_run_judges_each_stage_on_passages_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    run = Run.open(changed(recipe, {**DISJOINT, "optimizers.prompt.passages": 4}), tmp_path / "runs")
    found = validate(run.recipe, ask=False)
    assert not found.problems
    assert not any("too few for warm-up" in warning for warning in found.warnings)
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize"):
        run_stage(run, stage)
    assert any("share no passage" in note for note in run_stage(run, "prepare").notes)
    used: dict[str, set[str]] = {"warm_up": set()}
    for line in run.path("warm_up", "pairs.jsonl").open():
        used["warm_up"].add(json.loads(line)["passage_id"])
    for line in run.path("rewards.jsonl").open():
        row = json.loads(line)
        used.setdefault(row["source"], set()).add(row["passage_id"])
    assert sorted(used) == ["optimize_prompt", "synthesize", "warm_up"]
    assert sum(map(len, used.values())) == len(set().union(*used.values()))


def test_validate_says_where_passages_are_too_few(recipe: Recipe) -> None:
    many = changed(recipe, {**DISJOINT, "warm_up.pairs": 60})
    assert any("too few for warm-up" in warning for warning in validate(many, offline=True).warnings)
