"""Where the runner tells how it goes: one line a stage, updated in place, in a terminal or in a notebook's cell.

Commands that take minutes before they show anything tell their steps in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape, render
from rich.spinner import Spinner

from optimsyn.base.live_line import LiveLine, NotebookText, in_notebook

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class Screen:
    """Shows lines in a console, or as outputs of the running cell.

    Args:
        console: Where to write; None is the cell of a notebook, and standard output outside of one.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._in_cell = console is None and in_notebook()
        self._console = console if console is not None else Console()

    def say(self, markup: str) -> None:
        """Shows one line that stays.

        Args:
            markup: The line, in rich's markup.
        """
        if self._in_cell:
            NotebookText().show(render(markup).plain)
        else:
            self._console.print(markup, highlight=False)

    @contextmanager
    def line(self, label: str, status: Callable[[], str]) -> Iterator[Callable[[str], None]]:
        """A line that is drawn again and again while the block runs.

        Args:
            label: Its beginning.
            status: The rest of it, asked for whenever it is drawn.

        Yields:
            A function that takes the line, in markup, which is to stay when the block has ended.
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
            return nullcontext()
        spinner = Spinner("dots")

        def draw() -> Spinner:
            spinner.update(text=f"{escape(label)} {escape(status())}")
            return spinner

        return Live(get_renderable=draw, console=self._console, refresh_per_second=4, transient=True)


class Steps:
    """Tells what a command does: each step as it begins, and how long it took.

    Args:
        screen: Where to tell it; None is standard error, which leaves a command's output alone.
    """

    def __init__(self, screen: Screen | None = None) -> None:
        self._screen = screen if screen is not None else Screen(Console(stderr=True))

    def say(self, text: str) -> None:
        """Tells one line that stays."""
        self._screen.say(escape(text))

    @contextmanager
    def step(self, label: str, told: Callable[[], str] = lambda: "") -> Iterator[None]:
        """Tells that a step begins, and when it has ended.

        Args:
            label: What it does.
            told: How far it is, asked for whenever its line is drawn.
        """
        from optimsyn.runs.durations import clock

        begun = time.monotonic()

        def taken() -> str:
            return clock(time.monotonic() - begun)

        with self._screen.line(label, lambda: " ".join(filter(None, (told(), taken())))) as end:
            try:
                yield
            except BaseException:
                end(f"[red]✗[/] {escape(label)} {taken()}")
                raise
            end(f"[green]✓[/] {escape(label)} {taken()}")
