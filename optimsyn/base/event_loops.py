"""Background event loops: one that sends requests to models, and one for calls from synchronous code.

HTTP clients and semaphores belong to the loop that first used them, while callers come from notebooks (which have a
running loop), from DSPy's threads and from asynchronous code. So all requests are sent from one loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """An event loop in a daemon thread, started on first use and again after a fork."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's."""
        self._name = name
        self._lock = threading.Lock()
        self._owner = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop."""
        with self._lock:
            # Threads do not survive a fork; the child starts its own loop.
            if self._loop is None or self._owner != os.getpid():
                self._loop = asyncio.new_event_loop()
                self._owner = os.getpid()
                self._tasks = set()
                threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True).start()
            return self._loop

    def is_current(self) -> bool:
        """Whether the calling code runs on this loop."""
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Awaits a coroutine on this loop, from any loop."""
        if self.is_current():
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def follow(self, task: asyncio.Task[Any]) -> None:
        """Lets `settle` wait for a task; call it on this loop."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def settle(self, seconds: float) -> None:
        """Waits until the followed tasks have ended or failed, also new ones. Never call it on the loop itself.

        Args:
            seconds: Longest wait.
        """
        end = time.monotonic() + seconds
        while self._owner == os.getpid() and self._tasks and time.monotonic() < end:
            time.sleep(0.02)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine on this loop and returns at once."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run_sync(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on this loop and blocks the calling thread, which must not be the loop's."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C while waiting: do not leave the work running.
            future.cancel()
            raise


REQUESTS = BackgroundLoop("optimsyn-requests")
_CALLS = BackgroundLoop("optimsyn-calls")


def start(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Starts a coroutine from synchronous code, on the loop of `run_sync`, and returns at once."""
    return _CALLS.start(coroutine)


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end from synchronous code, also inside a running event loop (as in Jupyter).

    Context variables, such as DSPy's settings, are passed on. A nested call gets its own thread and loop.

    Raises:
        Exception: Whatever the coroutine raises.
    """
    if not _CALLS.is_current():
        return _CALLS.run_sync(coroutine)
    nested = BackgroundLoop("optimsyn-nested-call")
    loop = nested.loop
    try:
        return nested.run_sync(coroutine)
    finally:
        loop.call_soon_threadsafe(loop.stop)
