"""A kernel that runs the cells of an analyst's notebook one at a time; the file is written before and after each."""

from __future__ import annotations

import ast
import json
import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nbformat
import zmq
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from optimsyn.agents.analyst.notebook import AnalystNotebook
from optimsyn.base.environment import NO_PROGRESS_BARS
from optimsyn.base.environment import variables as all_variables
from optimsyn.base.errors import StageError
from optimsyn.execution.client import START_SECONDS, KernelManager, interrupt_cell
from optimsyn.execution.engine import KernelLog
from optimsyn.runs.folder import INTERRUPTED

_OUTPUT_SECONDS = 120
# Time for an interrupted run to end in order.
_INTERRUPT_SECONDS = 30
_QUIET = logging.getLogger("optimsyn.agents.analyst.session.nbclient")
_QUIET.setLevel(logging.CRITICAL)


class Session:
    """A live kernel and its notebook; see `opened`."""

    def __init__(self, notebook: AnalystNotebook, client: NotebookClient) -> None:
        self.notebook = notebook
        self._client = client

    def run(self, index: int) -> None:
        """Runs one cell and saves the notebook; an error of the cell is in its outputs.

        Raises:
            StageError: The kernel died.
            KeyboardInterrupt: A person interrupted it; the cell says so.
        """
        cell = self.notebook.nb.cells[index]
        cell.outputs, cell.execution_count = [], None
        self.notebook.ran(index, ended=False)
        self.notebook.save()
        try:
            self._client.execute_cell(cell, index)
        except CellExecutionError:
            pass
        except DeadKernelError as error:
            _add_error(cell, "KernelDied", "the kernel died while it ran this cell")
            self.notebook.save()
            again = f"optimsyn agent --continue {shlex.quote(str(self.notebook.path))}"
            raise StageError(f"{self.notebook.path}: the kernel died; `{again}` goes on") from error
        except KeyboardInterrupt:
            self._interrupt()
            _add_error(cell, "Interrupted", INTERRUPTED)
            self.notebook.save()
            raise
        self.notebook.ran(index, ended=True)
        self.notebook.save()

    def ask(self, expression: str) -> Any:
        """The value of an expression that gives JSON, without a trace in the notebook.

        Raises:
            StageError: It has none, as when a person's cell has replaced `bench`.
        """
        assert self._client.kc is not None
        sent = self._client.kc.execute("", silent=True, user_expressions={"asked": expression})
        reply = self._client.wait_for_reply(sent)
        answer = reply["content"]["user_expressions"]["asked"] if reply is not None else {}
        if answer.get("status") != "ok":
            raise StageError(
                f"{self.notebook.path}: the kernel has no working `bench` ({answer.get('ename')}: "
                f"{answer.get('evalue')}); mend the first code cell, which opens the workbench"
            )
        return json.loads(ast.literal_eval(answer["data"]["text/plain"]))

    def _interrupt(self) -> None:
        """Interrupts the running cell and gives its run time to end in order."""
        interrupt_cell(self._client, _INTERRUPT_SECONDS)


@contextmanager
def opened(notebook: AnalystNotebook) -> Iterator[Session]:
    """Starts a kernel of this interpreter in the notebook's folder, and ends it with the block.

    Raises:
        StageError: The kernel does not start.
    """
    folder = notebook.path.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook.nb,
        kernel_manager_class=KernelManager,
        resources={"metadata": {"path": str(folder)}},
        iopub_timeout=_OUTPUT_SECONDS,
        startup_timeout=START_SECONDS,
        timeout=None,
        coalesce_streams=True,
        record_timing=False,
        log=_QUIET,
    )
    log = KernelLog(notebook.path.with_suffix(".log"), ())
    try:
        with client.setup_kernel(
            env={**NO_PROGRESS_BARS, **all_variables()},
            stdout=log.file,
            stderr=log.file,
            transport_encryption="auto" if zmq.has("curve") else "disabled",
        ):
            yield Session(notebook, client)
    except RuntimeError as error:
        if not str(error).startswith(("Kernel died", "Kernel didn't respond")):
            raise
        raise StageError(f"{notebook.path}: the kernel did not start: {error}\n{log.end()}") from error
    finally:
        log.end()


def _add_error(cell: Any, kind: str, reason: str) -> None:
    cell.outputs.append(nbformat.v4.new_output("error", ename=kind, evalue=reason, traceback=[f"{kind}: {reason}"]))
