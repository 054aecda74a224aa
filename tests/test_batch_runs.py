"""A batch of real runs: one whose generator writes garbage, one whose kernel is killed, one that is well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import write_served
from kill_helpers import Repeats

from optimsyn.batch.state import BatchState
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from tests.llm_helpers import Answer, Service, said
from tests.stages_helpers import answer

DELAY_S = 0.3


def _batch(recipes: list[Path], root: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "optimsyn", "batch", *map(str, recipes), "--root", str(root), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _kill_kernel(root: Path, name: str, stage: str, process: subprocess.Popen[str]) -> None:
    """Kills the kernel of a run with SIGKILL as soon as it works on a stage and has bought something."""
    while process.poll() is None:
        for file in root.glob(f"{name}-*/manifest.json"):
            record = next(item for item in json.loads(file.read_text())["stages"] if item["name"] == stage)
            if record["status"] == "running" and (file.parent / "replies.sqlite").is_file():
                time.sleep(DELAY_S)
                os.kill(record["pid"], signal.SIGKILL)
                return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0])


@pytest.mark.slow
def test_two_honest_failures_and_a_second_start_that_repeats_nothing(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    def slowly(number: int, request: dict[str, Any]) -> Answer:
        if request["model"] == "broken":
            return said("I would rather talk about the weather.")
        return replace(answer(number, request), delay_s=DELAY_S)

    served.answer = slowly
    recipes = [write_served(recipe, tmp_path, name, seed) for seed, name in enumerate(("broken", "killed", "good"))]
    root = tmp_path / "runs"
    repeats = Repeats(served)
    process = _batch(recipes, root, "--jobs", "2", "--stage", "warm_up", "--requests", "1000")
    _kill_kernel(root, "killed", "warm_up", process)
    said_text = process.communicate()[0]
    assert process.returncode == 1, said_text
    repeats.killed(root)
    state = BatchState.read(root / "batch.json")
    broken, killed, good = state.runs
    assert (broken.state, broken.stage) == ("failed", "warm_up"), said_text
    assert broken.cell is not None
    assert "broken" in (broken.reason or "")
    assert (killed.state, killed.stage, killed.kind) == ("failed", "warm_up", "KernelDied"), said_text
    assert killed.cell == broken.cell, "both were in the cell that runs the stage"
    assert killed.source == broken.source != ""
    assert "SIGKILL" in (killed.reason or "")
    assert good.state == "finished"
    assert all(run.report is not None and Path(run.report).is_file() for run in state.runs)
    assert state.comparison is not None
    assert Path(state.comparison).is_file()
    assert said_text.splitlines()[-1] == str(root / "batch.json")

    process = _batch(recipes[1:], root, "--jobs", "2", "--stage", "warm_up", "--requests", "1000")
    said_text = process.communicate()[0]
    assert process.returncode == 0, said_text
    again = BatchState.read(root / "batch.json")
    assert [(run.state, run.earlier) for run in again.runs] == [("finished", False), ("finished", True)]
    manifest = Run.load(killed.folder or "").manifest
    assert (manifest.stage("prepare").attempts, manifest.stage("warm_up").attempts) == (1, 2)
    again_asked, in_hand = repeats.counts(without="broken")
    assert again_asked == 0, "a reply that had come was asked again"
    assert in_hand <= recipe.models.generator.concurrency


@pytest.mark.slow
def test_the_cap_of_a_batch_stops_its_runs_and_a_higher_one_continues(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    recipes = [write_served(recipe, tmp_path, "capped", 1)]
    root = tmp_path / "runs"
    process = _batch(recipes, root, "--stage", "warm_up", "--requests", "5")
    said_text = process.communicate()[0]
    assert process.returncode == 1, said_text
    state = BatchState.read(root / "batch.json")
    assert state.totals.cost.replies == len(served.requests) == 5
    assert (state.runs[0].kind, state.runs[0].stage) == ("BudgetError", "warm_up")
    assert "the batch's cap of 5 requests is reached" in said_text
    assert "raise --requests" in said_text
    process = _batch(recipes, root, "--stage", "warm_up", "--requests", "100")
    said_text = process.communicate()[0]
    assert process.returncode == 0, said_text
    assert len({json.dumps(request, sort_keys=True) for request in served.requests}) == len(served.requests)
