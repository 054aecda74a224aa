"""A list to the report with the embedded model at the smallest size; it stands for the forms with keys of their own.

A service writes all of them in `test_forms_runs.py`, in seconds. The embedded model also came to the report with true
or false, figures, reasoning, code, dialogues and long answers, which takes too long here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stages_helpers import run_stage

from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sizes import resized
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES

QUESTIONS = Path(__file__).parent / "questions_of_forms"
SMALLEST: dict[str, Any] = {
    "documents": {"source": "embedded:quickstart", "passage_words": 60, "min_words": 20},
    "guiding_text": "Ask what a nutrition physician should know for diagnosis, prevention or advice.",
    "warm_up": {"pairs": 2, "steps": 2, "batch_size": 2, "checkpoints": 1},
    "reward": {"look": {"pairs": 0}},
    "optimizers": {"prompt": {"enabled": False}, "policy": {"enabled": False}},
    "synthesis": {"pairs": 2, "oversample": 1.5},
    "fine_tune": {"steps": 1, "batch_size": 2},
    "evaluation": {"max_new_tokens": 8, "bootstrap": 100},
}


def smallest(form: str) -> Recipe:
    path = str(QUESTIONS / f"{form}.jsonl")
    questions = {side: {"path": path, "where": {"split": side}} for side in ("validation", "test")}
    return resized(Recipe.parse({"name": form, **SMALLEST, "questions": {**questions, "form": form}}), "tiny")


@pytest.mark.long
@pytest.mark.parametrize("form", ["list"])
def test_a_form_runs_to_the_end_with_the_embedded_model(form: str, tmp_path: Path) -> None:
    from optimsyn.report.page.report import write_report

    run = Run.open(smallest(form), tmp_path / "runs")
    for stage in STAGES:
        run_stage(run, stage)
    write_report(run)
    rows = [json.loads(line) for line in run.path("evaluate", "static.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows
    assert {row["kind"] for row in rows} == {form}
