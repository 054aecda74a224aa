"""Executes a notebook with papermill, and reports correctly how it ended.

The runner and `optimsyn execute` call `execute`; `papermill --engine optimsyn` finds the engine through an entry point
(`optimsyn.execution.entry_point`). In each case the parameters are checked before a kernel starts, a failed cell is
marked with the real reason, the notebook is saved atomically while it runs, and secrets stay out of it. The kernel uses
this interpreter, whatever kernels are installed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import zmq
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from optimsyn.base.disk import cannot_write
from optimsyn.base.environment import KERNEL_LOCK, NO_PROGRESS_BARS
from optimsyn.base.environment import variables as all_variables
from optimsyn.base.errors import ParameterError, StageError
from optimsyn.base.secrets.redaction import redact
from optimsyn.base.terminal.live_line import LiveLine
from optimsyn.execution.client import START_SECONDS, CellStates, Client, Stopped
from optimsyn.execution.parameters import check_parameters
from optimsyn.execution.signals import handled_signals
from optimsyn.execution.stage_notebooks import first_line
from optimsyn.runs.folder import INTERRUPTED

ENGINE = "optimsyn"
# How often a notebook is saved while one long cell prints, in seconds.
_AUTOSAVE_SECONDS = 10
_LOG_LINES = 8
_LOG_SECONDS = 5


class NotebookError(StageError):
    """A notebook did not run to its end.

    Attributes:
        notebook: The executed notebook, with the outputs up to the failure.
        cell: Number of the code cell that was running (1 is the first); None when none was.
        kind: Name of the exception in the cell, or `KernelDied`, `TimeLimit`, `Interrupted`.
        reason: What went wrong, in a sentence, without secrets.
    """

    def __init__(self, notebook: Path, cell: int | None, source: str, kind: str, reason: str) -> None:
        self.notebook = notebook
        self.cell = cell
        self.source = source
        self.kind = kind
        self.reason = reason
        where = "" if cell is None else f", cell [{cell}] `{first_line(source)[:60]}`"
        super().__init__(f"{notebook.name}{where}: {kind}: {reason}")


class TruthfulEngine(NBClientEngine):
    """papermill's nbclient engine with the client of `optimsyn.execution.client`."""

    @classmethod
    def nb_kernel_name(cls, nb: Any, name: str | None = None) -> str:
        """The kernel is this interpreter, whatever kernel the notebook names."""
        return name or "python3"

    @classmethod
    def nb_language(cls, nb: Any, language: str | None = None) -> str:
        """Always Python."""
        return "python"

    @classmethod
    def execute_notebook(
        cls,
        nb: Any,
        kernel_name: str,
        output_path: str | None = None,
        progress_bar: bool | dict[str, Any] = True,
        log_output: bool = False,
        autosave_cell_every: int = _AUTOSAVE_SECONDS,
        **options: Any,
    ) -> Any:
        """Executes a notebook with injected parameters; called by papermill, with its options and those of `execute`.

        Returns:
            The executed notebook, without secrets.

        Raises:
            NotebookError: The kernel died, did not start, or ran out of time. papermill reports exceptions in cells.
            ParameterError: A parameter is wrong; nothing was started or written.
        """
        name = Path(str(options.get("input_path") or output_path or "notebook")).name
        secret_names = options.get("secret_names")
        if secret_names is None:
            secret_names = _check(nb, nb.metadata.papermill.get("parameters") or {}, name)
        states = CellStates(
            nb,
            secret_names=secret_names,
            output_path=output_path,
            progress_bar=False,
            log_output=False,
            autosave_cell_every=autosave_cell_every,
        )
        states.notebook_start()
        local = output_path is not None and "://" not in str(output_path)
        log = KernelLog(Path(str(output_path)).with_suffix(".log") if local else None, secret_names)
        try:
            client = Client(
                states,
                kernel_name,
                seconds=options.get("seconds"),
                cell_seconds=options.get("execution_timeout"),
                startup_timeout=max(START_SECONDS, int(options.get("start_timeout") or 0)),
                log_output=log_output,
                stdout_file=options.get("stdout_file"),
                stderr_file=options.get("stderr_file"),
            )
            # Where SIGTERM would end this process silently, it is handled like Ctrl-C: the notebook records why.
            with (
                handled_signals(
                    signal.default_int_handler, "SIGTERM", "SIGHUP", where=lambda now: now == signal.SIG_DFL
                ),
                _line(states, name) if progress_bar else contextlib.nullcontext(),
            ):
                client.execute(
                    env={**NO_PROGRESS_BARS, **all_variables(), **options.get("environment", {})},
                    stdout=log.file,
                    stderr=log.file,
                    transport_encryption="auto" if zmq.has("curve") else "disabled",
                )
        except Stopped as stop:
            states.stopped(stop.kind, stop.reason)
            raise _error(states, stop, Path(output_path or name), log.end()) from stop
        except KeyboardInterrupt:
            states.stopped("Interrupted", INTERRUPTED)
            raise
        finally:
            log.end()
            states.notebook_complete()
        if states.unsaved is not None:
            # papermill would fail to write it again, and hide a cell's error.
            raise _unsaved(states, states.unsaved, Path(output_path or name))
        return states.clean(states.nb)


papermill_engines.register(ENGINE, TruthfulEngine)


def execute(  # noqa: PLR0913 - the last four are keyword-only options, each with a default
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    seconds: float | None = None,
    lock: Path | None = None,
    secret_names: Iterable[str] = (),
    progress: bool = False,
) -> None:
    """Executes a notebook in its own kernel.

    Args:
        notebook: The notebook to run; it is not changed.
        output: Where the executed notebook goes. It is saved after every cell and while a long one prints. Output that
            bypasses Jupyter (crash reports of libraries) goes to a `.log` beside it.
        parameters: Values for its parameters cell.
        seconds: Time limit for the whole notebook.
        lock: A file that the kernel keeps locked while it lives.
        secret_names: Further variables that hold secrets, beyond those recognised by name or named by the recipe.
        progress: Show a progress line.

    Raises:
        NotebookError: A cell raised, the kernel died or the time ran out.
        ParameterError: A parameter is unknown, of a wrong type or out of range, or the output is the notebook itself;
            nothing was started or written.
    """
    from papermill.execute import execute_notebook

    if not notebook.is_file():
        raise StageError(f"{notebook}: there is no such notebook")
    if output.exists() and output.samefile(notebook):
        raise ParameterError(f"{output}: the notebook itself stays as it is; give another file for the output")
    names = (*secret_names, *_check(nbformat.read(notebook, as_version=4), parameters, notebook.name))
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        execute_notebook(
            # papermill treats braces in a path as a template.
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, output)),
            parameters=dict(parameters),
            engine_name=ENGINE,
            kernel_name="python3",
            language="python",
            progress_bar=progress,
            autosave_cell_every=_AUTOSAVE_SECONDS,
            secret_names=names,
            seconds=seconds,
            environment={} if lock is None else {KERNEL_LOCK: str(lock)},
        )
    except PapermillExecutionError as error:
        # papermill inserted a heading and an anchor cell, so the number comes from the error, not from the file.
        number = error.exec_count if isinstance(error.exec_count, int) else None
        reason = redact(str(error.evalue), names)
        raise NotebookError(output, number, str(error.source), str(error.ename), reason) from None


def _check(notebook: Any, parameters: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Checks the parameters; a user's notebook may have none.

    Returns:
        The environment variables that hold the keys of the chosen recipe.
    """
    if not parameters and not any("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells):
        return ()
    return check_parameters(notebook, parameters, name)


def _error(states: CellStates, stop: Stopped, notebook: Path, log: str) -> NotebookError:
    reason = states.clean(stop.reason + (f"\n{log}" if stop.kind == "KernelDied" and log else ""))
    if stop.index is None:
        return NotebookError(notebook, None, "", stop.kind, reason)
    cells = states.clean(states.nb).cells
    number = sum(cell.cell_type == "code" for cell in cells[: stop.index + 1])
    return NotebookError(notebook, number, str(cells[stop.index].source), stop.kind, reason)


def _unsaved(states: CellStates, error: OSError, notebook: Path) -> NotebookError:
    """The error of the cell that failed, or else that the notebook could not be written."""
    cells = [cell for cell in states.clean(states.nb).cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                return NotebookError(notebook, number, str(cell.source), str(output.ename), str(output.evalue))
    return NotebookError(notebook, None, "", "DataError", str(cannot_write(notebook, "the notebook", error)))


def _line(states: CellStates, name: str) -> LiveLine:
    """The progress line: the running cell, the elapsed time, and the stage's own progress."""
    start = time.monotonic()
    code = [index for index, cell in enumerate(states.nb.cells) if cell.cell_type == "code"]

    def done() -> int:
        return sum(index < (states.running or 0) for index in code)

    def status() -> str:
        from optimsyn.runs.durations import clock

        where = "starting" if states.running is None else f"cell {min(done() + 1, len(code))} of {len(code)}"
        progress = f", {states.progress}" if states.progress else ""
        return f"{name}: {where}, {clock(time.monotonic() - start)}{progress}"

    return LiveLine(status, share=lambda: done() / len(code) if code else None)


class KernelLog:
    """Kernel output that bypasses Jupyter: redacted, it is written to a log, or to standard error without a path."""

    def __init__(self, path: Path | None, secret_names: Iterable[str]) -> None:
        self._path = path
        self._secret_names = tuple(secret_names)
        self._last: deque[str] = deque(maxlen=_LOG_LINES)
        if path is not None:
            path.unlink(missing_ok=True)
        reading, writing = os.pipe()
        self.file = os.fdopen(writing, "wb")
        self._thread = threading.Thread(target=self._pump, args=(reading,), name="kernel-log", daemon=True)
        self._thread.start()

    def _pump(self, reading: int) -> None:
        with os.fdopen(reading, "rb") as pipe:
            for raw in pipe:
                line = redact(raw.decode("utf-8", "replace"), self._secret_names)
                self._last.append(line.rstrip())
                if self._path is None:
                    sys.stderr.write(line)
                else:
                    with self._path.open("a", encoding="utf-8") as file:
                        file.write(line)

    def end(self) -> str:
        """The last lines, once the kernel is gone."""
        self.file.close()
        # A child of the kernel may outlive it and hold the pipe.
        self._thread.join(timeout=_LOG_SECONDS)
        return "\n".join(self._last).strip()
