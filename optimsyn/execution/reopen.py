"""Opens a stage of a run in JupyterLab, so that a user can finish a failed stage by hand.

It opens the run's executed notebook, with its parameters and the outputs of the failed attempt; its cells find
everything that the stage has bought. When the stage has finished there, `optimsyn run` continues with the next one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat

from optimsyn.base.environment import JUPYTER_PATH, SECRET_NAMES, variable, variables
from optimsyn.base.errors import StageError
from optimsyn.base.secrets.redaction import redact_tree, secret_values
from optimsyn.execution.client import save_notebook
from optimsyn.execution.signals import handled_signals
from optimsyn.execution.stage_notebooks import stage_notebook
from optimsyn.runs.durations import executed_notebook
from optimsyn.runs.folder import Run

# Which stage to open: the first of these states; of several finished stages the last.
_ORDER = ("failed", "interrupted", "finished", "pending")


def stage_to_open(run: Run, stage: str | None = None) -> str:
    """The named stage, else the failed one, else an interrupted, the last finished, the first pending one.

    Raises:
        StageError: There is no stage of this name.
    """
    if stage is not None:
        return run.manifest.stage(stage).name
    for status in _ORDER:
        names = [record.name for record in run.manifest.stages if record.status == status]
        if names:
            return names[-1] if status == "finished" else names[0]
    raise StageError(f"{run.name}: a stage is running; wait for it or stop it")


def prepare(run: Run, stage: str | None = None) -> tuple[str, Path]:
    """Chooses the stage (None: see `stage_to_open`) and puts its notebook into the run folder, with the run filled in.

    Returns:
        The stage and its notebook. An executed one keeps its cells and outputs.

    Raises:
        StageError: Another process works on the run, or there is no such stage.
    """
    from papermill.parameterize import parameterize_notebook

    from optimsyn.execution.engine import ENGINE
    from optimsyn.execution.runner import KERNEL_LOCK, mark_killed, refuse_locked

    with run.lock():
        refuse_locked(run, ".stage.lock", "a notebook still works on it")
        refuse_locked(run, *KERNEL_LOCK)
        mark_killed(run)
        chosen = stage_to_open(run, stage)
        place = executed_notebook(run, chosen)
        source = place if place.is_file() else stage_notebook(run, chosen)
        notebook = nbformat.read(source, as_version=4)
        notebook.metadata.setdefault("papermill", {})
        for cell in notebook.cells:
            cell.metadata.setdefault("tags", [])
            if source != place and cell.cell_type == "code":
                # The shipped notebooks show another run's results.
                cell.outputs, cell.execution_count = [], None
        filled = parameterize_notebook(notebook, {"run_folder": str(run.folder)}, engine_name=ENGINE)
        filled.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        save_notebook(filled, str(place))
    return chosen, place


def lab_command(folder: Path, notebook: Path, *, browser: bool = True, port: int | None = None) -> list[str]:
    """The command that starts JupyterLab with a notebook inside its root folder; Jupyter's default token stays on.

    Raises:
        StageError: JupyterLab is not installed.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise StageError("JupyterLab is not installed; install it with: pip install 'optimsyn[notebooks]'")
    place = notebook.relative_to(folder)
    command = [
        *(sys.executable, "-m", "jupyter", "lab", str(place)),
        f"--ServerApp.root_dir={folder}",
        # So that the address that JupyterLab prints opens the notebook too.
        f"--LabApp.default_url=/lab/tree/{quote(place.as_posix())}",
        "--ContentsManager.pre_save_hook=optimsyn.execution.reopen.prune_before_saving",
    ]
    if not browser:
        command.append("--no-browser")
    if port is not None:
        command.append(f"--ServerApp.port={port}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # Jupyter requires this for root, which is the usual user in a container.
        command.append("--allow-root")
    return command


def lab_environment(kernels: Path, secret_names: Iterable[str] = ()) -> dict[str, str]:
    """Environment in which the kernel `python3` is this interpreter, whatever kernels the user has installed.

    The folder takes its kernel spec, and must exist while JupyterLab runs.
    """
    place = kernels / "kernels" / "python3"
    place.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": command, "display_name": "Python 3", "language": "python"}
    (place / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")
    paths = os.pathsep.join(filter(None, (str(kernels), variable(JUPYTER_PATH))))
    return {**variables(), JUPYTER_PATH: paths, SECRET_NAMES: ",".join(secret_names)}


def open_run(run: Run, notebook: Path, *, browser: bool = True, port: int | None = None) -> int:
    """Runs JupyterLab until the user ends it; returns its exit code.

    Raises:
        StageError: JupyterLab is not installed.
    """
    command = lab_command(run.folder, notebook, browser=browser, port=port)
    with tempfile.TemporaryDirectory(prefix="optimsyn-kernel-") as kernels:
        server = subprocess.Popen(command, cwd=run.folder, env=lab_environment(Path(kernels), run.secret_names))
        try:
            # Ctrl-C reaches JupyterLab too, which asks for confirmation.
            with handled_signals(signal.SIG_IGN, "SIGINT"):
                return server.wait()
        finally:
            if server.poll() is None:
                server.terminate()
                server.wait()


def prune_before_saving(model: dict[str, Any], **_: Any) -> None:
    """Removes secrets from a notebook before JupyterLab saves it; JupyterLab calls this for every file."""
    if model.get("type") == "notebook" and model.get("content") is not None:
        names = (variable(SECRET_NAMES) or "").split(",")
        model["content"] = redact_tree(model["content"], secret_values(names))
