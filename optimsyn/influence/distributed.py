"""Work shared by the processes of `accelerate launch` or `torchrun`.

Every process has the same model and the same samples; each scores its share, and all get the whole result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from optimsyn.base.errors import ModelError

Result = TypeVar("Result")


def process_count() -> int:
    """How many processes work together; 1 unless `torch.distributed` has been initialised (accelerate does it)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def in_shares(sizes: Sequence[int], agreed: str, work: Callable[[list[int]], Result]) -> list[tuple[list[int], Result]]:
    """Distributes items over the processes, and gives each the items and the results of all.

    All processes must call it. An error in one of them is raised in each, so that none waits forever.

    Args:
        sizes: The approximate work of each item; items of similar size are dealt out in turn.
        agreed: A text that must be equal in all processes, such as a digest of the items.
        work: Maps the indices of some items (perhaps none) to their result, which must pickle.

    Raises:
        ModelError: The processes do not have the same items, or the work failed in another process. An error of this
            process is raised unchanged.
    """
    count = process_count()
    if count == 1:
        places = list(range(len(sizes)))
        return [(places, work(places))]
    rank = torch.distributed.get_rank()
    if len(set(_gathered(agreed))) > 1:
        raise ModelError(
            f"the {count} processes were given different samples, questions or targets, so the work cannot be shared; "
            'give all of them the same, or let each score its own with InfluenceScorer(..., processes="own")'
        )
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    share = order[rank::count]
    outcome: tuple[str | None, list[int], Result | None]
    try:
        outcome = None, share, work(share)
    except Exception as error:
        _gathered((f"{type(error).__name__}: {error}", share, None))
        raise
    results = []
    for other, (failure, places, result) in enumerate(_gathered(outcome)):
        if failure is not None or result is None:
            raise ModelError(f"process {other} of {count} failed, so there is no complete result: {failure}")
        results.append((places, result))
    return results


def _gathered(value: Result) -> list[Result]:
    """The value of each process, by rank."""
    values: list[Result] = [value] * process_count()
    torch.distributed.all_gather_object(values, value)
    return values
