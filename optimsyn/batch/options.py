"""Options of a batch: those of every run, and the limits of all runs together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optimsyn.llm.shared_budget import Caps


@dataclass(frozen=True)
class RunOptions:
    """Options of every run of a batch.

    Attributes:
        size: `full` or `tiny`.
        changes: Recipe fields to change.
        until: The last stage to run; None: the run's last stage.
    """

    size: str = "full"
    changes: Mapping[str, Any] = field(default_factory=dict)
    until: str | None = None


@dataclass(frozen=True)
class BatchLimits:
    """Limits of all runs of a batch together.

    Attributes:
        jobs: How many run at once.
        caps: What they may buy, including what they bought in earlier starts.
        gpu_memory_gb: GPU memory of the concurrent runs, in GB; None: all that the machine's GPUs have.
    """

    jobs: int = 1
    caps: Caps = field(default_factory=Caps)
    gpu_memory_gb: float | None = None
