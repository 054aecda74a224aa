"""Runs many recipes: each in processes of its own, so many at a time, and tells the truth about every one of them.

`run_batch` is what `optimsyn batch` calls. Everything that it knows about a run it reads from the run's own folder, so
a batch that was stopped, also with kill -9, goes on with the same call: finished runs are not started again, and the
others continue where they were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from optimsyn.base.errors import OptimsynError, RecipeError, StageError
from optimsyn.base.secrets.redaction import KEY_CURE, find_secret, redact
from optimsyn.batch.engines import Engine, ProcessEngine
from optimsyn.batch.memory import Room
from optimsyn.batch.plan import Job, plan
from optimsyn.batch.progress import bought_by
from optimsyn.batch.state import BatchState, Options
from optimsyn.batch.supervisor import BATCH_JSON, Supervisor, account
from optimsyn.batch.table import View, summary
from optimsyn.llm.shared_budget import Caps, Purse
from optimsyn.machine.gpus import gpus
from optimsyn.machine.memory import main_memory
from optimsyn.recipe.changes import word_for
from optimsyn.runs.manifest import installed_versions, now

BATCH_HTML = "batch.html"
FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def run_batch(
    recipes: Sequence[str],
    root: Path | str = "runs",
    *,
    jobs: int = 1,
    size: str = "full",
    changes: Mapping[str, Any] | None = None,
    until: str | None = None,
    caps: Caps | None = None,
    gpu_memory_gb: float | None = None,
    engine: Engine | None = None,
    console: Console | None = None,
) -> BatchState:
    """Runs recipes to their end, so many at a time; one failure never stops the others.

    Args:
        recipes: Recipe files, or names of recipes that come with optimsyn.
        root: Folder of the run folders; `batch.json`, `batch.html` and the logs lie there as well.
        jobs: How many run at once.
        size: `full` or `tiny`, for all of them.
        changes: Recipe fields to change in all of them.
        until: The last stage to run; None is the last one of each run.
        caps: What all runs together may buy, with what they bought in earlier starts.
        gpu_memory_gb: GPU memory that running runs may use together, in GB; None: what the machine's GPUs have.
        engine: Where the runs work; None: in processes of this machine.
        console: Where to show progress; None: the terminal.

    Returns:
        What `batch.json` holds at the end.

    Raises:
        RecipeError: `changes` hold a key, which would be written into `batch.json`.
        StageError: None of the recipes has the stage `until`, or another batch works in this root.
    """
    secret = find_secret(dict(changes or {}), word_for(changes))
    if secret is not None:
        secret = secret.replace("--set.", "--set ", 1)
        raise RecipeError(f"{secret}, and would be written into {BATCH_JSON}; {KEY_CURE}")
    place = Path(root).resolve()
    console = console or Console()
    engine = engine or ProcessEngine(jobs)
    caps = caps or Caps()
    options = Options(
        jobs=jobs,
        engine=engine.name,
        size=size,
        changes=[f"{name}={value}" for name, value in (changes or {}).items()],
        until=until,
        cost_usd=caps.cost_usd,
        requests=caps.requests,
        tokens=caps.tokens,
        gpu_memory_gb=gpu_memory_gb,
    )
    place.mkdir(parents=True, exist_ok=True)
    with _only_here(place):
        with console.status("Checking the recipes …") if console.is_terminal else nullcontext() as status:
            told = status.update if status is not None else lambda text: None
            money = caps.cost_usd is not None
            planned = plan(
                recipes, place, size=size, changes=changes, until=until, here=engine.here, money=money, told=told
            )
        state = BatchState(
            pid=os.getpid(),
            begun=now(),
            options=options,
            versions=installed_versions(),
            runs=[j.state for j in planned],
        )
        gpu_bytes = None if gpu_memory_gb is None else round(gpu_memory_gb * 1e9)
        room = Room(gpus(), gpu_bytes, main_memory()[0]) if engine.here else Room(gpu_bytes=gpu_bytes)
        view = View(console, planned, state)
        for job in planned:
            for recipe in job.state.also:
                view.say(f"{recipe} and {job.state.recipe} mean the same run, which is run once.")
            for warning in job.warnings:
                view.say(redact(f"note: {job.name}: {warning}"))
        purse = _purse(place, caps, planned)
        Supervisor(planned, state, place, engine=engine, room=room, most=jobs, view=view, purse=purse).run()
        _compare(planned, state, place, view)
        summary(console, planned, state, place / BATCH_JSON)
    return state


def make_engine(name: str, jobs: int, ray_address: str | None = None) -> Engine:
    """The engine of this name: `processes` or `ray`.

    Raises:
        OptimsynError: Ray is wanted, but it is not installed or its cluster cannot be used.
    """
    if name != "ray":
        return ProcessEngine(jobs)
    from optimsyn.batch.ray_engine import RayEngine

    return RayEngine(jobs, ray_address)


def exit_code(state: BatchState) -> int:
    """0: every run has finished; 1: some have not; 2: every recipe was refused; 130: interrupted."""
    if state.state == "interrupted":
        return INTERRUPTED
    if all(run.state == "refused" for run in state.runs):
        return REFUSED
    return 0 if state.state == "finished" else FAILED


def _compare(jobs: Sequence[Job], state: BatchState, root: Path, view: View) -> None:
    """One page that shows all runs side by side, also those that did not finish."""
    from optimsyn.report.comparison import write_comparison

    try:
        shown = [job.run for job in jobs if job.run is not None and job.run.manifest.stages[0].attempts]
        # One run alone has its report.
        if len(shown) > 1:
            state.comparison = str(write_comparison(shown, root / BATCH_HTML))
            state.write(root / BATCH_JSON)
    except OptimsynError as error:
        view.say(f"note: {BATCH_HTML} was not written: {redact(str(error))}")


@contextmanager
def _only_here(root: Path) -> Iterator[None]:
    """Keeps two batches from writing one `batch.json`; the lock goes with the process, also after kill -9."""
    lock = FileLock(str(root / ".batch.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StageError(f"{root}: another batch works there; wait for it, or give this one another --root") from None
    try:
        yield
    finally:
        lock.release()


def _purse(root: Path, caps: Caps, jobs: Sequence[Job]) -> Purse | None:
    """The shared purse, filled with what the runs of this batch bought in earlier starts; None without caps."""
    if not caps:
        return None
    purse = Purse.create(root / ".batch-purse.sqlite", caps)
    for job in jobs:
        if job.run is not None:
            purse.count(account(job.run), bought_by(job.run))
    return purse
