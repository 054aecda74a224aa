"""What stages found, typed: written and read back, and opened as older versions wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_helpers import check_page, make_recipe, write_run

from optimsyn.base.errors import DataError
from optimsyn.report.comparison import write_comparison
from optimsyn.report.page.report import write_report
from optimsyn.runs import STAGES, Run, StageResult, TableResult
from optimsyn.runs.results.built_in import (
    EvaluateResult,
    FineTuneResult,
    MeanInfluence,
    PrepareResult,
    SynthesizeResult,
    WarmUpResult,
)
from optimsyn.runs.results.losses import Losses
from optimsyn.runs.results.reading import MODELS, result_of

LOST = Losses(
    candidates=9,
    invalid=3,
    invalid_by_check={"grounded": 2, "unsafe": 1},
    not_judged_by_outcome={"pair_cut": 1},
    duplicate=1,
    not_selected=1,
    kept=3,
)


def test_each_built_in_stage_has_a_model_whose_fields_are_described() -> None:
    assert tuple(MODELS) == STAGES
    for stage, model in MODELS.items():
        assert model.model_fields["stage"].default == stage
        undescribed = [name for name, field in model.model_fields.items() if name != "stage" and not field.description]
        assert undescribed == []


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = Run.open(make_recipe(), tmp_path)
    made = SynthesizeResult(
        pairs=3,
        dataset="static",
        losses={"static": LOST},
        influence={"static": MeanInfluence(valid=0.5, kept=0.75)},
        predicted={},
        notes=("One.",),
    ).save(run)
    found = SynthesizeResult.load(run)
    assert found == made
    assert found.rows == (("static", 9, 3, 1, 1, 3, 0.5, 0.75),)
    assert result_of(run.folder, "synthesize") == made
    raw = json.loads((run.folder / "synthesize" / "result.json").read_text())
    assert list(raw) == ["stage", "title", "columns", "rows", "numbers", "notes"]
    assert list(raw["numbers"]["losses"]["static"].items()) == [
        ("candidates", 9),
        ("invalid", 3),
        ("invalid: grounded", 2),
        ("invalid: unsafe", 1),
        ("not judged", 1),
        ("not judged: pair_cut", 1),
        ("duplicate", 1),
        ("not selected", 1),
        ("kept", 3),
    ]
    assert Losses.model_validate(LOST.counts()) == LOST


def older(run: Run, stage: str, numbers: dict[str, Any], rows: list[list[Any]] | None = None) -> None:
    """A `result.json` as the first versions wrote it."""
    shown = {"stage": stage, "title": "As it was", "columns": ["what", "value", "note"], "rows": rows or []}
    file = run.path(stage, "result.json")
    file.write_text(json.dumps({**shown, "numbers": numbers, "notes": ["A note."]}))


def test_results_of_older_versions_open(tmp_path: Path) -> None:
    run = Run.open(make_recipe(), tmp_path)
    older(run, "prepare", {"documents": 4, "passages": 9, "colour": "blue"}, [["documents", 4, "4 groups"]])
    came_in = PrepareResult.load(run)
    assert (came_in.documents, came_in.test, came_in.groups) == (4, None, None)
    assert came_in.rows == (("documents", 4, "4 groups"),), "it shows what it showed"
    assert came_in.notes == ("A note.",)
    older(run, "warm_up", {"valid": 5, "steps": [2, 4], "reward_look": {"verdict": "sound"}})
    warm = WarmUpResult.load(run)
    assert (warm.valid, warm.steps, warm.reward_look, warm.lr) == (5, (2, 4), None, None)
    older(run, "fine_tune", {"static": {"pairs": 4, "loss_first": 4.0, "loss_last": 3.0}})
    tuned = FineTuneResult.load(run).variants
    assert tuned is not None
    assert (tuned["static"].loss_last, tuned["static"].steps) == (3.0, None)
    older(run, "evaluate", {}, [["target", "accuracy", 0.5, 0.4, 0.6, 20, None, None, None]])
    assert (EvaluateResult.load(run).targets, EvaluateResult.load(run).questions) == (1, 20)
    # What an optimiser leaves in the folder of its stage before that has ended.
    run.path("optimize_prompt", "result.json").write_text('{"identity": "x", "score": 0.1}')
    assert result_of(run.folder, "optimize_prompt") is None
    older(run, "prepare", {"documents": "four"})
    with pytest.raises(DataError, match=r"prepare/result\.json: numbers\.documents: "):
        PrepareResult.load(run)


def test_a_run_that_recorded_nothing_opens_and_says_so(tmp_path: Path) -> None:
    full, bare = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    for stage in STAGES:
        older(bare, stage, {"enabled": True} if stage in ("optimize_prompt", "train_policy") else {})
    words = check_page(write_report(bare).read_text(encoding="utf-8")).words
    assert "not recorded documents, not recorded passages" in words
    assert "0 documents" not in words and "0 passages" not in words
    check_page(write_comparison([full, bare], tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert "not recorded" in bare._repr_html_()


def test_a_result_of_ones_own_shows_its_fields(tmp_path: Path) -> None:
    class Counted(StageResult):
        stage: str = "counted"
        pairs: dict[str, int]
        share: float | None

    run = Run.open(make_recipe(), tmp_path)
    found = Counted(pairs={"static": 3}, share=None).save(run)
    assert found.table().rows == (("pairs", "static 3"), ("share", "–"))
    assert Counted.load(run) == found
    read = result_of(run.folder, "counted")
    assert isinstance(read, TableResult)
    assert read.numbers == {"pairs": {"static": 3}, "share": None}
    assert read.rows == found.rows
