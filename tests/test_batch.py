"""A batch: one failure never stops the others, batch.json tells the truth, a second start repeats nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from batch_helpers import FAKE_RUN, fake_runs, starts, wait_for, write_recipe
from filelock import FileLock
from rich.console import Console

from optimsyn.base.errors import RecipeError, StageError
from optimsyn.batch import plan as batch_plan
from optimsyn.batch import supervisor as batch_supervisor
from optimsyn.batch.batch import BATCH_JSON, exit_code, run_batch
from optimsyn.batch.plan import BatchLimits, RunOptions
from optimsyn.batch.state import BatchState
from optimsyn.llm.shared_budget import Caps
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import process_lives

__all__ = ["fake_runs"]
KEY = "sk-batch-0123456789abcdef"


def _run(
    recipes: list[str], root: Path, *, changes: dict[str, Any] | None = None, **limits: Any
) -> tuple[BatchState, str]:
    text = io.StringIO()
    options = RunOptions(changes=changes or {}, until="warm_up")
    state = run_batch(recipes, root, options, BatchLimits(**limits), console=Console(file=text, width=140))
    assert BatchState.read(root / BATCH_JSON) == state
    return state, text.getvalue()


def _by_name(state: BatchState) -> dict[str, Any]:
    return {Path(run.recipe).stem: run for run in state.runs}


@pytest.mark.slow
def test_failures_are_told_with_stage_cell_and_reason_and_stop_nobody(
    tmp_path: Path, fake_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = ("good", "fails", "dies", "crashes", "refuses")
    recipes = [write_recipe(tmp_path, name, name) for name in ways]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(Path(recipes[0]).read_text().replace("guiding_text:", "guidingtext:"))
    root = tmp_path / "runs"
    state, text = _run([*recipes, str(wrong), "law_", recipes[0]], root, jobs=2)
    found = _by_name(state)
    assert {name: run.state for name, run in found.items()} == {
        "good": "finished",
        "fails": "failed",
        "dies": "failed",
        "crashes": "failed",
        "refuses": "refused",
        "wrong": "refused",
        "law_": "refused",
    }
    fails, dies = found["fails"], found["dies"]
    assert (fails.stage, fails.cell, fails.source, fails.kind, fails.reason) == (
        "warm_up",
        3,
        "stage.run(run)",
        "ValueError",
        "no luck",
    )
    assert (dies.stage, dies.kind) == ("warm_up", "Killed")
    assert "killed by SIGKILL" in dies.reason
    assert found["crashes"].kind == "ExitCode"
    assert "what a strange day" in found["crashes"].reason
    assert (found["refuses"].kind, found["refuses"].reason) == ("RecipeError", "models.generator: no key")
    assert "did you mean" in found["wrong"].reason
    assert "did you mean `law`" in found["law_"].reason
    assert found["good"].also == [recipes[0]]
    assert "are the same run, which is run once" in text
    assert starts(root, "good") == 1
    assert state.state == "failed"
    assert exit_code(state) == 1
    assert (state.totals.finished, state.totals.failed, state.totals.refused) == (1, 3, 3)
    assert Run.load(dies.folder).manifest.stage("warm_up").status == "interrupted"
    assert text.splitlines()[-1] == str(root / BATCH_JSON)
    assert "warm_up, cell [3] `stage.run(run)`" in text

    # The same command again: what had finished is not started, the others go on where they were.
    for name in ("fails", "dies", "crashes", "refuses"):
        write_recipe(tmp_path, name, "good")
    again, text = _run(recipes, root, jobs=3)
    assert [run.state for run in again.runs] == ["finished"] * 5
    assert [run.earlier for run in again.runs] == [True, False, False, False, False]
    assert exit_code(again) == 0
    assert starts(root, "good") == 1
    manifest = Run.load(fails.folder).manifest
    assert (manifest.stage("prepare").attempts, manifest.stage("warm_up").attempts) == (1, 2)
    assert "finished earlier" in text
    assert all(run.reason is None and run.cell is None for run in again.runs)
    for file in root.rglob("*"):
        assert not file.is_file() or KEY not in file.read_text(errors="replace"), file
    assert "my key is [redacted]" in (root / "batch-logs" / f"{Path(fails.folder).name}.log").read_text()


def test_a_run_folder_that_cannot_be_used_stops_nobody(tmp_path: Path, fake_runs: None) -> None:
    recipes = [write_recipe(tmp_path, name, "good") for name in ("taken", "free")]
    root = tmp_path / "runs"
    root.mkdir()
    Run.folder_of(Recipe.load(recipes[0]), root).write_text("a file where the run would be")
    state, text = _run(recipes, root)
    found = _by_name(state)
    assert {name: run.state for name, run in found.items()} == {"taken": "refused", "free": "finished"}
    assert "is a file where the run's folder would be" in (found["taken"].reason or "")
    # One run alone is compared with nothing, which is no trouble to tell.
    assert "batch.html" not in text
    assert exit_code(state) == 1


def test_a_report_that_cannot_be_written_is_told_beside_the_kill(tmp_path: Path, fake_runs: None) -> None:
    state, _ = _run([write_recipe(tmp_path, "mess", "dies in a mess")], tmp_path / "runs", jobs=1)
    (mess,) = state.runs
    assert (mess.state, mess.kind, mess.report) == ("failed", "Killed", None)
    assert "killed by SIGKILL" in mess.reason
    assert "its report could not be written" in mess.reason
    assert "report.html" in mess.reason


@pytest.mark.slow
def test_no_more_than_so_many_run_at_once(tmp_path: Path, fake_runs: None) -> None:
    recipes = [write_recipe(tmp_path, f"slow{number}", "slow") for number in range(4)]
    most: list[int] = []
    write = BatchState.write

    def noted(self: BatchState, path: Path) -> None:
        write(self, path)
        most.append(self.totals.running)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchState, "write", noted)
        state, _ = _run(recipes, tmp_path / "runs", jobs=2)
    assert state.state == "finished"
    assert max(most) == 2


def test_runs_wait_for_gpu_memory_and_one_that_never_fits_is_refused(
    tmp_path: Path, fake_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = batch_plan.plan
    needs = {"small": 10, "medium": 20, "large": 40}

    def measured(*arguments: Any, **options: Any) -> list[batch_plan.Job]:
        jobs = plan(*arguments, **options)
        for job in jobs:
            job.need = batch_plan.Need(gpu=needs[job.name] * 10**9)
        return jobs

    monkeypatch.setattr("optimsyn.batch.batch.plan", measured)
    monkeypatch.setattr("optimsyn.batch.batch.gpus", lambda: ())
    recipes = [write_recipe(tmp_path, name, "good") for name in needs]
    state, _ = _run(recipes, tmp_path / "runs", jobs=3, gpu_memory_gb=25)
    found = _by_name(state)
    assert (found["large"].state, found["large"].kind) == ("refused", "GpuMemory")
    assert "--gpu-memory-gb 25" in found["large"].reason
    assert found["small"].state == found["medium"].state == "finished"
    times = [Run.load(found[name].folder).manifest.stages for name in ("small", "medium")]
    assert times[0][1].finished <= times[1][0].started, "both ran at once, although they do not fit together"


def test_the_command_line_has_its_own_exit_code_and_so_has_a_batch_without_a_start(tmp_path: Path) -> None:
    for arguments in ([], ["a.yaml", "--jobs", "0"], ["a.yaml", "--engine", "clouds"], ["a.yaml", "--stage", "warmup"]):
        left = subprocess.run(
            [sys.executable, "-m", "optimsyn", "batch", *arguments], capture_output=True, text=True, cwd=tmp_path
        )
        assert left.returncode == 2, left.stderr
    left = subprocess.run(
        [sys.executable, "-m", "optimsyn", "batch", "nothing.yaml", "quickstrt"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert left.returncode == 2, left.stderr
    written = json.loads((tmp_path / "runs" / BATCH_JSON).read_text())
    assert [run["state"] for run in written["runs"]] == ["refused", "refused"]
    assert written["state"] == "failed"


def test_a_key_on_the_command_line_reaches_no_file(tmp_path: Path, fake_runs: None) -> None:
    good, root = write_recipe(tmp_path, "good", "good"), tmp_path / "runs"
    with pytest.raises(RecipeError, match="changes"):
        _run([good], root, changes={"models.generator.name": f"openai/{KEY}"})
    state, text = _run([good, f"{KEY}.yaml"], root)
    assert [run.state for run in state.runs] == ["finished", "refused"]
    assert KEY not in text
    for file in root.rglob("*"):
        assert not file.is_file() or KEY not in file.read_text(errors="replace"), file


def test_two_batches_never_share_a_root(tmp_path: Path, fake_runs: None) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    with FileLock(str(root / ".batch.lock")), pytest.raises(StageError, match="another batch works there"):
        _run([write_recipe(tmp_path, "good", "good")], root)


def test_a_run_that_a_person_holds_fails_after_a_while(
    tmp_path: Path, fake_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_supervisor, "HELD_S", 0.5)
    recipes = [write_recipe(tmp_path, name, "good") for name in ("held", "free")]
    root = tmp_path / "runs"
    held = batch_plan.plan(recipes, root)[0].run
    assert held is not None
    code = (
        "import sys, time\nfrom optimsyn.runs.folder import Run\nwith Run.load(sys.argv[1]).lock():\n"
        "    print('held', flush=True)\n    sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(held.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    state, text = _run(recipes, root)
    holder.communicate("")
    assert "the batch waits 0 seconds for that to end" in text
    assert [run.state for run in state.runs] == ["failed", "finished"]
    assert f"by process {holder.pid}" in (state.runs[0].reason or "")


DRIVER = """
import sys
from rich.console import Console
from optimsyn.batch import engines as batch_engines
from optimsyn.batch.batch import exit_code, run_batch
from optimsyn.batch.plan import BatchLimits, RunOptions
fake, root, *recipes = sys.argv[1:]
batch_engines.run_command = lambda arguments: [sys.executable, "-c", fake, *arguments]
options = RunOptions(until="warm_up")
sys.exit(exit_code(run_batch(recipes, root, options, BatchLimits(jobs=2), console=Console(width=140))))
"""


def _start(recipes: list[str], root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, FAKE_RUN, str(root), *recipes]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _hanging(tmp_path: Path) -> tuple[subprocess.Popen[str], Path, list[str], list[int]]:
    """A batch of two runs that hang, one that waits for a place and one that has finished."""
    recipes = [write_recipe(tmp_path, name, how) for name, how in (("a", "hangs"), ("b", "hangs"), ("c", "good"))]
    root = tmp_path / "runs"
    process = _start(recipes, root)
    end = time.monotonic() + 600
    while len(list(root.glob("*/pid.txt"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    pids = [int(wait_for(path)) for path in sorted(root.glob("*/pid.txt"))]
    assert len(pids) == 2
    return process, root, recipes, pids


def _gone(pids: list[int]) -> bool:
    end = time.monotonic() + 600
    while any(map(process_lives, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(process_lives, pids))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_ends_its_runs_and_says_so(tmp_path: Path, fake_runs: None, number: int) -> None:
    process, root, _recipes, pids = _hanging(tmp_path)
    process.send_signal(number)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 130, said
    assert _gone(pids)
    state = BatchState.read(root / BATCH_JSON)
    assert state.state == "interrupted"
    assert [run.state for run in state.runs] == ["interrupted", "interrupted", "waiting"]
    assert state.runs[0].kind == "Interrupted"
    assert Run.load(state.runs[0].folder or "").manifest.stage("warm_up").status == "interrupted"


@pytest.mark.slow
def test_kill_9_of_the_batch_ends_its_runs_and_the_next_start_goes_on(tmp_path: Path, fake_runs: None) -> None:
    process, root, recipes, pids = _hanging(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert BatchState.read(root / BATCH_JSON).state == "running"
    for name in ("a", "b"):
        write_recipe(tmp_path, name, "good")
    # At once, while the runs of the killed batch are about to end.
    state, _ = _run(recipes, root, jobs=3)
    assert [run.state for run in state.runs] == ["finished"] * 3
    assert _gone(pids)
    for run in state.runs[:2]:
        assert Run.load(run.folder or "").manifest.stage("prepare").attempts == 1


def test_what_runs_bought_before_counts_against_the_caps(
    tmp_path: Path, fake_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimsyn.llm.replies import Reply

    recipe = write_recipe(tmp_path, "good", "good")
    root = tmp_path / "runs"
    (job,) = batch_plan.plan([recipe], root)
    assert job.run is not None
    job.run.replies.put("k", Reply(text="", input_tokens=70, cost_usd=0.5), {})
    seen: list[Any] = []
    count = batch_supervisor.Purse.count

    def noted(self: Any, run: str, usage: Any) -> None:
        count(self, run, usage)
        seen.append(self.bought())

    monkeypatch.setattr(batch_supervisor.Purse, "count", noted)
    state, _ = _run([recipe], root, caps=Caps(tokens=100))
    assert [amount.tokens for amount in seen] == [70, 70, 70]
    assert state.totals.cost.input_tokens == 70
    assert state.options.tokens == 100
    assert not list(root.glob(".batch-purse*"))
