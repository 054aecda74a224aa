"""Handlers of signals while a block runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handled_signals(handler: Any, *names: str, where: Callable[[Any], bool] = lambda _: True) -> Iterator[None]:
    """Handles signals while the block runs; only the main thread can, in another one nothing changes.

    Args:
        handler: As for `signal.signal`.
        names: Of signals; those that this system does not have are left out.
        where: Which handlers it replaces, by the present one.
    """
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, handler) for number in numbers if where(signal.getsignal(number))}
    try:
        yield
    finally:
        for number, present in before.items():
            signal.signal(number, present)
