"""Runs a recipe: its stage notebooks one after the other, each in a kernel of its own, finished ones skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner

from optimsyn.errors import StageError
from optimsyn.runs.estimate import clock, earlier_seconds, executed_notebook, seconds_left
from optimsyn.runs.folder import INTERRUPTED, Run
from optimsyn.runs.manifest import STAGES, Failure, process_lives
from optimsyn.runs.resources import notebook_name, notebook_path

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

# A kernel whose runner was killed is gone within a second or two; a machine that swaps needs longer.
_ORPHAN_SECONDS = 60

# Progress bars of libraries are drawn for terminals and turn into pages of text in a saved notebook.
_KERNEL_VARIABLES = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def run_stages(run: Run, console: Console, *, until: str = "evaluate") -> None:
    """Executes the stages of a run that have not finished, in order.

    Args:
        run: The run.
        console: Where the progress goes: one line a stage, updated in place in a terminal.
        until: The last stage to execute.

    Raises:
        StageError: A stage failed, or another process has the run; what was done so far is kept.
    """
    notebook_name(until)
    wanted = STAGES[: [*STAGES].index(run.manifest.stage(until).name) + 1]
    with run.lock():
        for record in run.manifest.stages:
            if record.status == "running" and not process_lives(record.pid):
                run.mark_stopped(
                    record.name, "interrupted", Failure(kind="Killed", reason="killed while it was running")
                )
                console.print(f"[yellow]{record.name} was killed while it was running; it continues now[/]")
        open_stages = [stage for stage in wanted if not run.done(stage)]
        earlier = earlier_seconds(run)
        known = [earlier[stage] for stage in open_stages if stage in earlier]
        if open_stages and len(known) == len(open_stages):
            console.print(f"Earlier runs of {run.recipe.name} took {clock(sum(known))} for this.", highlight=False)
        with embedded_server(run) if open_stages else nullcontext():
            for number, stage in enumerate(STAGES, 1):
                if stage not in wanted:
                    break
                label = f"{number}/{len(STAGES)} {stage:<16}"
                if stage not in open_stages:
                    seconds = run.manifest.stage(stage).seconds or 0.0
                    console.print(f"[dim]✓ {label} {clock(seconds):>7}  finished earlier[/]", highlight=False)
                    continue
                _run_stage(run, stage, label, console, earlier)


def _run_stage(run: Run, stage: str, label: str, console: Console, earlier: dict[str, float]) -> None:
    from optimsyn.runs.engine import NotebookError, execute

    lock = run.folder / ".kernel.lock"
    _wait_for_orphan(run, lock, console)
    minutes = run.recipe.limits.stage_minutes
    output = executed_notebook(run, notebook_name(stage))
    begun = time.monotonic()
    try:
        with _line(console, label, lambda: _status(run, stage, begun, earlier)):
            execute(
                notebook_path(stage),
                output,
                {"run_folder": str(run.folder)},
                seconds=None if minutes is None else minutes * 60,
                lock=lock,
                secret_names=run.secret_names,
                environment=_KERNEL_VARIABLES,
            )
    except NotebookError as error:
        reason = error.reason
        if error.kind == "TimeLimit":
            reason = f"it took longer than limits.stage_minutes ({minutes:g}); raise the limit to let it continue"
        failure = Failure(kind=error.kind, cell=error.cell, source=error.source, reason=reason)
        run.mark_stopped(stage, "failed", failure, seconds=time.monotonic() - begun)
        console.print(f"[red]✗[/] {label} {clock(time.monotonic() - begun):>7}", highlight=False)
        raise StageError(
            f"stage {stage} failed: {error.kind}: {reason}\n"
            f"  Its notebook, up to the failure{'' if error.cell is None else f' in cell [{error.cell}]'}: {output}\n"
            "  Everything until then is kept; the same command continues."
        ) from error
    except KeyboardInterrupt:
        run.mark_stopped(stage, "interrupted", Failure(kind="Interrupted", reason=INTERRUPTED))
        raise
    record = run.manifest.stage(stage)
    if record.status != "finished":
        raise StageError(
            f"stage {stage}: its notebook ran to the end, but the stage is {record.status}, not finished; "
            f"look at {output}"
        )
    console.print(f"[green]✓[/] {label} {clock(time.monotonic() - begun):>7}", highlight=False)


def _wait_for_orphan(run: Run, path: Any, console: Console) -> None:
    """Waits until no kernel of this run lives; one whose runner was killed may need a moment to notice."""
    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        console.print("Waiting for the kernel of an earlier start to end …")
        try:
            lock.acquire(timeout=_ORPHAN_SECONDS)
        except Timeout:
            pid = next((record.pid for record in run.manifest.stages if record.status == "running"), None)
            named = "" if pid is None else f" (process {pid})"
            raise StageError(f"{run.name}: a kernel of an earlier start still works on it{named}; stop it") from None
    lock.release()


def embedded_server(run: Run) -> AbstractContextManager[Any]:
    """The server that all stages share when a role that writes text is `embedded`, else nothing."""
    models = run.recipe.models
    specs = (models.generator, models.rubric, models.reflection)
    if not any(spec is not None and spec.provider == "embedded" for spec in specs):
        return nullcontext()
    from optimsyn.models.embedded import EmbeddedServer

    return EmbeddedServer()


def _status(run: Run, stage: str, begun: float, earlier: dict[str, float]) -> str:
    elapsed = time.monotonic() - begun
    text = f"{clock(elapsed):>7}"
    told = run.progress()
    if told is not None and told["stage"] == stage:
        text += f"  {told['done']} of {told['total']} {told['what']}"
    left = seconds_left(run, stage, elapsed, earlier)
    return text if left is None else f"{text}, about {clock(left)} to go"


@contextmanager
def _line(console: Console, label: str, status: Callable[[], str]) -> Iterator[None]:
    """One line that is updated in place while the block runs; plain text where there is no terminal."""
    if not console.is_terminal:
        console.print(f"… {label}", highlight=False)
        yield
        return
    spinner = Spinner("dots")

    def draw() -> Spinner:
        spinner.update(text=f"{escape(label)} {escape(status())}")
        return spinner

    with Live(get_renderable=draw, console=console, refresh_per_second=4, transient=True):
        yield
