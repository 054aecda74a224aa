"""Ends a run when its batch has ended, even by kill -9, so that no run goes on unattended."""

from __future__ import annotations

import os
import signal
import threading
import time

from optimsyn.base.environment import PARENT, unset, variable

_LOOK_S = 1.0
# Time to close the kernel and the embedded server and to write the manifest.
_PATIENCE_S = 60.0


def end_with_parent() -> None:
    """Watches the process that `OPTIMSYN_PARENT` names, and interrupts this process when that one has ended.

    Does nothing if the variable is not set. It is removed, so that child processes are not watched.
    """
    parent = variable(PARENT) or ""
    unset((PARENT,))
    if parent.isdecimal():
        threading.Thread(target=_watch, args=(int(parent),), daemon=True, name="lifeline").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    # Nobody reads the pipe any more, and a failing print must not disturb the shutdown.
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_S)
    os._exit(1)
