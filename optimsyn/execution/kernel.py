"""Starts the Python kernel of a run's notebook: `python -m optimsyn.execution.kernel -f CONNECTION_FILE`.

It is an ordinary ipykernel with two differences: it dies with the process that started it, even after kill -9, and it
holds a lock while it lives, so that a resumed run never works beside an orphan.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from filelock import FileLock

from optimsyn.base.environment import KERNEL_LOCK, KERNEL_PARENT, variable

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies; elsewhere ipykernel's own poller does it in a second."""
    if not sys.platform.startswith("linux"):
        return
    parent = int(variable(KERNEL_PARENT) or "0")
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the request was in place.
    if parent and os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Runs the kernel until it is shut down."""
    _die_with_parent()
    path = variable(KERNEL_LOCK)
    lock = FileLock(path, timeout=60) if path else None
    if lock is not None:
        lock.acquire()
    # `python -m` puts the working directory first, where a user's file could shadow a library.
    if sys.path and sys.path[0] in {"", os.getcwd()}:  # noqa: PTH109 (compared with Python's own entry)
        sys.path.append(sys.path.pop(0))
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance()


if __name__ == "__main__":
    main()
