"""Work on many items at once: results in the order of the items, and equal work done once."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def in_order(items: Iterable[T], work: Callable[[T], Awaitable[R]], ahead: int) -> AsyncGenerator[R, None]:
    """The results of `work`, in the order of the items; at most `ahead` items are begun and not yet handed out.

    Once an item has failed, no further one is begun. The results before it are still handed out; then its error is
    raised, and what is under way is cancelled and awaited. Close the iterator (`contextlib.aclosing`) when you leave it
    early.

    Args:
        items: Read as far as needed.
        work: Called once for each item.
        ahead: At least 1.
    """
    source = iter(items)
    under_way: deque[asyncio.Future[R]] = deque()
    failed = False

    def note(done: asyncio.Future[R]) -> None:
        nonlocal failed
        failed = failed or done.cancelled() or done.exception() is not None

    try:
        while True:
            for item in islice(source, 0 if failed else ahead - len(under_way)):
                task: asyncio.Future[R] = asyncio.ensure_future(work(item))
                task.add_done_callback(note)
                under_way.append(task)
            if not under_way:
                return
            result = await under_way[0]
            under_way.popleft()
            yield result
    finally:
        for begun in under_way:
            begun.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


class Once(Generic[R]):
    """Does work that several callers ask for at the same time once, whatever loop and thread each runs on.

    Args:
        lock: Held while looking for work; `done` is called with it.
        done: Whether the work of a key need not be done any more.
    """

    def __init__(self, lock: threading.Lock, done: Callable[[str], bool]) -> None:
        self._lock = lock
        self._done = done
        self._work: dict[str, Future[R | None]] = {}

    async def do(self, key: str, work: Callable[[], Awaitable[R]]) -> R | None:
        """The result for a key, kept until it is forgotten; None if it is done.

        If the caller that works fails or is cancelled, each of the others works itself, and sees an error of its own.
        """
        while True:
            with self._lock:
                if self._done(key):
                    return None
                begun = self._work.get(key)
                if begun is None:
                    mine = self._work[key] = Future[R | None]()
                    break
            # Shielded: a caller that gives up must not end the others' wait.
            result = await asyncio.shield(asyncio.wrap_future(begun))
            if result is not None:
                return result
        try:
            result = await work()
        except BaseException:
            with self._lock:
                self._work.pop(key, None)
            mine.set_result(None)
            raise
        mine.set_result(result)
        return result

    def forget(self, keys: Iterable[str]) -> None:
        """Forgets finished work; call it with the lock held."""
        for key in keys:
            if (begun := self._work.get(key)) is not None and begun.done():
                del self._work[key]
