"""The runner: stages in turn, the truth about failures, and kill -9 of the runner itself."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console
from runs_helpers import tiny_recipe, write_notebook

from optimsyn.base.errors import StageError
from optimsyn.execution import runner, stage_notebooks
from optimsyn.execution.reopen import lab_environment, prepare
from optimsyn.runs import Run
from optimsyn.runs.manifest import process_lives

STAGE = """
from optimsyn.runs import Run
run = Run.load(run_folder)
with run.stage("{name}") as stage:
    if not stage.finished:
        {body}
"""


def _recipe(**changes: Any) -> Any:
    served = {"name": "openai/tiny", "api_base": "http://127.0.0.1:9"}
    return tiny_recipe(
        models={"generator": served, "rubric": served}, optimizers={"policy": {"enabled": False}}, **changes
    )


def _notebooks(folder: Path, **bodies: str) -> None:
    for name in ("prepare", "warm_up"):
        body = bodies.get(name, "run.path('log.txt').open('a').write(f'{stage.name} ')")
        write_notebook(folder / f"{name}.ipynb", STAGE.format(name=name, body=body))


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notebooks"
    monkeypatch.setattr(stage_notebooks, "notebook_path", lambda stage: folder / f"{stage}.ipynb")
    return folder


def _console() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=100), text


def test_stages_run_in_turn_and_finished_ones_are_skipped(tmp_path: Path, notebooks: Path) -> None:
    _notebooks(notebooks)
    run = Run.open(_recipe(), tmp_path)
    console, text = _console()
    runner.run_stages(run, console, until="warm_up")
    assert (run.folder / "log.txt").read_text() == "prepare warm_up "
    assert (run.folder / "notebooks" / "02_warm_up.ipynb").is_file()
    runner.run_stages(run, console, until="warm_up")
    assert (run.folder / "log.txt").read_text() == "prepare warm_up "
    assert text.getvalue().count("finished earlier") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "told"),
    [("RuntimeError('no luck')", "RuntimeError: no luck"), ("StageError('stage warm_up: no luck')", "no luck")],
)
def test_a_failed_stage_is_told_and_continues(tmp_path: Path, notebooks: Path, error: str, told: str) -> None:
    _notebooks(notebooks, warm_up=f"from optimsyn.base.errors import StageError; raise {error}")
    run = Run.open(_recipe(), tmp_path)
    with pytest.raises(StageError, match=rf"^stage warm_up failed: {told}\n.*cell \[3\]"):
        runner.run_stages(run, _console()[0], until="warm_up")
    assert run.manifest.stage("warm_up").status == "failed"
    _notebooks(notebooks)
    runner.run_stages(run, _console()[0], until="warm_up")
    assert run.manifest.stage("warm_up").attempts == 2
    assert run.manifest.stage("prepare").attempts == 1


@pytest.mark.slow
def test_killed_kernel_and_time_limit_reach_the_manifest(tmp_path: Path, notebooks: Path) -> None:
    _notebooks(notebooks, prepare="import os; os.kill(os.getpid(), 9)")
    run = Run.open(_recipe(), tmp_path)
    with pytest.raises(StageError, match="SIGKILL"):
        runner.run_stages(run, _console()[0], until="prepare")
    record = run.manifest.stage("prepare")
    assert record.status == "failed"
    assert record.error is not None
    assert "SIGKILL" in record.error
    _notebooks(notebooks, prepare="import time; time.sleep(600)")
    run = Run.open(_recipe(limits={"stage_minutes": 0.02}), tmp_path)
    with pytest.raises(StageError, match=r"limits\.stage_minutes"):
        runner.run_stages(run, _console()[0], until="prepare")
    assert run.manifest.stage("prepare").status == "failed"


@pytest.mark.slow
def test_a_notebook_that_forgets_its_stage_is_no_success(tmp_path: Path, notebooks: Path) -> None:
    write_notebook(notebooks / "prepare.ipynb", "1 + 1")
    run = Run.open(_recipe(), tmp_path)
    with pytest.raises(StageError, match="is pending, not finished"):
        runner.run_stages(run, _console()[0], until="prepare")


@pytest.mark.slow
def test_what_failed_at_night_is_finished_by_hand_and_the_run_goes_on(tmp_path: Path, notebooks: Path) -> None:
    fails = "if not run.path('mended').exists(): raise RuntimeError('no luck')"
    _notebooks(notebooks, prepare=fails)
    run = Run.open(_recipe(), tmp_path)
    with pytest.raises(StageError, match=r"`optimsyn open .*` opens it"):
        runner.run_stages(run, _console()[0], until="warm_up")
    failure = run.manifest.stage("prepare").failure
    assert failure is not None
    assert (failure.kind, failure.cell, failure.reason) == ("RuntimeError", 3, "no luck")
    assert "raise RuntimeError" in failure.source
    assert (run.folder / "report.html").is_file()
    stage, path = prepare(run)
    assert stage == "prepare"
    # A person fixes what was wrong and runs the cells, in the kernel that JupyterLab would start.
    run.path("mended").touch()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3").execute(env=lab_environment(tmp_path / "kernels"))
    assert run.done("prepare")
    console, text = _console()
    runner.run_stages(run, console, until="warm_up")
    assert "1/7 prepare" in text.getvalue()
    assert text.getvalue().count("finished earlier") == 1
    assert [run.manifest.stage(name).attempts for name in ("prepare", "warm_up")] == [2, 1]


@pytest.mark.slow
def test_a_report_that_fails_does_not_hide_why_the_stage_failed(
    tmp_path: Path, notebooks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Run) -> Path:
        raise ZeroDivisionError("in the report")

    monkeypatch.setattr("optimsyn.report.page.report.write_report", broken)
    _notebooks(notebooks, prepare="raise RuntimeError('no luck')")
    with pytest.raises(StageError, match="no luck") as caught:
        runner.run_stages(Run.open(_recipe(), tmp_path), _console()[0], until="prepare")
    assert caught.value.__notes__ == ["  The report could not be written either: ZeroDivisionError: in the report"]


SCRIPT = """
import sys
from pathlib import Path
from rich.console import Console
from optimsyn.runs import Run
from optimsyn.execution import runner, stage_notebooks
folder = Path(sys.argv[2])
stage_notebooks.notebook_path = lambda stage: folder / f"{stage}.ipynb"
runner.run_stages(Run.load(sys.argv[1]), Console(), until="warm_up")
"""


def _wait_for(path: Path, seconds: float = 600) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.is_file() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.slow
def test_kill_9_of_the_runner_takes_the_kernel_along_and_the_next_start_continues(
    tmp_path: Path, notebooks: Path
) -> None:
    hang = "import os, time; run.path('pid.txt').write_text(str(os.getpid())); time.sleep(600)"
    _notebooks(notebooks, warm_up=hang)
    run = Run.open(_recipe(), tmp_path)
    command = [sys.executable, "-c", SCRIPT, str(run.folder), str(notebooks)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    kernel = int(_wait_for(run.folder / "pid.txt"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 600
    while process_lives(kernel) and time.monotonic() < end:
        time.sleep(0.1)
    assert not process_lives(kernel), "the kernel outlived its runner"
    assert run.manifest.stage("warm_up").status == "running"
    _notebooks(notebooks)
    console, text = _console()
    runner.run_stages(run, console, until="warm_up")
    assert "warm_up was killed while it was running" in text.getvalue()
    assert run.manifest.stage("warm_up").status == "finished"
    assert run.manifest.stage("prepare").attempts == 1
