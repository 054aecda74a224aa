"""A stage of a run opened in JupyterLab: which one, with what in it, by which interpreter, and never beside another."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from runs_helpers import tiny_recipe

from optimsyn.base.errors import StageError
from optimsyn.execution.reopen import lab_command, lab_environment, prepare, prune_before_saving, stage_to_open
from optimsyn.runs import STAGES, Run
from optimsyn.runs.manifest import Failure, ManifestFile


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.open(tiny_recipe(), tmp_path)
    with run.stage("prepare"):
        pass
    return run


def _failed_notebook(run: Run, stage: str) -> Path:
    """What the engine leaves of a stage that failed in its second cell, with a run folder that has moved since."""
    cells = [
        nbformat.v4.new_code_cell('run_folder: str = ""', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell('run_folder = "/elsewhere"', metadata={"tags": ["injected-parameters"]}),
        nbformat.v4.new_code_cell("1 / 0"),
    ]
    cells[2].outputs.append(nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="no luck", traceback=[]))
    path = run.path("notebooks", f"{STAGES.index(stage) + 1:02d}_{stage}.ipynb")  # type: ignore[arg-type]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_the_stage_that_failed_comes_first(run: Run) -> None:
    assert stage_to_open(run) == "prepare"
    run.mark_stopped("optimize_prompt", "interrupted", Failure(kind="Interrupted", reason="x"))
    assert stage_to_open(run) == "optimize_prompt"
    run.mark_stopped("warm_up", "failed", Failure(kind="ValueError", reason="x"))
    assert stage_to_open(run) == "warm_up"
    assert stage_to_open(run, "evaluate") == "evaluate"
    with pytest.raises(StageError, match="did you mean `warm_up`"):
        stage_to_open(run, "warmup")


def test_a_new_run_opens_at_its_first_stage(tmp_path: Path) -> None:
    run = Run.open(tiny_recipe(), tmp_path)
    assert stage_to_open(run) == "prepare"
    stage, notebook = prepare(run)
    assert stage == "prepare"
    cells = nbformat.read(notebook, as_version=4).cells
    injected = [cell for cell in cells if "injected-parameters" in cell.metadata.tags]
    assert [cell.source for cell in injected] == [f'# Parameters\nrun_folder = "{run.folder}"\n']
    assert not any(cell.outputs for cell in cells if cell.cell_type == "code")


def test_a_failed_notebook_keeps_its_outputs_and_learns_where_the_run_is(run: Run) -> None:
    run.mark_stopped("warm_up", "failed", Failure(kind="ZeroDivisionError", reason="no luck"))
    path = _failed_notebook(run, "warm_up")
    assert prepare(run) == ("warm_up", path)
    notebook = nbformat.read(path, as_version=4)
    assert f'run_folder = "{run.folder}"' in notebook.cells[1].source
    assert notebook.cells[2].outputs[0].evalue == "no luck"
    assert notebook.metadata.kernelspec.name == "python3"
    assert sum("injected-parameters" in cell.metadata.tags for cell in notebook.cells) == 1


def test_a_killed_stage_is_told_with_its_cell(run: Run) -> None:
    path = _failed_notebook(run, "warm_up")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].metadata.papermill = {"status": "running"}
    nbformat.write(notebook, path)
    with ManifestFile(run.folder / "manifest.json").change() as manifest:
        manifest.stage("warm_up").status, manifest.stage("warm_up").pid = "running", 2**22 + 1
    assert prepare(run)[0] == "warm_up"
    failure = run.manifest.stage("warm_up").failure
    assert failure is not None
    assert (failure.kind, failure.cell, failure.source) == ("Killed", 3, "1 / 0")


@pytest.mark.parametrize("hold", ["run.lock()", "run.stage('warm_up')"])
def test_a_run_that_somebody_works_on_is_refused(run: Run, hold: str) -> None:
    code = (
        f"import sys\nfrom optimsyn.runs import Run\nrun = Run.load(sys.argv[1])\n"
        f"with {hold}:\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StageError, match=rf"process {other.pid}\b"):
            prepare(run)
    finally:
        other.kill()
        other.wait()
    assert prepare(run)[0] in STAGES


def test_the_command_keeps_the_token_and_names_this_interpreter(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = run.path("notebooks", "02_warm_up.ipynb")
    command = lab_command(run.folder, notebook, browser=False, port=9123)
    assert command[:5] == [sys.executable, "-m", "jupyter", "lab", "notebooks/02_warm_up.ipynb"]
    assert "--no-browser" in command
    # The printed address is all that a person on a server has.
    assert "--LabApp.default_url=/lab/tree/notebooks/02_warm_up.ipynb" in command
    assert "--ServerApp.port=9123" in command
    assert not any("token" in word.lower() or "password" in word.lower() for word in command)
    monkeypatch.setenv("JUPYTER_PATH", "/elsewhere")
    environment = lab_environment(tmp_path / "kernels", ["MINE"])
    first, rest = environment["JUPYTER_PATH"].split(os.pathsep)
    assert rest == "/elsewhere"
    kernel = json.loads((Path(first) / "kernels" / "python3" / "kernel.json").read_text())
    assert kernel["argv"][0] == sys.executable
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StageError, match=r"pip install 'optimsyn\[notebooks\]'"):
        lab_command(run.folder, notebook)


def test_what_jupyterlab_saves_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("PLAIN", "staple-of-the-lake")
    monkeypatch.setenv("OPTIMSYN_SECRET_NAMES", "PLAIN")
    text = "correct-horse-battery and staple-of-the-lake"
    cell = {"cell_type": "code", "source": text, "outputs": [{"output_type": "stream", "text": [text]}]}
    model: dict[str, Any] = {"type": "notebook", "content": {"cells": [cell]}}
    prune_before_saving(model=model, path="a.ipynb", contents_manager=None)
    assert "correct-horse" not in json.dumps(model)
    assert "staple" not in json.dumps(model)
    file: dict[str, Any] = {"type": "file", "content": text}
    prune_before_saving(model=file, path="a.txt", contents_manager=None)
    assert file["content"] == text


def _address(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stderr is not None
    end = time.monotonic() + 600
    for line in process.stderr:
        found = re.search(r"(http://127\.0\.0\.1:\d+)/lab\S*\?token=(\w+)", line)
        if found:
            return found.group(1), found.group(2)
        if time.monotonic() > end:
            break
    raise AssertionError("JupyterLab did not say where it listens")


@pytest.mark.slow
def test_a_real_jupyterlab_serves_the_notebook_and_starts_this_interpreter(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANY_TOKEN", "correct-horse-battery")
    run.mark_stopped("warm_up", "failed", Failure(kind="ZeroDivisionError", reason="no luck"))
    path = _failed_notebook(run, "warm_up")
    command = [sys.executable, "-m", "optimsyn", "open", str(run.folder), "--no-browser"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        command += ["--port", str(free.getsockname()[1])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address, token = _address(process)
        where = f"{address}/api/contents/notebooks/{path.name}"
        assert httpx.get(where).status_code == 403, "the token must stay on"
        with httpx.Client(headers={"Authorization": f"token {token}"}, timeout=600) as client:
            content = client.get(where).json()["content"]
            assert f'run_folder = "{run.folder}"' in "".join(content["cells"][1]["source"])
            content["cells"][2]["source"] = "print('correct-horse-battery')"
            assert client.put(where, json={"type": "notebook", "content": content}).status_code == 200
            kernels = client.get(f"{address}/api/kernelspecs").json()
            assert kernels["kernelspecs"]["python3"]["spec"]["argv"][0] == sys.executable
        assert "correct-horse-battery" not in path.read_text()
        assert "print('[redacted]')" in path.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=600)
