"""Peak memory of this process over a stretch of time."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
# Written to clear_refs, it resets the peak to the current resident size (proc(5)).
_RESET_PEAK = "5"


def reset_peak() -> None:
    """Resets the peak on Linux; elsewhere the peak covers the whole process."""
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return


def peak_bytes() -> int:
    """Peak resident size since `reset_peak`, in bytes, without child processes."""
    try:
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
