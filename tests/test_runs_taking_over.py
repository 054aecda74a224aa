"""One synthesized dataset, several targets: a run with `fine_tune.target` takes over the pairs of the one without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimsyn.base.errors import ModelError, StageError
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES
from optimsyn.runs.taking_over import TAKEN_OVER, take_over, take_over_beside, taken_from
from optimsyn.training.fine_tuning import fine_tune
from tests.llm_helpers import Service, save_tiny_model
from tests.stages_helpers import run_stage


def test_another_target_learns_the_same_pairs_and_nothing_is_bought(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    base = recipe.changed({"optimizers.prompt.enabled": False, "synthesis.arms": ["static"], "reward.look.pairs": 0})
    other = save_tiny_model(tmp_path / "other", seed=1)
    moved = base.changed({"fine_tune.target": {"name": str(other), "max_length": 256}})
    assert moved.fingerprint != base.fingerprint
    assert base.changed({"fine_tune.target": None}).fingerprint == base.fingerprint
    assert Recipe.parse(moved.model_dump(mode="json")).trained_target.name == str(other)

    run = Run.open(moved, tmp_path / "runs")
    assert take_over_beside(run) is None
    source = Run.open(base, tmp_path / "runs")
    with pytest.raises(StageError, match="has not finished its pairs"):
        take_over(run, source)
    for stage in STAGES[:5]:
        run_stage(source, stage)
    strange = Run.open(moved.changed({"synthesis.pairs": 3}), tmp_path / "runs")
    with pytest.raises(StageError, match="differs in more than"):
        take_over(strange, source)

    bought = len(served.requests)
    found = take_over_beside(run)
    assert found is not None
    assert found.name == source.name == taken_from(run)
    assert not take_over(run, source)
    assert run.pairs("static") == source.pairs("static")
    assert list(run.dataset) == list(source.dataset)
    assert not list(run.folder.glob("warm_up/**/*.safetensors"))
    for stage in STAGES[5:]:
        run_stage(run, stage)
    assert len(served.requests) == bought
    assert run.bought().replies == 0
    records = {record.name: record for record in run.manifest.stages}
    assert (records["synthesize"].seconds, records["synthesize"].notes[TAKEN_OVER]) == (None, source.name)
    assert records["fine_tune"].seconds is not None

    # The same adapter as that target gets by itself from these pairs.
    spec, seed = moved.trained_target, moved.seed_of("fine_tune")
    alone = fine_tune(spec, source.pairs("static"), moved.fine_tune, tmp_path / "alone", seed)
    mine = run.folder / "fine_tune" / "static" / "adapter" / "adapter_model.safetensors"
    assert mine.read_bytes() == (alone / "adapter_model.safetensors").read_bytes()
    rows = [json.loads(line)["id"] for line in (run.folder / "evaluate" / "static.jsonl").read_text().splitlines()]
    asked = [json.loads(line)["id"] for line in (source.folder / "prepare" / "test.jsonl").read_text().splitlines()]
    assert rows == asked

    tight = Run.open(moved.changed({"fine_tune.target.max_length": 33}), tmp_path / "runs")
    assert take_over_beside(tight) is not None
    with pytest.raises(ModelError, match="fine_tune.target: .* cannot read the test question '.*'"):
        run_stage(tight, "fine_tune")
    assert not (tight.folder / "fine_tune" / "static").exists()
