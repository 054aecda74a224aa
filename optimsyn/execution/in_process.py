"""Runs the stages of a run in this process, for notebooks that start from a partly finished run."""

from __future__ import annotations

from optimsyn.base.terminal.table import Table
from optimsyn.runs.folder import Run


def run_through(run: Run, stage: str) -> Table:
    """Runs every stage up to and with `stage`; finished ones are skipped.

    Custom stages run here too, so the calling notebook may define their functions.

    Args:
        run: The run.
        stage: The last stage.

    Raises:
        StageError: There is no such stage, or one of them cannot be finished.

    Example:
        >>> from optimsyn.runs import Run
        >>> run_through(Run.start("quickstart", size="tiny"), "synthesize")          # doctest: +SKIP
    """
    from optimsyn.stages.own import run_stage

    last, names = run.manifest.stage(stage).name, run.stages
    rows = [(name, run_stage(run, name).title) for name in names[: names.index(last) + 1]]
    return Table(f"{run.name}: finished up to {last}", ("stage", "result"), tuple(rows))
