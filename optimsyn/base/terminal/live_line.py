"""One line of progress, redrawn every second, in a terminal, a notebook or a log file.

In a notebook it is plain text and HTML under one display id, no widget, so that it is still there when the notebook is
reopened. Its output is marked `{"optimsyn": {"transient": true}}`: it changes from run to run and does not belong
under version control.
"""

from __future__ import annotations

import contextvars
import html
import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

TRANSIENT: dict[str, Any] = {"optimsyn": {"transient": True}}

REDRAW_SECONDS = 1.0
_LOG_SECONDS = 60.0


class NotebookText:
    """A text in a notebook's output that can be replaced."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str, share: float | None = None) -> None:
        """Replaces the text.

        Args:
            text: One line.
            share: The share that is done, from 0 to 1, for a progress bar; None draws none.
        """
        from IPython.display import display

        bar = "" if share is None else f'<progress max="1" value="{min(1.0, max(0.0, share)):.3f}"></progress> '
        bundle = {"text/plain": text, "text/html": f"<div>{bar}{html.escape(text)}</div>"}
        if self._handle is None:
            self._handle = display(bundle, raw=True, metadata=TRANSIENT, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(bundle, raw=True, metadata=TRANSIENT)


class LiveLine:
    """Draws the text that a function returns, again and again while the block runs.

    In a terminal and in a notebook the line is updated in place; in a log file it is written once a minute.

    Args:
        status: Returns the line; called from a background thread.
        share: Returns the share that is done, from 0 to 1, or None; only notebooks draw it.
        stream: Where to write outside a notebook; None is standard error.

    Example:
        >>> with LiveLine(lambda: f"{done} of {total} pairs") as line:     # doctest: +SKIP
        ...     work()
        ...     line.finish("all pairs written")
    """

    def __init__(
        self,
        status: Callable[[], str],
        *,
        share: Callable[[], float | None] = lambda: None,
        stream: TextIO | None = None,
    ) -> None:
        self._status = status
        self._share = share
        self._notebook = NotebookText() if stream is None and in_notebook() else None
        self._stream = stream if stream is not None else sys.stderr
        self._in_place = self._notebook is None and self._stream.isatty()
        self._shown = ""
        self._written = float("-inf")
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def draw(self) -> None:
        """Draws the line now, if it has changed."""
        self._put(self._status(), self._share())

    def finish(self, text: str) -> None:
        """Draws the last text."""
        self._over.set()
        self._put(text, None, last=True)

    def _put(self, text: str, share: float | None, *, last: bool = False) -> None:
        with self._lock:
            if text == self._shown and not last:
                return
            now = time.monotonic()
            if self._notebook is not None:
                self._notebook.show(text, share)
            elif self._in_place:
                # A line that wraps cannot be overwritten.
                text = text[: shutil.get_terminal_size().columns - 1]
                # Blanks overwrite the rest of a longer line.
                self._stream.write("\r" + text.ljust(len(self._shown)) + ("\n" if last else ""))
            elif last or now - self._written >= _LOG_SECONDS:
                self._stream.write(text + "\n")
                self._written = now
            self._stream.flush()
            self._shown = text

    def _run(self) -> None:
        while not self._over.wait(REDRAW_SECONDS):
            self.draw()

    def __enter__(self) -> LiveLine:
        self.draw()
        # The context says which cell the thread's output belongs to.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="optimsyn-line", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finished = self._over.is_set()
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if not finished:
            self._put(self._status(), None, last=True)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (asked without importing IPython)."""
    shell = sys.modules.get("IPython")
    if shell is None:
        return False
    running = shell.get_ipython()
    return running is not None and hasattr(running, "kernel")
