"""How a stage that failed ends: what was paid for arrives first, and what went wrong is told whatever the disk says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.base.disk import cannot_write, is_disk_trouble
from optimsyn.base.errors import DataError, OptimsynError

if TYPE_CHECKING:
    from optimsyn.runs.protocol import RunLike

# Beyond the longest time that a request may take: its reply is written down, on a disk that hesitates.
_MORE_S = 60.0


def let_arrive(run: RunLike, stage: str) -> None:
    """Sends nothing more, waits for what requests under way still bring, and gives the room set aside for it back."""
    from optimsyn.base.event_loops import REQUESTS

    run.replies.halt(f"stage {stage} has failed")
    models = run.recipe.models
    specs = (models.generator, models.rubric, models.reflection)
    REQUESTS.settle(max(spec.timeout_s for spec in specs if spec is not None) + _MORE_S)
    run.replies.release()
    # Whoever works on with this object in a notebook may buy again.
    run.replies.halt(None)


def disk_error_of(run: RunLike, stage: str, error: BaseException) -> DataError | None:
    """The error for a person when a library could not write a file; None for any other, and for our own."""
    if isinstance(error, OptimsynError) or not is_disk_trouble(error):
        return None
    return cannot_write(run.folder, f"what stage {stage} writes", error)
