"""What a batch is asked to do: the options of every run, and what all runs together may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optimsyn.llm.shared_budget import Caps


@dataclass(frozen=True)
class RunOptions:
    """What holds for every run of a batch.

    Attributes:
        size: `full` or `tiny`.
        changes: Recipe fields to change.
        until: The last stage to run; None: the last one of a run.
    """

    size: str = "full"
    changes: Mapping[str, Any] = field(default_factory=dict)
    until: str | None = None


@dataclass(frozen=True)
class BatchLimits:
    """What the runs of a batch may use together.

    Attributes:
        jobs: How many run at once.
        caps: What they may buy, with what they bought in earlier starts.
        gpu_memory_gb: GPU memory of the runs that run at the same time, in GB; None: what the machine's GPUs have.
    """

    jobs: int = 1
    caps: Caps = field(default_factory=Caps)
    gpu_memory_gb: float | None = None
