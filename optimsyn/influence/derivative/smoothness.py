"""Checks that a target's loss is smooth, since only then twins measure a derivative."""

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
    """The operation, such as "topk", with which the model chooses among its layers (mixture of experts), or None.

    Even a tiny step can swap a token's experts, and the loss jumps; the gradient does not contain the jump.
    """
    encoded = [item if isinstance(item, Encoded) else target.encode(item) for item in samples]
    (batch,) = target.batches([min(encoded, key=lambda item: len(item.input_ids))])
    watch = Choosing()
    with target.scoring(), torch.no_grad(), watch:
        target.losses(batch)
    return watch.found


class Choosing(TorchFunctionMode):
    """Notes the first choice by the size of floating-point numbers (token ids are integers).

    Attributes:
        found: The operation; None where there was none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        first = args[0] if args else (kwargs or {}).get("input")
        if self.found is None and name in _CHOICES and isinstance(first, torch.Tensor) and first.is_floating_point():
            self.found = name
        return func(*args, **(kwargs or {}))
