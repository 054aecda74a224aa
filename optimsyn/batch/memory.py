"""The memory that the running runs of a batch share: a run only starts if its models fit beside the others'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimsyn.machine.gpus import Gpu


@dataclass(frozen=True)
class Need:
    """Estimated memory of one run's models, in bytes; a pinned run's recipe names its GPU (`device: cuda:1`)."""

    gpu: int = 0
    main: int = 0
    pinned: bool = False


@dataclass(frozen=True)
class Place:
    """The memory reserved for a run, and the GPU that it must use; None leaves the choice to the run."""

    need: Need
    gpu: Gpu | None = None


class Room:
    """GPU and main memory of a batch.

    Args:
        gpus: The machine's GPUs. With several of them, each run gets the one with most free memory.
        gpu_bytes: Cap on the GPU memory of all running runs together; None: only the GPUs' own memory limits it.
        main_bytes: Cap on their main memory; None is no cap.
    """

    def __init__(self, gpus: Sequence[Gpu] = (), gpu_bytes: int | None = None, main_bytes: int | None = None) -> None:
        self.gpus = tuple(gpus)
        self.gpu_bytes = gpu_bytes
        self.main_bytes = main_bytes
        self._places: list[Place] = []

    def refusal(self, need: Need) -> str | None:
        """Why a run can never be started here, or None."""
        needed = f"its models are estimated to need {need.gpu / 1e9:.1f} GB"
        if self.gpu_bytes is not None and need.gpu > self.gpu_bytes:
            cap = f"--gpu-memory-gb {self.gpu_bytes / 1e9:g}"
            return (
                f"{needed} of GPU memory, more than the batch may use at all ({cap}); raise it or choose smaller models"
            )
        largest = max((gpu.total for gpu in self.gpus), default=need.gpu)
        if need.gpu > largest:
            has = f"the largest GPU here has {largest / 1e9:.1f} GB"
            return f"{needed} of GPU memory, and {has}; choose smaller models or a larger machine"
        return None

    def place(self, need: Need) -> Place | None:
        """Reserves memory, or returns None while there is too little; a single run always gets its main memory."""
        if self.gpu_bytes is not None and need.gpu + self._used_gpu() > self.gpu_bytes:
            return None
        used_main = sum(place.need.main for place in self._places)
        if self.main_bytes is not None and used_main and need.main and need.main + used_main > self.main_bytes:
            return None
        gpu: Gpu | None = None
        if need.gpu and self.gpus:
            # With one GPU, or one that the recipe chose, only the total can be checked.
            if not need.pinned and len(self.gpus) > 1:
                gpu = max(self.gpus, key=self._free)
            free = sum(card.total for card in self.gpus) - self._used_gpu() if gpu is None else self._free(gpu)
            if need.gpu > free:
                return None
        place = Place(need, gpu)
        self._places.append(place)
        return place

    def leave(self, placed: Place) -> None:
        """Releases the memory of an ended run."""
        self._places.remove(placed)

    def _used_gpu(self) -> int:
        return sum(place.need.gpu for place in self._places)

    def _free(self, gpu: Gpu) -> int:
        return gpu.total - sum(place.need.gpu for place in self._places if place.gpu == gpu)
