"""A run whose generator is asked through a batch API: the same pairs, in few batches, at half the price."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimsyn.llm.hosted import batches
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from tests.batch_api_helpers import batch_apis
from tests.llm_helpers import Service
from tests.stages_helpers import answer, run_stage

STAGES = ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize")


def pairs_of(run: Run) -> list[Any]:
    return [json.loads(line) for line in run.path("dataset", "train.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_synthesis_and_first_drafts_go_in_batches_and_give_the_same_pairs(
    recipe: Recipe, served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "IDLE_S", 0.5)
    monkeypatch.setattr(batches, "FIRST_LOOK_S", 0.02)
    ordinary = Run.open(recipe, tmp_path / "ordinary")
    for stage in STAGES:
        run_stage(ordinary, stage)
    with batch_apis() as apis:
        apis.single = lambda body: json.loads(answer(0, body).body)
        apis.outcome = lambda body, batch: (200, json.loads(answer(0, body).body))
        models = {"models.generator.api_base": apis.base, "models.generator.batch": True}
        batched = Run.open(changed(recipe, models), tmp_path / "batched")
        for stage in STAGES:
            run_stage(batched, stage)
            expected = {"prepare": 0, "warm_up": 1, "optimize_prompt": 1, "train_policy": 1, "synthesize": 2}
            assert len(apis.batches) == expected[stage]
        assert pairs_of(batched) == pairs_of(ordinary)
        # The search needs one reply to ask for the next, so its pairs are asked for one by one.
        judged = json.loads(batched.path("optimize_prompt", "result.json").read_text())["numbers"]["judged"]
        assert 0 < len(apis.alone) <= judged
        sent = len(apis.lines) + len(apis.alone)
        keys = {json.dumps(body, sort_keys=True) for body in [*apis.lines, *apis.alone]}
        assert len(keys) == sent
    assert not any(path.name == "batches" for path in ordinary.folder.iterdir())
