"""Runs the cells of a notebook in a kernel of this interpreter, and reports how each really ended.

papermill's own client marks every cell "completed" after a killed kernel or a time-out. This one marks the running cell
as failed, with the reason as its last output, and leaves the cells after it pending.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NotebookExecutionManager

from optimsyn.base.disk import is_disk_trouble
from optimsyn.base.files import write_text
from optimsyn.base.secrets.redaction import redact_tree, secret_values
from optimsyn.runs.folder import INTERRUPTED

# On a busy machine, a healthy kernel may take long to answer.
START_SECONDS = 180
_OUTPUT_SECONDS = 120
# Time for an interrupted cell to record the interrupt in the manifest.
_INTERRUPT_SECONDS = 10

# The NotebookError repeats what nbclient logs, in better words.
_QUIET = logging.getLogger("optimsyn.execution.client.nbclient")
_QUIET.setLevel(logging.CRITICAL)
_SHOWN = logging.getLogger("papermill")


class Stopped(Exception):  # noqa: N818 (a signal between the client and the engine, not an error that others see)
    """A cell (None: none) ended in a way that the kernel could not report, of the kind `KernelDied` or `TimeLimit`."""

    def __init__(self, index: int | None, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.index = index
        self.kind = kind
        self.reason = reason


class KernelManager(AsyncKernelManager):
    """Starts `optimsyn.execution.kernel` with this interpreter; no kernel needs to be installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel; nbclient keeps its command history in memory."""
        argv = [sys.executable, "-m", "optimsyn.execution.kernel", "-f", "{connection_file}"]
        encrypted = {"supported_encryption": ["curve"]}
        return KernelSpec(argv=argv, display_name="Python 3", language="python", metadata=encrypted)


class CellStates(NotebookExecutionManager):
    """Keeps the state of the cells and saves the notebook, both without secrets."""

    def __init__(self, nb: Any, *, secret_names: Iterable[str], **options: Any) -> None:
        super().__init__(nb, **options)
        self._secret_names = tuple(secret_names)
        # Why the last save failed.
        self.unsaved: OSError | None = None
        # For the progress line.
        self.running: int | None = None
        self.progress = ""

    def clean(self, part: Any) -> Any:
        """A copy of a notebook, or of a part of one, without secrets."""
        return redact_tree(part, secret_values(self._secret_names))

    def save(self, **_: Any) -> None:
        """Writes the current notebook atomically, without secrets in sources, outputs and parameters.

        A full disk must not end a kernel with requests under way: once cells run, the error is only remembered.
        """
        try:
            if self.output_path:
                save_notebook(self.clean(self.nb), str(self.output_path))
            self.unsaved = None
        except OSError as error:
            if self.running is None or not is_disk_trouble(error):
                raise
            self.unsaved = error
        self.last_save_time = self.now()

    def notebook_start(self, **options: Any) -> None:
        """Removes the metadata of an earlier execution."""
        self.nb.metadata.pop("optimsyn", None)
        super().notebook_start(**options)

    def cell_start(self, cell: Any, cell_index: int | None = None, **options: Any) -> None:
        """Marks a cell as running."""
        self.running, self.progress = cell_index, ""
        super().cell_start(cell, cell_index, **options)

    def cell_stopped(self, index: int, kind: str, reason: str) -> Stopped:
        """Marks the running cell as failed, with the reason as its last output; returns that to be raised."""
        cell = self.nb.cells[index]
        self.cell_exception(cell, cell_index=index)
        if cell.cell_type == "code":
            text = f"{kind}: {reason}"
            cell.outputs.append(nbformat.v4.new_output("error", ename=kind, evalue=reason, traceback=[text]))
        return Stopped(index, kind, reason)

    def stopped(self, kind: str, reason: str) -> None:
        """Records in the notebook's metadata why it did not run to its end."""
        self.nb.metadata.papermill["exception"] = True
        self.nb.metadata["optimsyn"] = {"stopped": {"kind": kind, "reason": reason}}

    def notebook_complete(self, **_: Any) -> None:
        """Records the times; cells that never ran stay pending."""
        self.end_time = self.now()
        state = self.nb.metadata.papermill
        state["end_time"] = self.end_time.isoformat()
        state["duration"] = (self.end_time - self.start_time).total_seconds()
        self.save()


def save_notebook(notebook: Any, place: str) -> None:
    """Writes a notebook: atomically to this machine's disk, through papermill's handlers elsewhere (`s3://…`)."""
    if "://" in place:
        from papermill.iorw import write_ipynb

        write_ipynb(notebook, place)
        return
    write_text(Path(place), nbformat.writes(notebook, version=4) + "\n")


class Client(PapermillNotebookClient):
    """Runs the cells in order and stops at the first that fails in any way.

    Args:
        states: Keeps the state of the cells.
        kernel_name: For papermill's metadata; the kernel is always this interpreter.
        seconds: Time limit for the whole notebook.
        cell_seconds: Time limit for each cell.
        options: Options of papermill's client.
    """

    def __init__(
        self,
        states: CellStates,
        kernel_name: str,
        *,
        seconds: float | None,
        cell_seconds: float | None,
        **options: Any,
    ) -> None:
        deadline = math.inf if seconds is None else time.monotonic() + seconds
        self._notebook_limit = seconds

        def limit(_: Any) -> int | None:
            remaining = min(deadline - time.monotonic(), math.inf if cell_seconds is None else cell_seconds)
            return None if remaining == math.inf else max(1, math.ceil(remaining))

        super().__init__(
            states,
            kernel_manager_class=KernelManager,
            kernel_name=kernel_name,
            iopub_timeout=_OUTPUT_SECONDS,
            coalesce_streams=True,
            log=_QUIET,
            timeout_func=limit,
            **options,
        )

    def execute(self, **kernel_options: Any) -> Any:
        """Starts the kernel, runs the cells, stops the kernel.

        Raises:
            Stopped: The kernel died, did not start, or ran out of time.
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
            raise Stopped(None, "KernelDied", f"{error} while it was being shut down") from error
        except RuntimeError as error:
            if not str(error).startswith(("Kernel died", "Kernel didn't respond")):
                raise
            raise Stopped(None, "KernelDied", f"the kernel did not start: {error}") from error
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
                raise self.nb_man.cell_stopped(index, "KernelDied", self._cause_of_death()) from error
            except CellTimeoutError as error:
                self.shutdown_kernel = "immediate"
                limit = "the notebook" if self._notebook_limit is not None else "the cell"
                raise self.nb_man.cell_stopped(
                    index, "TimeLimit", f"{limit} took longer than its time limit"
                ) from error
            except KeyboardInterrupt:
                self.shutdown_kernel = "immediate"
                self._interrupt()
                self.nb_man.cell_stopped(index, "Interrupted", INTERRUPTED)
                raise
            finally:
                self.nb_man.cell_complete(self.nb.cells[index], cell_index=index)
        return True

    def _interrupt(self) -> None:
        """Interrupts the running cell and gives it a moment to end; a second interrupt ends the wait."""
        interrupt_cell(self, _INTERRUPT_SECONDS)

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        """Handles a message of the kernel; a stage's progress is also kept for the progress line."""
        content = msg["content"]
        if msg["msg_type"] in ("display_data", "update_display_data"):
            mark = content.get("metadata", {}).get("optimsyn")
            if isinstance(mark, dict) and mark.get("transient"):
                self.nb_man.progress = str(content["data"].get("text/plain", ""))
        return super().process_message(msg, cell, cell_index)

    def log_output_message(self, output: Any) -> None:
        """Passes an output without secrets to papermill's log and files (`--log-output`, `--stdout-file`)."""
        clean = self.nb_man.clean(output)
        stream = clean.output_type == "stream"
        text = "".join(clean.text if stream else clean.get("data", {}).get("text/plain", ""))
        if self.log_output and text:
            _SHOWN.info(text)
        file = {"stdout": self.stdout_file, "stderr": self.stderr_file}.get(clean.name) if stream else None
        if file is not None:
            file.write(text)
            file.flush()

    def _cause_of_death(self) -> str:
        process = getattr(self.km.provisioner, "process", None) if self.km is not None else None
        code = process.poll() if process is not None else None
        if code is None:
            return "the kernel died for an unknown reason"
        if code >= 0:
            return f"the kernel ended with exit code {code}"
        if -code != signal.SIGKILL:
            return f"the kernel was killed by {signal.Signals(-code).name}"
        if _memory_kills() == self._deaths:
            return "the kernel was killed by SIGKILL: by a person, or because memory ran out"
        return "the kernel was killed by SIGKILL because the machine ran out of memory; use smaller batches or models"


def _memory_kills() -> int:
    """How many processes of this control group were killed for lack of memory (Linux; else 0)."""
    file = Path("/sys/fs/cgroup/memory.events")
    counts = dict(line.split() for line in file.read_text("ascii").splitlines()) if file.is_file() else {}
    return int(counts.get("oom_kill", 0))


def interrupt_cell(client: NotebookClient, seconds: float) -> None:
    """Interrupts the running cell, if any, and gives it time to end; a second interrupt ends the wait.

    Args:
        client: Runs the cells.
        seconds: The longest wait.
    """
    km: Any = client.km
    reply = client.task_poll_for_reply
    if km is None or reply is None or reply.done():
        return

    async def wait() -> None:
        await km.interrupt_kernel()
        await asyncio.wait([reply], timeout=seconds)

    loop = reply.get_loop()
    # Inside a notebook the loop runs in another thread, and this one cannot wait for it.
    if loop.is_running():
        return
    # Who interrupts reports that; the exception of the cell is not needed.
    loop.set_exception_handler(lambda _, context: None)
    run_sync(wait)()
