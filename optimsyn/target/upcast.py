"""Runs a 16-bit model in float32, without a second copy of its weights.

Inside the context, every operation receives its bfloat16 or float16 inputs in float32, and its result stays float32. A
weight is widened when an operation needs it and then dropped, even if a backward pass needs it again; so at most one
weight is in memory twice. The result is that of the same weights in a float32 model, at the speed of float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

Precision = Literal["model", "mixed", "float32"]
"""The dtype a 16-bit model computes in: its own; its own in large products and float32 between them; float32."""

NARROW = (torch.bfloat16, torch.float16)
_CASTS = frozenset({"to", "type", "type_as", "bfloat16", "half"})
_PRODUCTS = frozenset({"linear", "scaled_dot_product_attention"})
_ACCESS = frozenset({"__get__", "__set__", "__delete__", "grad", "backward"})


def is_narrow(model: torch.nn.Module) -> bool:
    """Whether any weight of a model has 16 bits."""
    return any(parameter.dtype in NARROW for parameter in model.parameters())


def computing(model: torch.nn.Module, precision: Precision) -> AbstractContextManager[None]:
    """A context in which a 16-bit model computes at this precision; a wider model is unaffected."""
    if precision == "model" or not is_narrow(model):
        return nullcontext()
    if precision == "float32":
        return in_float32()
    return in_float32(next(parameter.dtype for parameter in model.parameters() if parameter.dtype in NARROW))


@contextmanager
def in_float32(products: torch.dtype | None = None) -> Iterator[None]:
    """A context in which operations on 16-bit tensors compute in float32; wider tensors are unaffected.

    With `products`, frozen linear layers and attention keep multiplying in that 16-bit dtype, at its speed, and return
    float32: sums, norms and activations between layers are not rounded.
    """
    mode = _Wide(products)
    with mode, saved_tensors_hooks(mode.pack, mode.unpack):
        yield


class _Wide(TorchFunctionMode):
    def __init__(self, products: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = products
        self._narrow_products = products is not None
        self._casts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        # Reading an attribute is no computation, and a copy can be neither written nor differentiated for the original.
        if name in _ACCESS or (name.endswith("_") and not name.endswith("__")):
            return func(*args, **kwargs)
        if name in _CASTS or name == "embedding":
            # Code that casts to a weight's dtype wants the model's, which is float32 here. An embedding's rows are
            # widened, not its table.
            result = func(*args, **kwargs)
            if not (isinstance(result, torch.Tensor) and result.dtype in NARROW):
                return result
            return (result if name == "embedding" else args[0].to(result.device)).float()
        if self._narrow_products and name in _PRODUCTS:
            return self._product(func, name, args, kwargs)
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

    def _product(self, func: Any, name: str, args: Any, kwargs: Any) -> torch.Tensor:
        """A large product of the model in its own dtype, its result in float32."""
        weight = args[1] if name == "linear" else None
        dtype = self._dtype if weight is None else weight.dtype
        if dtype not in NARROW:
            return func(*args, **kwargs)  # type: ignore[no-any-return]

        def narrowed(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        args, kwargs = tree_map_only(torch.Tensor, narrowed, (args, kwargs))
        product: torch.Tensor = func(*args, **kwargs)
        return product.float()

    def pack(self, tensor: torch.Tensor) -> Any:
        """What a backward pass keeps: for a widened weight the weight itself, else the tensor."""
        for wide, source in self._casts:
            if tensor.data_ptr() == wide.data_ptr() and tensor.dtype == torch.float32:
                if tensor.shape == wide.shape and tensor.stride() == wide.stride():
                    return source, False
                if tensor.dim() == 2 and tensor.shape == wide.shape[::-1] and tensor.stride() == wide.stride()[::-1]:
                    return source, True
        return tensor

    @staticmethod
    def unpack(kept: Any) -> torch.Tensor:
        """Restores the tensor."""
        if isinstance(kept, torch.Tensor):
            return kept
        source, turned = kept
        wide: torch.Tensor = source.float()
        return wide.t() if turned else wide
