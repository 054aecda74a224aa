"""Whether a target's loss is smooth enough for twins: a difference of losses is a derivative only where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from optimsyn.data.records import Pair, Question, Sample
from optimsyn.target.encoding import Encoded
from optimsyn.target.target import Target

_CHOICES = frozenset({"topk", "argmax", "argmin", "sort", "argsort", "kthvalue"})


def choice_of(target: Target, samples: Sequence[Sample | Pair | Question | Encoded]) -> str | None:
    """The operation by which the model chooses among its layers, as the router of a mixture of experts does.

    A step however small can swap a token's experts, and the loss jumps; the gradient knows nothing of the jump.

    Args:
        target: The model.
        samples: One forward pass over the shortest of them is watched.

    Returns:
        Its name, such as "topk"; None where the model makes no choice.
    """
    encoded = [item if isinstance(item, Encoded) else target.encode(item) for item in samples]
    (batch,) = target.batches([min(encoded, key=lambda item: len(item.input_ids))])
    watch = _Watch()
    with target.scoring(), torch.no_grad(), watch:
        target.losses(batch)
    return watch.found


class _Watch(TorchFunctionMode):
    """Notes the first choice that is made by the size of real numbers (token ids are whole ones)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Is called in place of each operation."""
        name = getattr(func, "__name__", "")
        first = args[0] if args else (kwargs or {}).get("input")
        if self.found is None and name in _CHOICES and isinstance(first, torch.Tensor) and first.is_floating_point():
            self.found = name
        return func(*args, **(kwargs or {}))
