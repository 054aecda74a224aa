"""Executes a notebook with papermill, and tells the truth about how it ended.

papermill itself marks every cell "completed" after a killed kernel or a time-out. This engine marks the cell that was
running as failed with the real reason, leaves the cells after it pending, keeps secrets out of the saved notebook, and
writes the notebook atomically. The kernel is started from this very interpreter, whatever kernels the user has
installed.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import zmq
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, NotebookExecutionManager, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.execute import execute_notebook

from optimsyn.data.jsonl import write_text
from optimsyn.errors import StageError
from optimsyn.redaction import redact, redact_tree, secret_values
from optimsyn.runs.kernel import LOCK_VARIABLE
from optimsyn.runs.parameters import check_parameters

ENGINE = "optimsyn"
# On a machine that is busy training, a kernel may take long to answer although nothing is wrong.
_START_SECONDS = 180
_OUTPUT_SECONDS = 120
# How often a notebook is saved while one long cell prints, in seconds.
_AUTOSAVE_SECONDS = 10
_LOG_LINES = 8

# What nbclient logs is said again, better, by the NotebookError.
_QUIET = logging.getLogger("optimsyn.runs.engine.nbclient")
_QUIET.setLevel(logging.CRITICAL)


class NotebookError(StageError):
    """A notebook did not run to its end.

    Attributes:
        notebook: The executed notebook, with the outputs up to the failure.
        cell: Number of the code cell that was running (1 is the first), or None when none was.
        source: That cell's code.
        kind: Name of the exception in the cell, or `KernelDied`, `TimeLimit`, `Interrupted`.
        reason: What went wrong, in a sentence, without secrets.
    """

    def __init__(self, notebook: Path, cell: int | None, source: str, kind: str, reason: str) -> None:
        self.notebook = notebook
        self.cell = cell
        self.source = source
        self.kind = kind
        self.reason = reason
        where = "" if cell is None else f", cell [{cell}] `{_first_line(source)}`"
        super().__init__(f"{notebook.name}{where}: {kind}: {reason}")


class _Stopped(Exception):  # noqa: N818 (a signal inside this module, not an error that anybody else sees)
    """A cell ended in a way that the kernel could not report itself."""

    def __init__(self, index: int | None, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.index = index
        self.kind = kind
        self.reason = reason


class _KernelManager(AsyncKernelManager):
    """Starts `optimsyn.runs.kernel` with this interpreter; no kernel needs to be installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The one kernel; nbclient keeps its command history in memory."""
        argv = [sys.executable, "-m", "optimsyn.runs.kernel", "-f", "{connection_file}"]
        return KernelSpec(
            argv=argv, display_name="Python 3", language="python", metadata={"supported_encryption": ["curve"]}
        )


class _Manager(NotebookExecutionManager):
    """Keeps the state of the cells, saves the notebook without secrets."""

    def __init__(self, nb: Any, *, secret_names: Iterable[str], **options: Any) -> None:
        super().__init__(nb, **options)
        self._secret_names = tuple(secret_names)

    def save(self, **_: Any) -> None:
        """Writes the notebook as it stands, atomically, secrets taken out."""
        secrets = secret_values(self._secret_names)
        for cell in self.nb.cells:
            if cell.cell_type == "code":
                cell.outputs = [redact_tree(output, secrets) for output in cell.outputs]
        if self.output_path:
            write_text(Path(self.output_path), nbformat.writes(self.nb, version=4) + "\n")
        self.last_save_time = self.now()

    def cell_stopped(self, index: int, kind: str, reason: str) -> None:
        """Marks the running cell as failed, with the reason as its last output."""
        cell = self.nb.cells[index]
        self.cell_exception(cell, cell_index=index)
        if cell.cell_type == "code":
            text = f"{kind}: {reason}"
            cell.outputs.append(nbformat.v4.new_output("error", ename=kind, evalue=reason, traceback=[text]))

    def notebook_complete(self, **_: Any) -> None:
        """Writes the times; cells that never ran stay pending."""
        self.end_time = self.now()
        state = self.nb.metadata.papermill
        state["end_time"] = self.end_time.isoformat()
        state["duration"] = (self.end_time - self.start_time).total_seconds()
        self.save()


class _Client(PapermillNotebookClient):
    """Runs the cells one after the other and stops at the first that fails, whatever the way."""

    def execute(self, **kernel_options: Any) -> Any:
        """Starts the kernel, runs the cells, stops the kernel.

        Raises:
            _Stopped: The kernel died, did not start, or ran out of time.
        """
        self.reset_execution_trackers()
        self._deaths = _memory_kills()
        try:
            with self.setup_kernel(**kernel_options):
                if self._all_cells():
                    info = self.wait_for_reply(self.kc.kernel_info())
                    self.nb.metadata["language_info"] = info["content"]["language_info"]
                    self.set_widgets_metadata()
        except DeadKernelError as error:
            raise _Stopped(None, "KernelDied", f"{error} while it was being shut down") from error
        except RuntimeError as error:
            if not str(error).startswith(("Kernel died", "Kernel didn't respond")):
                raise
            raise _Stopped(None, "KernelDied", f"the kernel did not start: {error}") from error
        return self.nb

    def _all_cells(self) -> bool:
        for index, cell in enumerate(self.nb.cells):
            try:
                self.nb_man.cell_start(cell, index)
                self.execute_cell(cell, index)
            except CellExecutionError as error:
                self.nb_man.cell_exception(self.nb.cells[index], cell_index=index, exception=error)
                return False
            except DeadKernelError as error:
                raise self._stopped(index, "KernelDied", self._cause_of_death()) from error
            except CellTimeoutError as error:
                self.shutdown_kernel = "immediate"
                raise self._stopped(index, "TimeLimit", "the stage took longer than its time limit") from error
            except KeyboardInterrupt:
                self.shutdown_kernel = "immediate"
                self._stopped(index, "Interrupted", "interrupted by a person or by a signal")
                raise
            finally:
                self.nb_man.cell_complete(self.nb.cells[index], cell_index=index)
        return True

    def _stopped(self, index: int, kind: str, reason: str) -> _Stopped:
        self.nb_man.cell_stopped(index, kind, reason)
        return _Stopped(index, kind, reason)

    def _cause_of_death(self) -> str:
        process = getattr(self.km.provisioner, "process", None) if self.km is not None else None
        code = process.poll() if process is not None else None
        if code is None:
            return "the kernel died for an unknown reason"
        if code >= 0:
            return f"the kernel left with exit code {code}"
        name = signal.Signals(-code).name
        if name != "SIGKILL":
            return f"the kernel was killed by {name}"
        if _memory_kills() > self._deaths:
            return (
                "the kernel was killed by SIGKILL because the machine ran out of memory; use smaller batches or models"
            )
        return "the kernel was killed by SIGKILL: by a person, or because memory ran out"


class TruthfulEngine(NBClientEngine):
    """papermill's nbclient engine with the client and the manager of this module."""

    @classmethod
    def execute_notebook(
        cls, nb: Any, kernel_name: str, output_path: str | None = None, progress_bar: bool = False, **options: Any
    ) -> Any:
        """Executes a parameterized notebook; called by papermill.

        Raises:
            _Stopped: The kernel died, did not start, or ran out of time.
        """
        manager = _Manager(
            nb,
            secret_names=options.pop("secret_names", ()),
            output_path=output_path,
            progress_bar=False,
            log_output=False,
            autosave_cell_every=_AUTOSAVE_SECONDS,
        )
        manager.notebook_start()
        try:
            seconds = options.get("seconds")
            deadline = None if seconds is None else time.monotonic() + float(seconds)
            client = _Client(
                manager,
                kernel_manager_class=_KernelManager,
                kernel_name=kernel_name,
                startup_timeout=_START_SECONDS,
                iopub_timeout=_OUTPUT_SECONDS,
                coalesce_streams=True,
                log=_QUIET,
                timeout_func=lambda _: None if deadline is None else max(1, math.ceil(deadline - time.monotonic())),
            )
            client.execute(**options["kernel_options"])
        finally:
            manager.notebook_complete()
        return manager.nb


papermill_engines.register(ENGINE, TruthfulEngine)


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    seconds: float | None = None,
    lock: Path | None = None,
    secret_names: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> None:
    """Executes a notebook in a kernel of its own.

    Args:
        notebook: The notebook to run; it is not changed.
        output: Where the executed notebook goes. It is saved after every cell and while a long one prints. What the
            kernel writes past Jupyter (crash reports of libraries) goes to a `.log` beside it.
        parameters: Values for its parameters cell.
        seconds: Time limit for the whole notebook.
        lock: A file that the kernel keeps locked while it lives.
        secret_names: Environment variables that hold secrets beside those whose name says so.
        environment: Variables of the kernel beside those of this process.

    Raises:
        NotebookError: A cell raised, the kernel died or the time ran out.
        StageError: A parameter is unknown or of a wrong type.
    """
    check_parameters(nbformat.read(notebook, as_version=4), parameters, notebook.name)
    output.parent.mkdir(parents=True, exist_ok=True)
    log_path = output.with_suffix(".log")
    variables = {**os.environ, **(environment or {})}
    if lock is not None:
        variables[LOCK_VARIABLE] = str(lock)
    names = tuple(secret_names)
    try:
        with log_path.open("wb") as log:
            execute_notebook(
                str(notebook),
                str(output),
                parameters=dict(parameters),
                engine_name=ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                secret_names=names,
                seconds=seconds,
                kernel_options={
                    "env": variables,
                    "stdout": log,
                    "stderr": log,
                    "transport_encryption": "auto" if zmq.has("curve") else "disabled",
                },
            )
    except _Stopped as stop:
        tail = _tidy_log(log_path, names)
        reason = stop.reason + (f"\n{tail}" if stop.kind == "KernelDied" and tail else "")
        cell, source = _code_cell(output, stop.index)
        raise NotebookError(output, cell, source, stop.kind, redact(reason, names)) from stop
    except PapermillExecutionError as error:
        # papermill put a heading and an anchor cell in, so the number is taken from the error, not from the file.
        number = error.exec_count if isinstance(error.exec_count, int) else None
        reason = redact(str(error.evalue), names)
        raise NotebookError(output, number, str(error.source), str(error.ename), reason) from None
    finally:
        _tidy_log(log_path, names)


def _code_cell(output: Path, index: int | None) -> tuple[int | None, str]:
    """Number among the code cells, and source, of a cell of the executed notebook."""
    if index is None:
        return None, ""
    cells = nbformat.read(output, as_version=4).cells
    number = sum(1 for cell in cells[: index + 1] if cell.cell_type == "code")
    return number, str(cells[index].source)


def _first_line(source: str) -> str:
    lines = [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return lines[0][:60] if lines else ""


def _tidy_log(path: Path, secret_names: Iterable[str]) -> str:
    """Takes secrets out of a kernel's log, removes an empty one, and gives its end."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    clean = redact(text, secret_names)
    if not clean.strip():
        path.unlink()
    elif clean != text:
        write_text(path, clean)
    return "\n".join(clean.strip().splitlines()[-_LOG_LINES:])


def _memory_kills() -> int:
    """How many processes of this control group the kernel has killed for want of memory (Linux; else 0)."""
    file = Path("/sys/fs/cgroup/memory.events")
    if not file.is_file():
        return 0
    for line in file.read_text(encoding="ascii").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0
