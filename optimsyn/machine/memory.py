"""The machine's memory, and how much of it local models need: one rule for doctor, preflight and batch."""

from __future__ import annotations

from pathlib import Path

from optimsyn.machine.gpus import gpus

BYTES_A_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2}
# Activations, the adapter's optimizer state and fragmentation, relative to the weights.
_OVERHEAD = 1.25
# Files with a container's memory limit, usage and statistics, in cgroups v2 and v1.
CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
# Python with PyTorch, before any model is loaded.
_PROCESS_BYTES = 1_500_000_000


def chosen_dtype(dtype: str, *, gpu: bool) -> str:
    """Resolves `dtype: auto` for GPU or CPU; other values stay."""
    return dtype if dtype != "auto" else ("bfloat16" if gpu else "float32")


def bytes_needed(weights: int, *, gpu: bool) -> int:
    """Estimated bytes for models whose weights take `weights` bytes; 0 when there are none."""
    return round(weights * _OVERHEAD) + (0 if gpu else _PROCESS_BYTES) if weights else 0


def largest_model(room: int, *, gpu: bool) -> int:
    """Parameters of the largest model whose `bytes_needed` fit into `room` bytes, with `dtype: auto`."""
    weights = (room - (0 if gpu else _PROCESS_BYTES)) / _OVERHEAD
    return max(0, int(weights / BYTES_A_WEIGHT[chosen_dtype("auto", gpu=gpu)]))


def main_memory() -> tuple[int, int]:
    """`(total, free)` main memory in bytes, within a container's limit."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    for limit_file, used_file, stat_file in CONTAINER:
        limit = _number_in(limit_file)
        if limit is not None and limit < total:
            total = limit
            # The usage includes page cache; its inactive part can be reclaimed at once.
            used = (_number_in(used_file) or 0) - _inactive_cache(stat_file)
            free = min(free, total - min(total, max(0, used)))
    return total, free


def gpu_memory() -> tuple[int | None, int | None]:
    """`(total, free)` memory of the first NVIDIA GPU in bytes; `(None, None)` without one."""
    cards = gpus()
    return (cards[0].total, cards[0].free) if cards else (None, None)


def _inactive_cache(file: str) -> int:
    try:
        rows = dict(line.split(maxsplit=1) for line in Path(file).read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(rows.get("total_inactive_file") or rows.get("inactive_file") or 0)


def _number_in(file: str) -> int | None:
    try:
        text = Path(file).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
