"""Shows a batch: a live table in a terminal, a line for each change elsewhere, and a summary at the end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from optimsyn.batch.plan import Job
from optimsyn.batch.progress import Progress
from optimsyn.batch.state import BatchState, State
from optimsyn.llm.reply import Usage
from optimsyn.runs.durations import clock

_STYLES: dict[State, str] = {
    "waiting": "dim",
    "running": "cyan",
    "finished": "green",
    "failed": "red",
    "interrupted": "yellow",
    "refused": "red",
}
_LONGEST_REASON = 160
# Lines of the terminal that the table's rows leave free.
_OTHER_LINES = 5


class View:
    """Shows a batch while it runs.

    Args:
        console: Where to show it: a table in a terminal, lines elsewhere.
        jobs: The runs.
        state: The content of `batch.json`.
    """

    def __init__(self, console: Console, jobs: list[Job], state: BatchState) -> None:
        self._console = console
        self._jobs = jobs
        self._state = state
        self._progress: Mapping[str, Progress] = {}
        self._printed: dict[str, str] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the table if there is one."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, progress: Mapping[str, Progress]) -> None:
        """Redraws the table, or prints what has changed since the last call.

        Args:
            progress: Progress of the running runs, by run folder.
        """
        self._progress = progress
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        for job in self._jobs:
            line = self._line(job)
            if line and self._printed.get(job.name) != line:
                self._printed[job.name] = line
                self.say(f"{datetime.now().astimezone():%H:%M:%S}  {job.name:<24} {line}")

    def _line(self, job: Job) -> str:
        """The state of a run in words, without details that change every second."""
        state = job.state
        if state.state == "running":
            progress = self._progress.get(state.folder or "")
            return f"{progress.number}/{progress.of} {progress.stage}" if progress is not None else "started"
        if state.state == "waiting":
            return ""
        if state.earlier:
            return "finished earlier"
        if state.state == "finished":
            return f"finished in {clock(state.seconds)}"
        return f"{state.state}{_where(job)}: {_short(state.reason or '')}"

    def _table(self) -> Group:
        title = f"{_counts(self._state) or 'nothing to do'} · {clock(self._state.seconds)}"
        cost = self._state.totals.cost
        if cost.replies:
            title += f" · {spent(cost)}"
        if self._state.options.cost_usd is not None:
            title += f" of ${self._state.options.cost_usd:g}"
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name, right in (("run", 0), ("stage", 0), ("progress", 0), ("time", 1), ("to go", 1), ("bought", 1)):
            table.add_column(name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
        table.add_column("state", no_wrap=True)
        visible = self._visible()
        for job in visible:
            table.add_row(*self._row(job))
        hidden = len(self._jobs) - len(visible)
        footer = [Text(f"and {hidden} more", style="dim")] if hidden else []
        return Group(Text(title, style="bold", no_wrap=True, overflow="ellipsis"), table, *footer)

    def _visible(self) -> list[Job]:
        """The runs that fit into the terminal: running and failed ones before waiting and finished ones."""
        room = max(4, self._console.height - _OTHER_LINES)
        if len(self._jobs) <= room:
            return self._jobs
        order: tuple[State, ...] = ("running", "failed", "interrupted", "refused", "waiting", "finished")
        return sorted(self._jobs, key=lambda job: order.index(job.state.state))[:room]

    def _row(self, job: Job) -> list[str]:
        state = job.state
        progress = self._progress.get(state.folder or "") if state.state == "running" else None
        stage = f"{progress.number}/{progress.of} {progress.stage}" if progress is not None else (state.stage or "")
        return [
            escape(job.name),
            stage,
            progress.detail if progress is not None else "",
            clock(state.seconds) if state.seconds else "",
            "" if progress is None or progress.left is None else f"~{clock(progress.left)}",
            spent(state.cost) if state.cost.replies else "",
            f"[{_STYLES[state.state]}]{_word(job)}[/]",
        ]


def summary(console: Console, jobs: list[Job], state: BatchState, file: Path) -> None:
    """Prints how every run of a batch ended, the reports, and the path of `batch.json`.

    Args:
        console: Where to print.
        jobs: The runs.
        state: The content of `batch.json`.
        file: `batch.json`.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("run", "state", "time", "bought"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("time", "bought") else "left")
    for job in jobs:
        run = job.state
        style = _STYLES[run.state]
        table.add_row(
            escape(job.name),
            f"[{style}]{_word(job)}[/]",
            clock(run.seconds) if run.seconds else "",
            spent(run.cost) if run.cost.replies else "",
        )
    table.add_section()
    bought = spent(state.totals.cost) if state.totals.cost.replies else ""
    table.add_row("all", _counts(state), clock(state.seconds), bought)
    console.print()
    console.print(table)
    for job in jobs:
        run = job.state
        if run.reason is not None and run.state != "waiting":
            console.print()
            _plain(console, f"{job.name} {run.state}{_where(job)}")
            _plain(console, f"  {run.kind}: {run.reason}")
            if run.log is not None:
                _plain(console, f"  Log: {run.log}")
    reports = [(job.name, job.state.report) for job in jobs if job.state.report is not None]
    if reports:
        console.print()
        for name, report in reports:
            _plain(console, f"{name:<24} {report}")
    if state.comparison is not None:
        _plain(console, f"{'side by side':<24} {state.comparison}")
    _plain(console, str(file))


def spent(cost: Usage) -> str:
    """The cost, with a plus where some prices are unknown, or tokens where nothing had a price."""
    if cost.cost_usd > 0:
        more = "+" if cost.unpriced else ""
        return f"${cost.cost_usd:.2f}{more}" if cost.cost_usd >= 0.01 else f"${cost.cost_usd:.4f}{more}"
    tokens = cost.input_tokens + cost.output_tokens
    return f"{tokens} tokens" if tokens < 10_000 else f"{tokens / 1000:.0f}k tokens"


def _plain(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _word(job: Job) -> str:
    return "finished earlier" if job.state.earlier else job.state.state


def _where(job: Job) -> str:
    """Stage and cell of a failure, as far as known."""
    run = job.state
    text = "" if run.stage is None else f" in {run.stage}"
    if run.cell is not None:
        text += f", cell [{run.cell}]" + (f" `{run.source}`" if run.source else "")
    return text


def _short(reason: str) -> str:
    first = reason.strip().splitlines()[0] if reason.strip() else ""
    return first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON]} …"


def _counts(state: BatchState) -> str:
    totals = state.totals
    names = ("running", "waiting", "finished", "failed", "refused", "interrupted")
    counts = {name: getattr(totals, name) for name in names}
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number)
