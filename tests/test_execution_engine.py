"""The engine tells the truth: success, an exception, a killed kernel, a time-out, and secrets that stay secret."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from runs_helpers import statuses, write_notebook

from optimsyn.base.errors import ParameterError, StageError
from optimsyn.execution.engine import NotebookError, execute
from optimsyn.execution.parameters import check_parameters, read_parameters

pytestmark = pytest.mark.filterwarnings("ignore")
SECRET = "sk-test-2718281828459045"


def _outputs(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_success_passes_parameters_and_completes_every_cell(tmp_path: Path) -> None:
    source = "import sys; print(text * 2)\nsys.executable"
    notebook = write_notebook(tmp_path / "ok.ipynb", source, parameters='text: str = ""')
    output = tmp_path / "out" / "ok.ipynb"
    before = notebook.read_bytes()
    execute(notebook, output, {"text": "ab"})
    assert "abab" in _outputs(output)
    assert set(statuses(output)) == {"completed"}
    assert notebook.read_bytes() == before
    # A kernel on a busy machine may warn there; what a cell prints never goes there.
    log = output.with_suffix(".log")
    assert not log.exists() or "abab" not in _outputs(log)
    import sys

    assert sys.executable in _outputs(output)


def test_a_notebook_is_never_its_own_output(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "same.ipynb", "1 + 1")
    (tmp_path / "link.ipynb").symlink_to(notebook)
    before = notebook.read_bytes()
    for output in (notebook, tmp_path / "link.ipynb"):
        with pytest.raises(ParameterError, match="give another file for the output"):
            execute(notebook, output, {})
    assert notebook.read_bytes() == before


@pytest.mark.slow
def test_exception_names_cell_and_keeps_secrets_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setenv("MY_GENERATOR", "plain-name-but-secret")
    notebook = write_notebook(
        tmp_path / "bad.ipynb",
        "import os\nprint(os.environ['SOME_API_KEY'])\nos.environ['MY_GENERATOR']",
        "raise ValueError('key ' + os.environ['SOME_API_KEY'] + ' refused')",
        "print('never')",
    )
    output = tmp_path / "out.ipynb"
    with pytest.raises(NotebookError) as caught:
        execute(notebook, output, {}, secret_names=("MY_GENERATOR",))
    error = caught.value
    assert error.kind == "ValueError"
    assert error.reason == "key [redacted] refused"
    assert "raise ValueError" in str(error)
    assert error.cell == 3
    text = _outputs(output)
    assert SECRET not in text
    assert "plain-name-but-secret" not in text
    assert statuses(output) == ["completed", "completed", "failed", "pending"]


@pytest.mark.slow
def test_killed_kernel_is_no_success(tmp_path: Path) -> None:
    notebook = write_notebook(
        tmp_path / "killed.ipynb",
        "print('before', flush=True)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "print('never')",
    )
    output = tmp_path / "out.ipynb"
    with pytest.raises(NotebookError, match="SIGKILL") as caught:
        execute(notebook, output, {})
    assert caught.value.kind == "KernelDied"
    assert caught.value.cell == 3
    assert statuses(output) == ["completed", "completed", "failed", "pending"]
    assert "before" in _outputs(output)
    failed = nbformat.read(output, as_version=4).cells[2].outputs[-1]
    assert failed.ename == "KernelDied"


@pytest.mark.slow
def test_kernel_that_exits_is_told_with_its_code_and_log(tmp_path: Path) -> None:
    source = "import os\nos.write(2, b'native library: out of luck')\nimport time; time.sleep(0.5)\nos._exit(3)"
    output = tmp_path / "out.ipynb"
    with pytest.raises(NotebookError, match="exit code 3\nnative library: out of luck"):
        execute(write_notebook(tmp_path / "exit.ipynb", source), output, {})
    assert statuses(output) == ["completed", "failed"]


@pytest.mark.slow
def test_time_limit_stops_the_notebook(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "slow.ipynb", "import time\ntime.sleep(600)", "print('never')")
    output = tmp_path / "out.ipynb"
    with pytest.raises(NotebookError, match="time limit") as caught:
        execute(notebook, output, {}, seconds=1)
    assert caught.value.kind == "TimeLimit"
    # A slow machine may not have got to the cell that sleeps.
    assert statuses(output) in (["completed", "failed", "pending"], ["failed", "pending", "pending"])


def test_unknown_parameter_is_refused_before_a_kernel_starts(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "1")
    with pytest.raises(StageError, match="did you mean `run_folder`"):
        execute(notebook, tmp_path / "out.ipynb", {"run_foldr": "x"})
    with pytest.raises(StageError, match="run_folder is str, not 3"):
        execute(notebook, tmp_path / "out.ipynb", {"run_folder": 3})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pairs = 3", "must read"),
        ("pairs: int = 2 + x", "literal"),
        ("pairs: int = 'a'", "not of that type"),
        ("pairs: list[int] = []", "use the types"),
    ],
)
def test_a_bad_parameters_cell_is_named(tmp_path: Path, line: str, message: str) -> None:
    notebook = nbformat.read(write_notebook(tmp_path / "a.ipynb", "1", parameters=line), as_version=4)
    with pytest.raises(StageError, match=message):
        read_parameters(notebook, "a.ipynb")


def test_parameter_types() -> None:
    cell = {
        "metadata": {"tags": ["parameters"]},
        "source": "rate: float = 0.5\nlimit: int | None = None\non: bool = True",
    }
    notebook = {"cells": [cell]}
    check_parameters(notebook, {"rate": 1, "limit": 4, "on": False}, "n")
    check_parameters(notebook, {"limit": None}, "n")
    for wrong in ({"limit": True}, {"on": 1}, {"rate": "0.5"}):
        with pytest.raises(StageError):
            check_parameters(notebook, wrong, "n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "kind", "reason"),
    [
        ("raise ValueError('what the cell said')", "ValueError", "what the cell said"),
        ("print('to the end')", "DataError", "cannot write the notebook (No space left on device"),
    ],
)
def test_a_full_disk_ends_no_cell_and_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, kind: str, reason: str
) -> None:
    from optimsyn.execution import client

    saves = 0
    save = client.save_notebook

    def full(notebook: Any, place: str) -> None:
        nonlocal saves
        saves += 1
        if saves > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(notebook, place)

    monkeypatch.setattr(client, "save_notebook", full)
    done = tmp_path / "done"
    notebook = write_notebook(tmp_path / "full.ipynb", f"open({str(done)!r}, 'w').close()", last)
    with pytest.raises(NotebookError) as caught:
        execute(notebook, tmp_path / "out.ipynb", {})
    assert done.is_file(), "the kernel was ended before its work was done"
    assert caught.value.kind == kind
    assert reason in caught.value.reason
