"""The first cell of every notebook: checks the environment and silences libraries' messages.

from optimsyn.execution.notebook import check_environment

check_environment()
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from optimsyn.base.environment import QUIET, set_variables
from optimsyn.base.errors import StageError
from optimsyn.base.secrets.redaction import redact
from optimsyn.base.terminal.live_line import NotebookText, in_notebook
from optimsyn.base.terminal.table import Table


def check_environment(*, needs: tuple[str, ...] = ()) -> Table:
    """Checks Python, packages, processors, memory and accelerator; takes about as long as PyTorch takes to load.

    Switches off libraries' progress bars and warnings in this kernel, and shows optimsyn's own messages in the cell.

    Args:
        needs: Further packages that the notebook uses, by their name on PyPI.

    Returns:
        A table to show as the value of the cell.

    Raises:
        StageError: The notebook needs something that is missing; the message holds the cure.
    """
    set_variables(QUIET)
    show_messages()
    from optimsyn.machine.doctor import notebook_findings

    findings = notebook_findings(needs)
    failed = [f"{finding.what}: {finding.detail}" for finding in findings if finding.status == "fail"]
    if failed:
        raise StageError("; ".join(failed))
    return Table("This kernel", ("what", "found"), tuple((finding.what, finding.detail) for finding in findings))


def examples_folder() -> Path:
    """The example documents, questions and checks that the notebooks use.

    Raises:
        StageError: The installation lacks them.
    """
    from optimsyn.runs.resources import notebook_path

    folder = notebook_path("prepare").parent / "examples"
    if not folder.is_dir():
        raise StageError(f"{folder}: the examples of the notebooks are missing; reinstall optimsyn")
    return folder


class _ShowMessage(logging.Handler):
    """Shows optimsyn's messages in the cell; they are removed when the notebook is saved as an example."""

    def emit(self, record: logging.LogRecord) -> None:
        NotebookText().show(redact(record.getMessage()))


def show_messages() -> None:
    """Sends optimsyn's own messages to the cell, and hides libraries' deprecation warnings."""
    if not in_notebook():
        return
    log = logging.getLogger("optimsyn")
    if not any(isinstance(handler, _ShowMessage) for handler in log.handlers):
        log.addHandler(_ShowMessage())
        log.propagate = False
    # Deprecations between libraries do not concern users; optimsyn's tests show them.
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    # tqdm's widgets would be blank in a saved notebook.
    warnings.filterwarnings("ignore", message="IProgress not found")
