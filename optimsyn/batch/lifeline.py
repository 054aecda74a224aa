"""Ends a run of a batch when the batch is gone, also after kill -9, so that nothing works on unseen."""

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
    """Watches the process that `OPTIMSYN_PARENT` names, and ends this one like an interrupted one when it has gone.

    Does nothing where no parent is named. The variable is taken away, so that what this process starts is not watched.
    """
    named = variable(PARENT) or ""
    unset((PARENT,))
    if named.isdecimal():
        threading.Thread(target=_watch, args=(int(named),), daemon=True, name="lifeline").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    # Nobody reads the pipe any more, and a print that fails must not disturb an orderly end.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_S)
    os._exit(1)
