"""How a run of a batch ended, from its manifest, exit code and log."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from optimsyn.base.errors import OptimsynError
from optimsyn.base.secrets.redaction import redact
from optimsyn.batch.plan import Job
from optimsyn.execution.runner import mark_killed
from optimsyn.execution.stage_notebooks import first_line
from optimsyn.runs.folder import INTERRUPTED, Run
from optimsyn.runs.manifest import StageRecord, process_lives

_REFUSED, _INTERRUPTED = 2, 130
_LONGEST_REASON = 2000
_LOG_LINES = 8
_KERNEL_S = 10.0
# How the command line reports an error at the end of its output: `StageError: …`.
_ERROR = re.compile(r"^(\w+(?:Error|Exception|Interrupt)): ", re.MULTILINE)


@dataclass(frozen=True)
class Before:
    """Manifest and log before a start, so that an old failure is not taken for a new one."""

    records: dict[str, StageRecord]
    log_size: int

    @classmethod
    def of(cls, run: Run, log: Path) -> Before:
        """The current state."""
        return cls({record.name: record for record in run.manifest.stages}, log.stat().st_size if log.is_file() else 0)


def conclude(job: Job, code: int, log: Path, before: Before, *, stopped: bool) -> None:
    """Records in the job's state how its run ended.

    Args:
        job: The run, whose process has ended.
        code: Its exit code; negative: the signal that killed it.
        log: Its output.
        before: The state before the start.
        stopped: The batch asked it to end.
    """
    run, state = job.opened, job.state
    state.stage = state.cell = state.kind = state.reason = None
    state.source = ""
    if job.finished():
        state.state = "finished"
        if code != 0:
            # Its results are complete; something after them failed (the report, say).
            state.kind, state.reason = _from_log(log, before, code)
    else:
        _conclude_unfinished(job, code, log, before, stopped)
    state.report = report_of(run)


def report_of(run: Run) -> str | None:
    """The run's report page, if it has one."""
    path = run.folder / "report.html"
    return str(path) if path.is_file() else None


def _conclude_unfinished(job: Job, code: int, log: Path, before: Before, stopped: bool) -> None:
    run, state = job.opened, job.state
    report_problem = _record_kill(run) if any(record.status == "running" for record in run.manifest.stages) else ""
    record = next(run.manifest.stage(stage) for stage in job.stages if not run.done(stage))
    state.stage = record.name
    failure = record.failure if record != before.records[record.name] else None
    if failure is not None:
        state.kind, state.reason = failure.kind, failure.reason[:_LONGEST_REASON]
        state.cell, state.source = failure.cell, first_line(failure.source)
        if failure.kind == "Killed":
            state.reason = f"the process of the run {_ended(code)} while this stage ran"
    else:
        state.kind, state.reason = _from_log(log, before, code)
    interrupted = stopped or code == _INTERRUPTED or (failure is not None and code >= 0)
    if interrupted and not (failure is not None and record.status == "failed"):
        state.state = "interrupted"
        if failure is None:
            state.kind, state.reason = "Interrupted", INTERRUPTED
    else:
        state.state = "refused" if code == _REFUSED and failure is None else "failed"
    if report_problem:
        state.reason = f"{state.reason}; {report_problem}"


def _record_kill(run: Run) -> str:
    """Records in manifest and report that the stage of a killed process has ended.

    Returns:
        Why the report could not be written, or "".
    """
    from optimsyn.report.page.report import write_report

    # The kernel dies with its runner, but may need a moment.
    deadline = time.monotonic() + _KERNEL_S
    while any(r.status == "running" and process_lives(r.pid) for r in run.manifest.stages):
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.1)
    mark_killed(run)
    try:
        write_report(run)
    except (OptimsynError, OSError) as error:
        return f"its report could not be written: {type(error).__name__}: {error}"
    return ""


def _ended(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def _from_log(log: Path, before: Before, code: int) -> tuple[str, str]:
    """Kind and reason from the last error that the run printed, else from its last lines."""
    kind, ended = "Killed" if code < 0 else "ExitCode", f"the process of the run {_ended(code)}"
    if not log.is_file():
        return kind, ended
    with log.open("rb") as file:
        file.seek(before.log_size)
        text = redact(file.read().decode("utf-8", "replace")).strip()
    errors = [*_ERROR.finditer(text)]
    if errors and code >= 0:
        return errors[-1].group(1), text[errors[-1].end() :].strip()[:_LONGEST_REASON]
    # The first line is the command.
    last = "\n".join(text.splitlines()[1:][-_LOG_LINES:])
    reason = ended + (f"; the end of its output:\n{last}" if last else "")
    return kind, reason[-_LONGEST_REASON:]
