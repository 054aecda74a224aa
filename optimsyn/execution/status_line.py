"""Progress of a run or of a slow command: one line a step, updated in place, in a terminal or a notebook's cell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, repeat

from rich.console import Console
from rich.live import Live
from rich.markup import escape, render
from rich.spinner import Spinner

from optimsyn.base.terminal.live_line import LiveLine, NotebookText, in_notebook

# Between the lines of a step in a file.
_FIRST_SECONDS = 60.0
_SECONDS = 300.0


class Screen:
    """Shows lines in a console, or as outputs of the running cell.

    Args:
        console: Where to write; None: the notebook's cell, or standard output outside a notebook.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._in_cell = console is None and in_notebook()
        self._console = console if console is not None else Console()

    def say(self, markup: str) -> None:
        """Shows a permanent line, in rich's markup."""
        if self._in_cell:
            NotebookText().show(render(markup).plain)
        else:
            self._console.print(markup, highlight=False)

    @contextmanager
    def line(self, label: str, status: Callable[[], str]) -> Iterator[Callable[[str], None]]:
        """A line that is redrawn while the block runs: a label and its status at the moment.

        Yields:
            A function that takes the final line, in markup, which stays when the block has ended.
        """
        last: list[str] = []
        if self._in_cell:
            with LiveLine(lambda: f"{label} {status()}") as line:
                try:
                    yield last.append
                finally:
                    line.finish(render(last[-1]).plain if last else f"{label} stopped")
            return
        try:
            with self._drawn(label, status):
                yield last.append
        finally:
            if last:
                self.say(last[-1])

    def _drawn(self, label: str, status: Callable[[], str]) -> AbstractContextManager[object]:
        if not self._console.is_terminal:
            self.say(f"… {escape(label)}")
            return self._told(label, status)
        spinner = Spinner("dots")

        def draw() -> Spinner:
            spinner.update(text=f"{escape(label)} {escape(status())}")
            return spinner

        return Live(get_renderable=draw, console=self._console, refresh_per_second=4, transient=True)

    @contextmanager
    def _told(self, label: str, status: Callable[[], str]) -> Iterator[None]:
        """A further line now and then, in a file that nobody can redraw."""
        ended = threading.Event()
        teller = threading.Thread(
            target=self.tell,
            args=(label, status, chain((_FIRST_SECONDS,), repeat(_SECONDS)), ended),
            name="progress",
            daemon=True,
        )
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()

    def tell(self, label: str, status: Callable[[], str], pauses: Iterable[float], ended: threading.Event) -> None:
        """Shows the status after each of these pauses, in seconds, until a step has ended."""
        for pause in pauses:
            if ended.wait(pause):
                return
            self.say(f"… {escape(label)} {escape(status())}")


class Steps:
    """Shows the steps of a command, and how long each took.

    Args:
        screen: Where to show them; None: standard error, which leaves a command's output alone.
    """

    def __init__(self, screen: Screen | None = None) -> None:
        self._screen = screen if screen is not None else Screen(Console(stderr=True))

    def say(self, text: str) -> None:
        """Shows a permanent line."""
        self._screen.say(escape(text))

    @contextmanager
    def step(self, label: str, progress: Callable[[], str] = lambda: "") -> Iterator[None]:
        """Shows a step and its progress while the block runs, and its duration."""
        from optimsyn.runs.durations import clock

        start = time.monotonic()

        def elapsed() -> str:
            return clock(time.monotonic() - start)

        with self._screen.line(label, lambda: " ".join(filter(None, (progress(), elapsed())))) as end:
            try:
                yield
            except BaseException:
                end(f"[red]✗[/] {escape(label)} {elapsed()}")
                raise
            end(f"[green]✓[/] {escape(label)} {elapsed()}")
