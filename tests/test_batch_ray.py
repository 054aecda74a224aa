"""The same batch on a local Ray cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import write_served

from optimsyn.base.errors import OptimsynError
from optimsyn.batch.ray_engine import RayEngine, cpus_of_a_run
from optimsyn.batch.state import BatchState
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import ManifestFile, process_lives
from tests.llm_helpers import Answer, Service, said
from tests.stages_helpers import answer

# As long as a reply is held back at most; the test lets it go when the batch has been stopped.
PATIENCE_S = 120.0


def test_runs_share_the_nodes() -> None:
    assert cpus_of_a_run([2], 2) == 1
    assert cpus_of_a_run([16], 4) == 4
    assert cpus_of_a_run([16, 8], 4) == 4
    assert cpus_of_a_run([4, 4], 1) == 4
    assert cpus_of_a_run([0], 3) == 1


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OptimsynError, match=r"pip install 'optimsyn\[ray\]'"):
        RayEngine(1)


def test_gpu_memory_is_no_option_of_a_cluster(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "optimsyn", "batch", "a.yaml", "--engine", "ray", "--gpu-memory-gb", "10"]
    left = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert left.returncode == 2
    assert "--gpu-memory-gb" in left.stderr


def _batch(recipes: list[Path], root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "optimsyn", "batch", *map(str, recipes), "--root", str(root)]
    command += ["--jobs", "2", "--stage", "warm_up", "--requests", "1000", "--engine", "ray", "--ray-address", "local"]
    # Ray's workers step back behind everything else by default, and would wait for the other tests to end.
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def _said(process: subprocess.Popen[str]) -> str:
    """All that a batch said, when it has ended."""
    said = process.communicate()[0]
    if "timed out during startup" in said:
        pytest.skip("Ray gives its own processes 30 seconds to start, too few on this busy machine")
    return said


def _wait_for_stage(root: Path, name: str, stage: str, process: subprocess.Popen[str]) -> int:
    """The process of a run's stage, as soon as there is one."""
    while process.poll() is None:
        for folder in root.glob(f"{name}-*"):
            if (folder / "manifest.json").is_file():
                record = ManifestFile(folder / "manifest.json").read().stage(stage)
                if record.status == "running" and record.pid is not None:
                    return record.pid
        time.sleep(0.05)
    raise AssertionError(_said(process))


@pytest.mark.slow
def test_a_local_cluster_tells_the_same_truth_and_goes_on(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    pytest.importorskip("ray")

    def slowly(number: int, request: dict[str, Any]) -> Answer:
        if request["model"] == "broken":
            return said("I would rather talk about the weather.")
        if request["model"] == "patient" and request["max_tokens"] > 16:  # not the first tiny question
            waits.set()
            let_go.wait(PATIENCE_S)
        return answer(number, request)

    waits, let_go = threading.Event(), threading.Event()
    served.answer = slowly
    recipes = [write_served(recipe, tmp_path, name, seed) for seed, name in enumerate(("broken", "patient"))]
    root = tmp_path / "runs"
    process = _batch(recipes, root)
    kernel = _wait_for_stage(root, "patient", "warm_up", process)
    # The broken run fails while the patient one waits for its first replies; then a person stops the batch.
    while process.poll() is None and (
        BatchState.read(root / "batch.json").runs[0].state == "running" or not waits.is_set()
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    text = _said(process)
    assert process.returncode == 130, text
    broken, patient = BatchState.read(root / "batch.json").runs
    assert (broken.state, broken.stage, patient.state, patient.stage) == ("failed", "warm_up", "interrupted", "warm_up")
    assert broken.cell is not None
    assert not process_lives(kernel)

    let_go.set()
    process = _batch(recipes[1:], root)
    text = _said(process)
    assert process.returncode == 0, text
    manifest = Run.load(patient.folder or "").manifest
    assert (manifest.stage("prepare").attempts, manifest.stage("warm_up").attempts) == (1, 2)
    assert BatchState.read(root / "batch.json").totals.cost.replies > 0
    assert os.environ["STAGES_TEST_KEY"] not in text
