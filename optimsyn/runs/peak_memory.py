"""The most memory that this process has used while something ran."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
# Written into clear_refs it sets the peak of the resident size back to the present size (proc(5)).
_RESET_PEAK = "5"


def reset_peak() -> None:
    """Begins again to look for the peak, where the system can (Linux); else the peak is that of the whole process."""
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return


def peak_bytes() -> int:
    """Peak resident size since `reset_peak`, in bytes; child processes are not in it."""
    try:
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
