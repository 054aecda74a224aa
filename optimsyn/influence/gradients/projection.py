r"""Factored random projection of per-sample gradients, layer by layer and on both sides.

A matrix G [out, in] is stored as P_o G P_iᵀ [p_o, p_i], where P_o [p_o, out] and P_i [p_i, in] hold independent
±1/√p_o and ±1/√p_i. Since E[PᵀP] = I, inner products are unbiased:

    E ⟨P_o G P_iᵀ, P_o V P_iᵀ⟩ = ⟨G, V⟩

and spread by no more than (Hutchinson's trace estimator once for each side; P_o and P_i are independent)

    Var ≤ (2/p_o + 2/p_i + 4/(p_o p_i)) ‖G‖² ‖V‖²

with the terms of a side that is not projected dropped: 2/p for LoRA, whose other side is the rank. Each layer has its
own matrices, so their errors are independent and add as variances. Where L layers carry equal shares of both vectors,
the error of a cosine therefore has a standard deviation of at most √(2/(p L)): 0.03 for p = 16 and 144 LoRA matrices.
That is an upper bound on the noise of one score; ranks suffer as far as it is large beside the spread of true scores.

Signs come from the raw bits of a counter-based generator (Philox), whose stream NumPy guarantees, so that matrices are
recomputed from the seed and never stored. Rademacher signs spread less than Gaussian entries (the diagonal terms of the
variance vanish). Factored projections of per-layer gradients: LoGra (Choe et al. 2024, arXiv:2405.13954); unbiased
inner products: Johnson and Lindenstrauss, with signs as in Achlioptas (2003).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from optimsyn.base.errors import RecipeError


@dataclass(frozen=True)
class Projection:
    """Sizes and seed of a factored projection.

    A side of a layer that is no larger than its size is kept exactly: usually the rank of a LoRA.

    Attributes:
        out_size: p_o, rows kept of a gradient [out, in].
        in_size: p_i, columns kept.
        seed: Of all matrices.

    Raises:
        RecipeError: A size is not positive.
    """

    out_size: int = 32
    in_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for field, size in (("out_size", self.out_size), ("in_size", self.in_size)):
            if size < 1:
                raise RecipeError(f"projection.{field}: {size} keeps nothing; use a positive number, such as 32")

    def matrix(self, name: str, side: Literal["out", "in"], size: int) -> torch.Tensor | None:
        """P [p, size] of one side of one parameter, float32; None where the side is kept exactly."""
        kept = self.out_size if side == "out" else self.in_size
        if size <= kept:
            return None
        label = f"rademacher-1/{self.seed}/{name}/{side}/{kept}x{size}"
        key = np.frombuffer(hashlib.sha256(label.encode()).digest()[:16], dtype="<u8")
        words = np.random.Philox(key=key).random_raw((kept * size + 63) // 64).astype("<u8")
        bits = np.unpackbits(words.view(np.uint8))[: kept * size].reshape(kept, size)
        return torch.from_numpy((bits.astype(np.float32) * 2 - 1) / math.sqrt(kept))

    def facts(self) -> dict[str, Any]:
        """The projection in a manifest."""
        return {"kind": "rademacher", "out_size": self.out_size, "in_size": self.in_size, "seed": self.seed}


class Layout:
    """The place of each parameter's projected gradient in one flat row.

    Parameters keep the order of `shapes`; a bias [out] counts as [out, 1].
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], projection: Projection | None) -> None:
        self.shapes = dict(shapes)
        self.projection = projection
        self._matrices: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}

    @cached_property
    def widths(self) -> dict[str, int]:
        """Values that each parameter takes in a row."""
        out_limit, in_limit = (
            (math.inf, math.inf) if self.projection is None else (self.projection.out_size, self.projection.in_size)
        )
        return {
            name: int(min(shape[0], out_limit) * min(math.prod(shape[1:]), in_limit))
            for name, shape in self.shapes.items()
        }

    @property
    def width(self) -> int:
        """Values of a row."""
        return sum(self.widths.values())

    def facts(self) -> list[list[Any]]:
        """The layout in a manifest: name, shape and width of each parameter."""
        return [[name, list(shape), self.widths[name]] for name, shape in self.shapes.items()]

    def project(self, name: str, gradients: torch.Tensor) -> torch.Tensor:
        """From gradients [B, *shape] of one parameter to [B, width of the parameter], same dtype and device."""
        if gradients.dim() == 2:
            gradients = gradients.unsqueeze(2)
        left, right = self._sides(name, gradients)
        # The side that shrinks more goes first: the second product is then smaller.
        out_first = left is not None and (
            right is None or left.shape[1] * right.shape[0] >= right.shape[1] * left.shape[0]
        )
        if left is not None and out_first:
            gradients = left @ gradients
        if right is not None:
            gradients = gradients @ right.t()
        if left is not None and not out_first:
            gradients = left @ gradients
        return gradients.flatten(1)

    def _sides(self, name: str, like: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self.projection is None:
            return None, None
        if name not in self._matrices:
            pair = self.projection.matrix(name, "out", like.shape[1]), self.projection.matrix(name, "in", like.shape[2])
            left, right = (None if matrix is None else matrix.to(like) for matrix in pair)
            self._matrices[name] = left, right
        return self._matrices[name]
