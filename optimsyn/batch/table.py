"""Shows a batch: a live table in a terminal, a line for each change elsewhere, and a summary at the end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from optimsyn.base.counting import plural
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
    """Shows a batch while it runs: a table in a terminal, lines elsewhere."""

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

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the table if there is one."""
        _plain(self._console, text)

    def show(self, progress: Mapping[str, Progress]) -> None:
        """Redraws the table, or prints what has changed since the last call; progress is by run folder."""
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
            return self._stage(job) or "started"
        if state.state == "waiting":
            return ""
        if state.earlier:
            return "finished earlier"
        if state.state == "finished":
            return f"finished in {clock(state.seconds)}"
        reason = (state.reason or "").strip().partition("\n")[0]
        short = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} …"
        return f"{state.state}{_where(job)}: {short}"

    def _stage(self, job: Job) -> str:
        progress = self._progress.get(job.state.folder or "") if job.state.state == "running" else None
        return "" if progress is None else f"{progress.number}/{progress.of} {progress.stage}"

    def _table(self) -> Group:
        title = f"{_counts(self._state) or 'nothing to do'} · {clock(self._state.seconds)}"
        cost = self._state.totals.cost
        if cost.replies:
            title += f" · {spent(cost)}"
        if self._state.options.cost_usd is not None:
            title += f" of ${self._state.options.cost_usd:g}"
        table = _columns("run", "stage", "progress", "time", "to go", "bought", "state")
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
        name, word, seconds, bought = _ending(job)
        left = "" if progress is None or progress.left is None else f"~{clock(progress.left)}"
        detail = "" if progress is None else progress.detail
        return [name, self._stage(job) or state.stage or "", detail, seconds, left, bought, word]


def summary(console: Console, jobs: list[Job], state: BatchState, file: Path) -> None:
    """Prints how every run of a batch ended, the reports, and the path of `batch.json`."""
    table = _columns("run", "state", "time", "bought")
    for job in jobs:
        table.add_row(*_ending(job))
    table.add_section()
    bought = spent(state.totals.cost) if state.totals.cost.replies else ""
    table.add_row("all", _counts(state), clock(state.seconds), bought)
    console.print()
    console.print(table)
    for job in jobs:
        run = job.state
        if run.reason is not None and run.state != "waiting":
            _plain(console, f"\n{job.name} {run.state}{_where(job)}\n  {run.kind}: {run.reason}")
            if run.log is not None:
                _plain(console, f"  Log: {run.log}")
    reports = [f"{job.name:<24} {job.state.report}" for job in jobs if job.state.report is not None]
    if reports:
        _plain(console, "\n".join(["", *reports]))
    if state.comparison is not None:
        _plain(console, f"{'side by side':<24} {state.comparison}")
    _plain(console, str(file))


def spent(cost: Usage) -> str:
    """The cost, with a plus where some prices are unknown, or tokens where nothing had a price."""
    if cost.cost_usd > 0:
        more = "+" if cost.unpriced else ""
        return f"${cost.cost_usd:.2f}{more}" if cost.cost_usd >= 0.01 else f"${cost.cost_usd:.4f}{more}"
    tokens = cost.input_tokens + cost.output_tokens
    return plural(tokens, "token") if tokens < 10_000 else f"{tokens / 1000:.0f}k tokens"


def _plain(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _columns(*names: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in names:
        right = name in ("time", "to go", "bought")
        table.add_column(name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    return table


def _ending(job: Job) -> tuple[str, str, str, str]:
    """Name, state, time and cost of a run."""
    state = job.state
    word = "finished earlier" if state.earlier else state.state
    seconds, bought = clock(state.seconds) if state.seconds else "", spent(state.cost) if state.cost.replies else ""
    return escape(job.name), f"[{_STYLES[state.state]}]{word}[/]", seconds, bought


def _where(job: Job) -> str:
    """Stage and cell of a failure, as far as known."""
    run = job.state
    text = "" if run.stage is None else f" in {run.stage}"
    if run.cell is not None:
        text += f", cell [{run.cell}]" + (f" `{run.source}`" if run.source else "")
    return text


def _counts(state: BatchState) -> str:
    names = ("running", "waiting", "finished", "failed", "refused", "interrupted")
    counts = {name: getattr(state.totals, name) for name in names}
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number)
