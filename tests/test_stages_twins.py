"""Variants whose pairs are the same are trained once, and nobody takes their equal results for two findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from optimsyn.base.files import iter_json, write_jsonl
from optimsyn.data.records import Pair
from optimsyn.recipe.recipe import Recipe
from optimsyn.report.page.report import write_report
from optimsyn.runs.folder import Run
from optimsyn.training import evaluation, fine_tuning
from tests.stages_helpers import run_stage

SAID = "Optimised guiding text: same pairs as static guiding text, so both are one training and one result."


def counted(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls, real = [], getattr(module, name)

    def call(*args: Any, **options: Any) -> Any:
        calls.append((args, options))
        return real(*args, **options)

    monkeypatch.setattr(module, name, call)
    return calls


@pytest.mark.slow
def test_equal_variants_are_one_training_and_one_result(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(recipe, tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize"):
        run_stage(run, stage)

    def selected(variant: str) -> Path:
        return run.path("synthesize", f"{variant}.selected.jsonl")

    # Equal but for what the target never sees; the variant without a rubric differs in its order.
    pairs = [Pair.model_validate(row) for row in iter_json(selected("static"))]
    twins = [pair.model_copy(update={"variant": "optimized", "id": f"o{pair.id}"}) for pair in pairs]
    write_jsonl(selected("optimized"), twins)
    write_jsonl(selected("no_rubric"), pairs[::-1])
    trainings = counted(fine_tuning, "fine_tune", monkeypatch)
    evaluations = counted(evaluation, "evaluate", monkeypatch)
    tuned = run_stage(run, "fine_tune")
    assert {name: each.same_as for name, each in tuned.variants.items()} == {
        "no_rubric": None,
        "static": None,
        "optimized": "static",
    }
    assert [call[0][3].name for call in trainings] == ["no_rubric", "static"]
    assert tuned.notes == (SAID,)
    # What it took over is what a training of its own gives, and counts as finished.
    folder = run.path("fine_tune", "optimized")
    own = fine_tuning.fine_tune(recipe.models.target, twins, recipe.fine_tune, tmp_path / "own", recipe.seed)
    mine, others = (load_file(path / "adapter_model.safetensors") for path in (folder / "adapter", own))
    assert mine.keys() == others.keys() and all((mine[name] == others[name]).all() for name in mine)
    before = (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    fine_tuning.fine_tune(recipe.models.target, twins, recipe.fine_tune, folder, recipe.seed)
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert (folder / "history.jsonl").read_text() == run.path("fine_tune", "static", "history.jsonl").read_text()

    found = run_stage(run, "evaluate")
    assert len(evaluations) == 3, "the untuned target, and two adapters"
    rows = [run.path("evaluate", f"{name}.jsonl").read_text() for name in ("static", "optimized")]
    assert rows[0] == rows[1] and json.loads(rows[0].splitlines()[0])
    assert SAID in found.notes
    page = write_report(run).read_text("utf-8")
    assert SAID in page
