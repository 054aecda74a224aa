"""How busy the parts of a program are: the time in which each has something to do, and how much at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass
class _Part:
    """Work under way, when that number last changed, and the sums until then, in seconds."""

    under_way: int = 0
    changed: float = 0.0
    busy: float = 0.0
    work: float = 0.0


@dataclass(frozen=True)
class Load:
    """How busy a part was.

    Attributes:
        busy: Share of the time in which at least one piece of work was under way.
        mean: Mean number of pieces under way.
    """

    busy: float
    mean: float


class Meter:
    """Measures how busy named parts are. Safe in many threads; an entry costs about a microsecond.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._parts: dict[str, _Part] = {}
        self._begun = clock()

    @contextmanager
    def at_work(self, part: str) -> Iterator[None]:
        """Counts the block as one piece of work of a part."""
        self._change(part, 1)
        try:
            yield
        finally:
            self._change(part, -1)

    @contextmanager
    def waiting(self, part: str) -> Iterator[None]:
        """Leaves the block out of the piece of work around it."""
        self._change(part, -1)
        try:
            yield
        finally:
            self._change(part, 1)

    def loads(self) -> dict[str, Load]:
        """The load of each part that has worked, since the meter was created."""
        with self._lock:
            now = self._clock()
            parts = {name: replace(part) for name, part in self._parts.items()}
        wall = now - self._begun
        for part in parts.values():
            _count(part, now)
        return {name: Load(part.busy / wall, part.work / wall) for name, part in parts.items() if wall > 0}

    def _change(self, part: str, by: int) -> None:
        with self._lock:
            now = self._clock()
            state = self._parts.setdefault(part, _Part(changed=now))
            _count(state, now)
            state.under_way += by


def _count(part: _Part, now: float) -> None:
    seconds = now - part.changed
    part.work += seconds * part.under_way
    part.busy += seconds if part.under_way else 0.0
    part.changed = now
