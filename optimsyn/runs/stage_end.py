"""The end of a failed stage: paid replies arrive first, and the error is reported even when the disk is full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.base.disk import cannot_write, is_disk_trouble
from optimsyn.base.errors import DataError, OptimsynError

if TYPE_CHECKING:
    from optimsyn.runs.protocol import RunLike

# Time to write the last reply to a slow disk, beyond the longest time-out of a request.
_MORE_S = 60.0


def let_arrive(run: RunLike, stage: str) -> None:
    """Stops sending, waits for requests under way, and releases the disk space reserved for their replies."""
    from optimsyn.base.event_loops import REQUESTS

    run.replies.halt(f"stage {stage} has failed")
    REQUESTS.settle(max(spec.timeout_s for spec in run.recipe.models.writers.values()) + _MORE_S)
    run.replies.release()
    # A notebook may go on with this object and buy again.
    run.replies.halt(None)


def disk_error_of(run: RunLike, stage: str, error: BaseException) -> DataError | None:
    """A readable error when a library could not write a file; None for any other error and for our own."""
    if isinstance(error, OptimsynError) or not is_disk_trouble(error):
        return None
    return cannot_write(run.folder, f"what stage {stage} writes", error)
