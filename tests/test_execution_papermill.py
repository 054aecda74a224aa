"""Plain `papermill`, with and without our engine, as somebody types it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from runs_helpers import statuses, write_notebook

from optimsyn.runs.resources import notebook_path

SECRET = "correct-horse-battery-staple"
SHAPED = "sk-proj-4f9a8b7c6d5e4f3a2b1c"


def _papermill(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", *map(str, arguments)]
    environment = {**os.environ, "MINE_TOKEN": SECRET}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600, check=False)


def _notebook(path: Path, *sources: str) -> Path:
    write_notebook(path, *sources, parameters='text: str = "a"')
    notebook = nbformat.read(path, as_version=4)
    # papermill itself wants to know the language.
    notebook.metadata |= {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook.metadata |= {"language_info": {"name": "python"}}
    nbformat.write(notebook, path)
    return path


def test_the_engine_is_an_entry_point() -> None:
    (entry,) = [e for e in importlib.metadata.entry_points(group="papermill.engine") if e.name == "optimsyn"]
    assert entry.value == "optimsyn.execution.entry_point:Engine"
    # Loading it while papermill is being imported must import nothing of papermill.
    code = "import optimsyn.execution.entry_point, sys; sys.exit('papermill' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_plain_papermill_runs_a_stage_from_a_parameters_file(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("size: tiny\nchanges:\n  documents.passage_words: 60\n")
    done = _papermill(notebook_path("prepare"), "out.ipynb", "-f", "params.yaml", "--no-progress-bar", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("quickstart_tiny-")
    assert json.loads((run / "manifest.json").read_text())["stages"][0]["status"] == "finished"
    assert "passage_words: 60" in (run / "recipe.yaml").read_text()
    outputs = [o for c in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    # What changes from run to run is marked, so that a notebook under version control can leave it out.
    lines = [o for o in outputs if "finished after" in str(o.get("data", {}).get("text/plain", ""))]
    assert [line.metadata.optimsyn.transient for line in lines] == [True]


@pytest.mark.slow
def test_our_engine_behind_plain_papermill(tmp_path: Path) -> None:
    notebook = _notebook(
        tmp_path / "in.ipynb",
        "import os\nprint(text, os.environ['MINE_TOKEN'])",
        "from optimsyn.base.terminal.live_line import LiveLine\n"
        "with LiveLine(lambda: 'reading: 2/3 rows') as line:\n    line.finish('reading: 3/3 rows')\nNone",
    )
    (tmp_path / "params.yaml").write_text("text: hello\n")
    done = _papermill("--engine", "optimsyn", notebook, "out.ipynb", "-f", "params.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(statuses(tmp_path / "out.ipynb")) == {"completed"}
    text = (tmp_path / "out.ipynb").read_text()
    assert "hello [redacted]" in text
    assert SECRET not in text
    # One line that ends with what the last cell told about itself.
    assert "in.ipynb: cell 4 of 4" in done.stderr
    assert "reading: 3/3 rows" in done.stderr
    killed = _notebook(tmp_path / "kill.ipynb", "import os\nos.kill(os.getpid(), 9)", "print('never')")
    died = _papermill("--engine", "optimsyn", killed, "killed.ipynb", cwd=tmp_path)
    assert died.returncode != 0
    assert "cell [2] `import os`: KernelDied: the kernel was killed by SIGKILL" in died.stderr
    assert statuses(tmp_path / "killed.ipynb") == ["completed", "failed", "pending"]


@pytest.mark.slow
def test_our_engine_refuses_before_it_writes(tmp_path: Path) -> None:
    notebook = _notebook(tmp_path / "in.ipynb", "print(text)")
    before = sorted(tmp_path.iterdir())
    for message, name, value in (("did you mean `text`", "txt", "x"), ("text looks like a key", "text", SHAPED)):
        # The path would hold the value too.
        output = f"out_{{{name}}}.ipynb"
        refused = _papermill("--engine", "optimsyn", notebook, output, "-p", name, value, cwd=tmp_path)
        assert refused.returncode != 0
        assert message in refused.stderr
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_notebook_whose_papermill_is_stopped_says_so(tmp_path: Path) -> None:
    source = "print('before', flush=True)\nimport time\ntime.sleep(600)"
    notebook = _notebook(tmp_path / "in.ipynb", source, "print('never')")
    output = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "--engine", "optimsyn", str(notebook), str(output)]
    command += ["--autosave-cell-every", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (output.is_file() and '"status": "running"' in output.read_text()):
        time.sleep(0.1)
    # The second cell runs; papermill saved it as running before its code was sent.
    while process.poll() is None and statuses(output) != ["completed", "running", "pending"]:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=600)[1]
    assert process.returncode != 0
    assert "never retrieved" not in said
    assert statuses(output) == ["completed", "failed", "pending"]
    executed = nbformat.read(output, as_version=4)
    last = executed.cells[1].outputs[-1]
    assert (last.ename, last.evalue) == ("Interrupted", "interrupted by a person or by a signal")
    assert executed.metadata.optimsyn.stopped.kind == "Interrupted"
    assert executed.metadata.papermill.exception is True
