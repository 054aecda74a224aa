"""The NVIDIA GPUs that this process may use, from the driver, without torch."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

from optimsyn.base.environment import CUDA_VISIBLE_DEVICES, variable


@dataclass(frozen=True)
class Gpu:
    """One GPU: its number and name (`uuid`) for the driver, total and free memory in bytes at the time of the query."""

    index: str
    uuid: str
    total: int
    free: int


@cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine, in the driver's order, within `CUDA_VISIBLE_DEVICES` where that is set."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=index,uuid,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
        cards = [_gpu(line) for line in answer.splitlines() if line.strip()]
    except (subprocess.SubprocessError, OSError, ValueError):
        # Without a card, the driver prints a sentence.
        return ()
    return visible(cards, variable(CUDA_VISIBLE_DEVICES))


def _gpu(line: str) -> Gpu:
    index, uuid, total, free = (cell.strip() for cell in line.split(","))
    return Gpu(index, uuid, int(total) * 2**20, int(free) * 2**20)


def visible(cards: list[Gpu], chosen: str | None) -> tuple[Gpu, ...]:
    """The GPUs that `CUDA_VISIBLE_DEVICES` names, in its order; like CUDA, stops at the first unknown one.

    Example:
        >>> cards = [Gpu("0", "GPU-a", 80, 80), Gpu("1", "GPU-b", 80, 80)]
        >>> [card.index for card in visible(cards, "1")], [card.index for card in visible(cards, None)]
        (['1'], ['0', '1'])
    """
    if chosen is None:
        return tuple(cards)
    result: list[Gpu] = []
    for name in (part.strip() for part in chosen.split(",")):
        card = next((card for card in cards if name and (card.index == name or card.uuid.startswith(name))), None)
        if card is None:
            break
        result.append(card)
    return tuple(result)
