"""Runs many recipes, several at a time, each in its own process, and records how each of them ended.

`optimsyn batch` calls `run_batch`. It reads the state of each run from the run's folder, so a batch that was stopped,
even with kill -9, continues with the same call: finished runs are skipped, and the others continue where they stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from optimsyn.base.errors import OptimsynError, RecipeError, StageError
from optimsyn.base.secrets.redaction import KEY_CURE, find_secret, redact
from optimsyn.batch.engines import Engine, ProcessEngine
from optimsyn.batch.memory import Room
from optimsyn.batch.plan import BatchLimits, Job, RunOptions, plan
from optimsyn.batch.progress import bought_by
from optimsyn.batch.state import BatchState, Options
from optimsyn.batch.supervisor import BATCH_JSON, Supervisor, account
from optimsyn.batch.table import View, summary
from optimsyn.llm.shared_budget import Purse
from optimsyn.machine.gpus import gpus
from optimsyn.machine.memory import main_memory
from optimsyn.recipe.changes import word_for
from optimsyn.runs.manifest import installed_versions, now

BATCH_HTML = "batch.html"
FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def run_batch(
    recipes: Sequence[str],
    root: Path | str = "runs",
    runs: RunOptions = RunOptions(),  # noqa: B008 - frozen
    limits: BatchLimits = BatchLimits(),  # noqa: B008 - frozen
    *,
    engine: Engine | None = None,
    console: Console | None = None,
) -> BatchState:
    """Runs recipes, several at a time; one failure never stops the others.

    Args:
        recipes: Recipe files, or names of recipes that come with optimsyn.
        root: Folder of the run folders; `batch.json`, `batch.html` and the logs are written there too.
        runs: Size, changes and last stage of all runs.
        limits: How many run at once, and what they may use together.
        engine: Where the runs work; None: processes on this machine.
        console: Where to show progress; None: the terminal.

    Returns:
        The content of `batch.json` at the end.

    Raises:
        RecipeError: The changes hold a key, which would be written into `batch.json`.
        StageError: None of the recipes has the last stage, or another batch works in this root.
    """
    secret = find_secret(dict(runs.changes), word_for(runs.changes))
    if secret is not None:
        secret = secret.replace("--set.", "--set ", 1)
        raise RecipeError(f"{secret}, and would be written into {BATCH_JSON}; {KEY_CURE}")
    place = Path(root).resolve()
    console = console or Console()
    engine = engine or ProcessEngine(limits.jobs)
    options = Options(
        jobs=limits.jobs,
        engine=engine.name,
        size=runs.size,
        changes=[f"{name}={value}" for name, value in runs.changes.items()],
        until=runs.until,
        gpu_memory_gb=limits.gpu_memory_gb,
        **asdict(limits.caps),
    )
    place.mkdir(parents=True, exist_ok=True)
    try:
        # Two batches must not write one `batch.json`; the lock ends with the process, even after kill -9.
        lock = FileLock(str(place / ".batch.lock")).acquire(timeout=0)
    except Timeout:
        raise StageError(f"{place}: another batch works there; wait for it, or give this one another --root") from None
    with lock:
        with console.status("Checking the recipes …") if console.is_terminal else nullcontext() as status:
            planned = plan(
                recipes,
                place,
                runs,
                here=engine.here,
                money=limits.caps.cost_usd is not None,
                report=None if status is None else status.update,
            )
        state = BatchState(
            pid=os.getpid(),
            begun=now(),
            options=options,
            versions=installed_versions(),
            runs=[j.state for j in planned],
        )
        view = View(console, planned, state)
        for job in planned:
            for recipe in job.state.also:
                view.say(f"{recipe} and {job.state.recipe} are the same run, which is run once.")
            for warning in job.warnings:
                view.say(redact(f"note: {job.name}: {warning}"))
        gpu_bytes = None if limits.gpu_memory_gb is None else round(limits.gpu_memory_gb * 1e9)
        room = Room(gpus(), gpu_bytes, main_memory()[0]) if engine.here else Room(gpu_bytes=gpu_bytes)
        purse = Purse.create(place / ".batch-purse.sqlite", limits.caps) if limits.caps else None
        if purse is not None:
            # What the runs of this batch bought in earlier starts.
            for run in (job.run for job in planned if job.run is not None):
                purse.count(account(run), bought_by(run))
        Supervisor(planned, state, place, engine, room, purse, view).run()
        _compare(planned, state, place, view)
        summary(console, planned, state, place / BATCH_JSON)
    return state


def make_engine(name: str, jobs: int, ray_address: str | None = None) -> Engine:
    """The engine of this name: `processes` or `ray`.

    Raises:
        OptimsynError: Ray is not installed, or its cluster cannot be used.
    """
    from optimsyn.batch.ray_engine import RayEngine

    return RayEngine(jobs, ray_address) if name == "ray" else ProcessEngine(jobs)


def exit_code(state: BatchState) -> int:
    """0: every run has finished; 1: some have not; 2: every recipe was refused; 130: interrupted."""
    if state.state == "interrupted":
        return INTERRUPTED
    if all(run.state == "refused" for run in state.runs):
        return REFUSED
    return 0 if state.state == "finished" else FAILED


def _compare(jobs: Sequence[Job], state: BatchState, root: Path, view: View) -> None:
    """Writes a page with all runs side by side, finished or not."""
    from optimsyn.report.comparison import write_comparison

    try:
        started = [job.run for job in jobs if job.run is not None and job.run.manifest.stages[0].attempts]
        # A single run has its report.
        if len(started) > 1:
            state.comparison = str(write_comparison(started, root / BATCH_HTML))
            state.write(root / BATCH_JSON)
    except OptimsynError as error:
        view.say(f"note: {BATCH_HTML} was not written: {redact(str(error))}")
