"""Whose turn it is on a GPU: generator, rubric model, policy and scorer of a process use it one after the other.

At the same time they would not be faster, but the memory that each needs while it works would add up.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Turns:
    """A lock that goes round in the order of asking; a `threading.Lock` may let one thread take it again and again."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._owner: int | None = None
        self.waiting: deque[tuple[int, threading.Lock]] = deque()

    @property
    def mine(self) -> bool:
        """Whether this thread has the turn."""
        return self._owner == threading.get_ident()

    def take(self) -> None:
        """Waits for a turn."""
        me, called = threading.get_ident(), threading.Lock()
        called.acquire()
        with self._guard:
            if self._owner is None:
                self._owner = me
                return
            self.waiting.append((me, called))
        try:
            called.acquire()
        except BaseException:  # an interrupted notebook cell must not keep the others waiting
            with self._guard:
                waits = (me, called) in self.waiting
                if waits:
                    self.waiting.remove((me, called))
            if not waits:
                self.give()
            raise

    def give(self) -> None:
        """Ends a turn; the next one begins."""
        with self._guard:
            self._owner = None
            if self.waiting:
                self._owner, called = self.waiting.popleft()
                called.release()


_TURNS: dict[str, Turns] = {}
_LOCK = threading.Lock()
# Cores are shared out by the operating system.
SHARED_DEVICES = ("cpu",)


def turns_of(device: Any) -> Turns | None:
    """The turns on a device; None on a CPU, where nobody waits."""
    if device.type in SHARED_DEVICES:
        return None
    with _LOCK:
        # `cuda`, as a recipe names it, is `cuda:0`, as a loaded model does.
        return _TURNS.setdefault(f"{device.type}:{device.index or 0}", Turns())


@contextmanager
def turn(device: Any) -> Iterator[None]:
    """Waits until no other thread has a turn on this device, and has it meanwhile. On a CPU nobody waits.

    Within a turn of the same thread it does nothing.

    Who has it must not wait for another thread that needs one, except in `others_turn`.

    Args:
        device: A `torch.device`.
    """
    turns = turns_of(device)
    if turns is None or turns.mine:
        yield
        return
    turns.take()
    try:
        yield
    finally:
        turns.give()


@contextmanager
def others_turn(device: Any) -> Iterator[None]:
    """Lets others have the device, if this thread has a `turn` on it."""
    turns = turns_of(device)
    if turns is None or not turns.mine:
        yield
        return
    turns.give()
    try:
        yield
    finally:
        turns.take()
