"""Work shared by several processes, as `accelerate launch` or `torchrun` start them.

Every process holds the same model and is given the same samples; each scores its share, and all get the whole result.
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
    """Deals items out, lets each process work on its own, and gives every process the results of all.

    Must be called by all processes. Whatever goes wrong in one of them is raised in each, so that none waits for ever.

    Args:
        sizes: About how much work each item is; items of like size are dealt out in turn.
        agreed: What the processes must have in common, such as a digest of the items.
        work: From the places of some items (perhaps none) to their result, which must pickle.

    Returns:
        For each process the places that it worked on, and its result.

    Raises:
        ModelError: The processes do not hold the same items, or the work failed in another process. What fails in this
            process is raised as it is.
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
    """What each process passed, by rank."""
    values: list[Result] = [value] * process_count()
    torch.distributed.all_gather_object(values, value)
    return values
