"""Peak memory of one call, as counted by the machine."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """Time and memory of one call.

    Attributes:
        seconds: Wall clock.
        cpu_seconds: Processor time of all threads; other programs on the machine disturb it less.
        resting: Bytes held before.
        peak: Most bytes held in between: resident pages of the whole process on Linux, allocated tensors on CUDA;
            None where neither can be had.
        part: The share of the work that was done, if times are extrapolated from it; else "".
    """

    seconds: float
    cpu_seconds: float
    resting: int
    peak: int | None
    part: str = ""


def measured(call: Callable[[], T], device: torch.device) -> tuple[T, Measured]:
    """Runs `call` and measures it; waits for the GPU before and after."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        resting = torch.cuda.memory_allocated(device)
    else:
        _forget_peak()
        resting = _status("VmRSS") or 0
    began, cpu = time.perf_counter(), time.process_time()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
    return result, Measured(seconds, cpu, resting, peak)


def _forget_peak() -> None:
    """Gives free pages back and makes the kernel count the peak again (proc(5): 5 resets the peak resident size)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(field: str) -> int | None:
    """Bytes of a field of the process's status; None where there is no such file."""
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
