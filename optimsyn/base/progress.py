"""Progress of something long: one line updated in place in a terminal or a notebook, a few lines in a log file.

No widgets: they are blank in a saved notebook. What stays in the cell is the last state, as text.
`optimsyn.base.live_line` draws lines that are not counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import TextIO, TypeVar

from optimsyn.base.live_line import NotebookText, in_notebook
from optimsyn.base.table import duration

__all__ = ["Progress", "in_notebook", "track"]

T = TypeVar("T")

_REDRAW_SECONDS = 0.5
_LOG_SECONDS = 20.0
# A rate from the first moments says nothing (models load, caches fill).
_ESTIMATE_AFTER = 2.0


class Progress:
    """Shows how far something is and how long it will take.

    Args:
        title: What is being done.
        total: How many steps there are; None when unknown.
        unit: What a step is, such as "pairs".
        stream: Where to write outside a notebook; None is standard error.
        clock: Time in seconds, for tests.

    Example:
        >>> with Progress("scoring", total=3, unit="pairs") as progress:  # doctest: +SKIP
        ...     for pair in pairs:
        ...         progress.advance(note=pair.id)
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        unit: str = "",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = 0
        self.note = ""
        self._clock = clock
        self._started = clock()
        self._drawn: float | None = None
        self._notebook = NotebookText() if stream is None and in_notebook() else None
        self._stream = stream if stream is not None else sys.stderr
        self._in_place = self._notebook is None and self._stream.isatty()
        self._width = 0

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the mean rate so far; None before there is one."""
        elapsed = self._clock() - self._started
        if self.total is None or not self.done or elapsed < _ESTIMATE_AFTER:
            return None
        return max(0.0, elapsed / self.done * (self.total - self.done))

    def advance(self, steps: int = 1, *, note: str = "") -> None:
        """So many steps more are done."""
        self.update(self.done + steps, note=note)

    def update(self, done: int, total: int | None = None, *, note: str = "") -> None:
        """So many steps are done in all; fits every `report` argument in optimsyn."""
        self.done = done
        self.total = self.total if total is None else total
        self.note = note
        self._draw(finished=False)

    def line(self, *, finished: bool = False, failed: bool = False) -> str:
        """The present state in one line."""
        elapsed = self._clock() - self._started
        of = f"/{self.total}" if self.total is not None else ""
        parts = [f"{self.done}{of}{' ' + self.unit if self.unit else ''}"]
        if finished:
            parts.append(f"{'stopped' if failed else 'done'} after {duration(elapsed)}")
        else:
            left = self.seconds_left
            parts.append(f"{duration(left)} left" if left is not None else duration(elapsed))
            if self.note:
                parts.append(self.note)
        return f"{self.title}: " + ", ".join(parts)

    def _draw(self, *, finished: bool, failed: bool = False) -> None:
        now = self._clock()
        pause = _REDRAW_SECONDS if self._notebook is not None or self._in_place else _LOG_SECONDS
        if not finished and self._drawn is not None and now - self._drawn < pause:
            return
        self._drawn = now
        text = self.line(finished=finished, failed=failed)
        if self._notebook is not None:
            self._notebook.show(text, self.done / self.total if self.total else None)
        elif self._in_place:
            # Blanks overwrite what a longer line before has left.
            self._stream.write("\r" + text.ljust(self._width) + ("\n" if finished else ""))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def __enter__(self) -> Progress:
        self._draw(finished=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw(finished=True, failed=kind is not None)


def track(items: Iterable[T], title: str, *, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Goes through `items` with a `Progress`; `total` is found by itself where the items have a length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(title, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()
