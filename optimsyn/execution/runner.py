"""Runs a recipe: executes its stage notebooks in order, each in its own kernel, and skips finished ones."""

from __future__ import annotations

import json
import shlex
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from optimsyn.base.counting import plural
from optimsyn.base.errors import StageError
from optimsyn.base.secrets.redaction import redact
from optimsyn.execution.stage_notebooks import stage_notebook
from optimsyn.execution.status_line import Screen
from optimsyn.llm.local.loading import on_gpu
from optimsyn.recipe.own_parts import refuse_parts_of_this_process
from optimsyn.runs.durations import clock, described, earlier_seconds, executed_notebook, since_begun
from optimsyn.runs.folder import INTERRUPTED, Run
from optimsyn.runs.manifest import Failure, process_lives
from optimsyn.runs.outcomes import run_notes
from optimsyn.runs.stage_functions import own_stage, refuse_edited, refuse_unreachable
from optimsyn.runs.taking_over import take_over_beside

# The lock that a kernel holds, and what that means if nobody has started it just now.
KERNEL_LOCK = (".kernel.lock", "a kernel of an earlier start still works on it")
# A kernel whose runner was killed ends within a second or two; longer on a machine that swaps.
_ORPHAN_SECONDS = 60


def run_stages(run: Run, console: Console | None = None, *, until: str | None = None) -> None:
    """Executes the unfinished stages of a run in order, and writes its report, even after a failure.

    Args:
        run: The run.
        console: Where to show progress: one line a stage, updated in place in a terminal. None: the calling notebook's
            cell, or standard output.
        until: The last stage to execute; None: the run's last stage.

    Raises:
        StageError: A stage failed, another process has the run, or a finished custom stage was edited; all results so
            far are kept.
        RecipeError: The function of a custom stage cannot be found, or the recipe names a part from a notebook cell,
            which the stages' processes cannot load.

    Example:
        >>> run_stages(Run.start("quickstart", size="tiny"), until="warm_up")                # doctest: +SKIP
    """
    refuse_parts_of_this_process(run.recipe)
    last = run.manifest.stage(until if until is not None else run.stages[-1]).name
    screen = Screen(console)
    # Not at the top, because the report takes time to load.
    from optimsyn.report.page.report import write_report

    with run.lock():
        refuse_edited(run)
        try:
            _run_open_stages(run, screen, last)
        except BaseException as error:
            try:
                write_report(run)
            except Exception as problem:  # noqa: BLE001 (added to the run's error, which must not be hidden)
                text = redact(f"{type(problem).__name__}: {problem}", run.secret_names)
                error.add_note(f"  The report could not be written either: {text}")
                screen.say("[yellow]The report could not be written.[/]")
            raise
        write_report(run)


def _run_open_stages(run: Run, screen: Screen, until: str) -> None:
    stages = run.stages
    selected = stages[: stages.index(until) + 1]
    width = max(16, *map(len, stages))
    mark_killed(run, screen)
    if run.recipe.documents.readers:
        from optimsyn.runs.reader_changes import reopen_if_readers_changed

        reopen_if_readers_changed(run)
    if (source := take_over_beside(run)) is not None:
        screen.say(f"[dim]The pairs are those of {source.name}; its stages before fine_tune are taken over.[/]")
    open_stages = [stage for stage in selected if not run.done(stage)]
    for stage in open_stages:
        if (own := own_stage(run.recipe, stage)) is not None:
            refuse_unreachable(run.recipe, own)
    earlier = earlier_seconds(run)
    durations = [earlier[stage] for stage in open_stages if stage in earlier]
    if open_stages and len(durations) == len(open_stages):
        screen.say(f"Earlier runs of {run.recipe.name} took {clock(sum(durations))} for this.")
    shown_notes = set(run_notes(run.services, run.outcomes()))
    with embedded_server(run) if open_stages else nullcontext():
        for number, stage in enumerate(selected, 1):
            label = f"{number}/{len(stages)} {stage:<{width}}"
            if stage in open_stages:
                try:
                    _run_stage(run, stage, label, screen, earlier)
                finally:
                    tell_notes(run, screen, shown_notes)
                _update_forecast(run, screen)
            else:
                screen.say(f"[dim]✓ {label} {_duration(run, stage):>7}  finished earlier[/]")


def tell_notes(run: Run, screen: Screen, shown_notes: set[str]) -> None:
    """Shows once what a stage has learned about services and cached replies; its own log is in its notebook."""
    for note in run_notes(run.services, run.outcomes()):
        if note not in shown_notes:
            shown_notes.add(note)
            screen.say(f"  [yellow]note:[/] {escape(redact(note, run.secret_names))}")


def _update_forecast(run: Run, screen: Screen) -> None:
    """Updates the forecast after a stage, and shows it if the rest may cost money."""
    from optimsyn.machine.forecast.requests import foresee

    forecast = foresee(run)
    if not forecast.paid or not any(not run.done(later.stage) for later in forecast.stages):
        return
    cost = run.manifest.cost
    screen.say(
        f"  sent so far {plural(cost.replies, 'request')}, {cost.cost_usd:.2f} US dollars; in total {forecast.sentence}"
    )


def mark_killed(run: Run, screen: Screen | None = None) -> None:
    """Records that the process of a stage was killed, which it could not do itself."""
    for record in run.manifest.stages:
        if record.status == "running" and not process_lives(record.pid):
            cell, source = stopped_cell(executed_notebook(run, record.name))
            failure = Failure(kind="Killed", cell=cell, source=source, reason="killed while it was running")
            run.mark_stopped(record.name, "interrupted", failure)
            if screen is not None:
                screen.say(f"[yellow]{record.name} was killed while it was running; it continues now[/]")


def stopped_cell(notebook: Path) -> tuple[int | None, str]:
    """Number (among the code cells) and source of the cell at which an executed notebook failed or stopped."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        # The kill may have damaged the file.
        cells = []
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        if cell["metadata"].get("papermill", {}).get("status") in ("running", "failed"):
            return number, "".join(cell["source"])
    return None, ""


def _run_stage(run: Run, stage: str, label: str, screen: Screen, earlier: dict[str, float]) -> None:
    try:
        refuse_locked(run, *KERNEL_LOCK, seconds=0.2)
    except StageError:
        screen.say("Waiting for the kernel of an earlier start to end …")
        refuse_locked(run, *KERNEL_LOCK, seconds=_ORPHAN_SECONDS)

    def status() -> str:
        return described(run, stage, since_begun(run.manifest.stage(stage)), earlier)

    with screen.line(label, status) as end:
        try:
            _execute(run, stage)
        except StageError:
            end(f"[red]✗[/] {label} {_duration(run, stage):>7}")
            raise
        end(f"[green]✓[/] {label} {_duration(run, stage):>7}")


def _duration(run: Run, stage: str) -> str:
    """Time of a stage's last attempt from the manifest, as in the report."""
    return clock(run.manifest.stage(stage).seconds or 0.0)


def _execute(run: Run, stage: str) -> None:
    from optimsyn.execution.engine import NotebookError, execute

    minutes = run.recipe.limits.stage_minutes
    output = executed_notebook(run, stage)
    notebook = stage_notebook(run, stage)
    try:
        execute(
            notebook,
            output,
            {"run_folder": str(run.folder)},
            seconds=None if minutes is None else minutes * 60,
            lock=run.folder / KERNEL_LOCK[0],
            secret_names=run.secret_names,
        )
    except NotebookError as error:
        reason = error.reason
        if error.kind == "TimeLimit":
            reason = f"it took longer than limits.stage_minutes ({minutes:g}); raise the limit to let it continue"
        failure = Failure(kind=error.kind, cell=error.cell, source=error.source, reason=reason)
        # On a full disk the manifest cannot be updated; the error is still raised.
        with suppress(OSError):
            run.mark_stopped(stage, "failed", failure, seconds=_until_now(run, stage))
        kind = "" if error.kind == "StageError" else f"{error.kind}: "
        opening = f"optimsyn open {shlex.quote(str(run.folder))}"
        raise StageError(
            f"stage {stage} failed: {kind}{reason.removeprefix(f'stage {stage}: ')}\n"
            f"  Its notebook, up to the failure{'' if error.cell is None else f' in cell [{error.cell}]'}: {output}\n"
            f"  Everything until then is kept; the same command continues, `{opening}` opens it."
        ) from error
    except KeyboardInterrupt:
        cell, source = stopped_cell(output)
        failure = Failure(kind="Interrupted", cell=cell, source=source, reason=INTERRUPTED)
        run.mark_stopped(stage, "interrupted", failure, seconds=_until_now(run, stage))
        raise
    record = run.manifest.stage(stage)
    if record.status != "finished":
        raise StageError(
            f"stage {stage}: its notebook ran to the end, but the stage is {record.status}, not finished; "
            f"look at {output}"
        )


def _until_now(run: Run, stage: str) -> float | None:
    """Seconds of a stage that was stopped just now; None if it recorded its time itself, or never began."""
    record = run.manifest.stage(stage)
    return since_begun(record) if record.status == "running" else None


def refuse_locked(run: Run, file: str, why: str, *, seconds: float = 0) -> None:
    """Refuses a run of which somebody holds a lock for longer than this.

    Raises:
        StageError: Names the process.
    """
    try:
        with FileLock(str(run.folder / file)).acquire(timeout=seconds):
            return
    except Timeout:
        pid = next((record.pid for record in run.manifest.stages if record.status == "running"), None)
        process = "" if pid is None else f" (process {pid})"
        raise StageError(f"{run.name}: {why}{process}; wait for it or stop it") from None


def embedded_server(run: Run) -> AbstractContextManager[Any]:
    """The server that all stages share when a model that writes text is `embedded` and there is no GPU for it.

    In a batch, all runs may already share one.
    """
    specs = run.recipe.models.writers.values()
    if not any(spec.provider == "embedded" and not on_gpu(spec) for spec in specs):
        return nullcontext()
    from optimsyn.llm.embedded.server import EmbeddedServer, published_server

    return EmbeddedServer() if published_server() is None else nullcontext()
