"""kill -9 in every stage: the run goes on where it was, ends with the same dataset and asks for nothing it had got."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES
from optimsyn.stages import warm_up
from optimsyn.target.warm_up.search import RECORD
from tests import kill_helpers
from tests.llm_helpers import Answer, Service
from tests.stages_helpers import answer, run_stage

DELAY_S = 0.15


def _start(recipe: Path, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "optimsyn", "run", str(recipe), "--root", str(root), "--stage", "synthesize"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _running(root: Path) -> str | None:
    for manifest in root.glob("*/manifest.json"):
        for stage in json.loads(manifest.read_text())["stages"]:
            if stage["status"] == "running":
                return str(stage["name"])
    return None


def _dataset(root: Path) -> dict[str, bytes]:
    (folder,) = root.glob("*/dataset")
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix in (".parquet", ".jsonl")}


def _run_with_kills(recipe: Path, root: Path, stages: list[str], seed: int, repeats: kill_helpers.Repeats) -> int:
    """Runs to the end, killed once in each of `stages` at a random moment; returns how often that was."""
    waits = {name: random.Random(f"{seed} {name}").uniform(1.0, 4.0) for name in stages}
    kills = 0
    while True:
        process = _start(recipe, root)
        entered: dict[str, float] = {}
        while process.poll() is None:
            time.sleep(0.02)
            stage = _running(root)
            since = entered.setdefault(stage, time.monotonic()) if stage else None
            if stage in waits and since is not None and time.monotonic() - since > waits[stage]:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                del waits[stage]
                process.communicate()
                (folder,) = (manifest.parent for manifest in root.glob("*/manifest.json"))
                with FileLock(folder / ".kernel.lock"):
                    repeats.killed(root)
                break
        else:
            said = process.communicate()[0]
            assert process.returncode == 0, said
            return kills


@pytest.mark.slow
def test_kill_9_in_the_stages_that_buy_replies(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    def slowly(number: int, request: dict[str, Any]) -> Answer:
        return replace(answer(number, request), delay_s=DELAY_S)

    served.answer = slowly
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    undisturbed = Run.open(recipe, tmp_path / "undisturbed")
    for stage in STAGES[: STAGES.index("synthesize") + 1]:
        run_stage(undisturbed, stage)
    repeats = kill_helpers.Repeats(served)
    stages = ["warm_up", "optimize_prompt", "synthesize"]
    kills = _run_with_kills(file, tmp_path / "killed", stages, 3, repeats)
    assert kills, "no stage was slow enough to be killed"
    assert _dataset(tmp_path / "killed") == _dataset(tmp_path / "undisturbed")
    again, in_hand = repeats.counts()
    assert again == 0, "a reply that had come was asked again"
    assert in_hand <= kills * recipe.models.generator.concurrency


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True])
def test_a_warm_up_that_ended_after_its_training_is_not_trained_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    """The checkpoint is there and the stage is not: killed in the look at the reward, or between two files."""
    runs = [Run.open(recipe, tmp_path / name) for name in ("undisturbed", "ended")]
    for run in runs:
        run_stage(run, "prepare")
    run_stage(runs[0], "warm_up")

    def ended(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(warm_up, "look_after_warm_up", ended)
        run_stage(runs[1], "warm_up")
    checkpoints = runs[1].path("warm_up", "checkpoints")
    (checkpoints / ".step-000002-abc").mkdir()
    if torn:
        (checkpoints / RECORD).unlink()
    run_stage(runs[1], "warm_up")
    made = [sorted((run.folder / "warm_up" / "checkpoints").rglob("*.safetensors")) for run in runs]
    assert [path.name for path in made[0]] == [path.name for path in made[1]]
    for one, other in zip(*made, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert (runs[0].folder / "warm_up" / "influence.json").read_text() == (
        runs[1].folder / "warm_up" / "influence.json"
    ).read_text()


@pytest.mark.slow
def test_kills_and_full_disks_in_stages_that_chance_picks(tmp_path: Path) -> None:
    with kill_helpers.machine(tmp_path / "made") as runs:
        times = runs.undisturbed(tmp_path / "undisturbed")
        expected, alone = kill_helpers.results(tmp_path / "undisturbed"), len(runs.served.requests)
        assert {name.split("/")[0] for name in expected} >= {"dataset", "train_policy", "fine_tune", "evaluate"}
        chance = random.Random(4)
        trial = runs.killed(tmp_path / "killed", times, ["warm_up", "train_policy"], chance)
        assert kill_helpers.differing(expected, kill_helpers.results(tmp_path / "killed")) == []
        assert trial.again == 0
        with kill_helpers.disk(tmp_path / "disk", "48m") as place:
            if place is None:
                pytest.skip("this user may not mount a file system")
            sent = len(runs.served.requests)
            trial = runs.filled(place / "root", times, ["synthesize"], chance, 300_000)
            assert kill_helpers.differing(expected, kill_helpers.results(place / "root")) == []
        assert trial.again == 0
        assert len(runs.served.requests) - sent == alone
        for told in trial.told:
            assert "DataError: " in told and "free on its file system" in told, told
