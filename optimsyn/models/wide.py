"""A 16-bit model at work in float32, without a second copy of its weights.

While it lasts, every operation that is given bfloat16 or float16 numbers is given them in float32, and what it returns
stays float32. A weight is widened when an operation asks for it and dropped again, also where a backward pass will want
it once more; so the largest single weight is all that memory holds twice. The result is that of the same weights in a
float32 model, at the speed of float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

NARROW = (torch.bfloat16, torch.float16)
_CASTS = frozenset({"to", "type", "type_as", "bfloat16", "half"})
_ACCESS = frozenset({"__get__", "__set__", "__delete__", "grad", "backward"})


def is_narrow(model: torch.nn.Module) -> bool:
    """Whether any weight of a model has 16 bits."""
    return any(parameter.dtype in NARROW for parameter in model.parameters())


@contextmanager
def in_float32() -> Iterator[None]:
    """Inside, what is computed with 16-bit tensors is computed in float32; wider ones are left as they are."""
    mode = _Wide()
    with mode, saved_tensors_hooks(mode.pack, mode.unpack):
        yield


class _Wide(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self._casts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Is called in place of each operation."""
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        # Reading an attribute is no computation, and a copy can neither be written nor differentiated in the place of
        # the original.
        if name in _ACCESS or (name.endswith("_") and not name.endswith("__")):
            return func(*args, **kwargs)
        if name in _CASTS or name == "embedding":
            # Whoever narrows to the dtype of a weight wants it in the model's own, which is float32 here. Of an
            # embedding, rows are widened rather than the table.
            found = func(*args, **kwargs)
            if not (isinstance(found, torch.Tensor) and found.dtype in NARROW):
                return found
            return (found if name == "embedding" else args[0].to(found.device)).float()
        casts: list[tuple[torch.Tensor, torch.Tensor]] = []

        def widened(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dtype not in NARROW:
                return tensor
            wide = tensor.float()
            if tensor.is_leaf:
                casts.append((wide, tensor.detach()))
            return wide

        args, kwargs = tree_map_only(torch.Tensor, widened, (args, kwargs))
        self._casts = casts
        try:
            return func(*args, **kwargs)
        finally:
            self._casts = []

    def pack(self, tensor: torch.Tensor) -> Any:
        """What a backward pass keeps of a tensor: of a widened weight, the weight itself."""
        for wide, source in self._casts:
            if tensor.data_ptr() == wide.data_ptr() and tensor.dtype == torch.float32:
                if tensor.shape == wide.shape and tensor.stride() == wide.stride():
                    return source, False
                if tensor.dim() == 2 and tensor.shape == wide.shape[::-1] and tensor.stride() == wide.stride()[::-1]:
                    return source, True
        return tensor

    @staticmethod
    def unpack(kept: Any) -> torch.Tensor:
        """The tensor again."""
        if isinstance(kept, torch.Tensor):
            return kept
        source, turned = kept
        wide: torch.Tensor = source.float()
        return wide.t() if turned else wide
