"""Runs the stages of a run up to one of them, in this process: for notebooks that start from a warm or finished run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from optimsyn.base.table import Table
from optimsyn.runs.manifest import STAGES

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run


def run_through(run: Run, stage: str) -> Table:
    """Runs every stage up to and with `stage`; finished ones are skipped.

    Args:
        run: The run.
        stage: The last stage.

    Raises:
        StageError: There is no such stage, or one of them cannot be finished.

    Example:
        >>> from optimsyn.runs import Run
        >>> run_through(Run.start("quickstart", size="tiny"), "synthesize")          # doctest: +SKIP
    """
    last = run.manifest.stage(stage).name
    rows = []
    for name in STAGES[: STAGES.index(last) + 1]:
        module = importlib.import_module(f"optimsyn.stages.{name}")
        rows.append((name, module.run(run).title))
    return Table(f"{run.name}: finished up to {last}", ("stage", "result"), tuple(rows))
