"""Directional derivatives of label tokens' losses by forward-mode differentiation, in one pass.

Values and tangents (how a value changes when the trained parameters move along a direction) go through the model
together. A tangent is a separate number, so a small one is not rounded away beside a large value, as the difference of
two losses is in 16 bits; it loses only the two or three digits that every product of the model loses.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from optimsyn.base.errors import ModelError
from optimsyn.influence.gradients.taps import GradientTaps
from optimsyn.target.encoding import Batch
from optimsyn.target.target import Target


class NoForwardDerivativeError(ModelError):
    """An operation of the model has no derivative in forward mode."""


class Slopes(NamedTuple):
    """Of the N label tokens of a batch, in row-major order, on the CPU.

    Attributes:
        slopes: [N] float64, the derivative of each token's loss along its row's direction.
        losses: [N] float64.
        rows: [N], the row of each.
        weights: [N] float64, the weight of each token in its row's loss.
    """

    slopes: torch.Tensor
    losses: torch.Tensor
    rows: torch.Tensor
    weights: torch.Tensor


@torch.no_grad()
def token_slopes(
    target: Target, taps: GradientTaps, batch: Batch, tangents: dict[str, torch.Tensor], *, cure: str
) -> Slopes:
    """The derivatives of a batch's label tokens.

    Between the two halves of a LoRA values and tangents are float32 even where the model is not.

    Args:
        target: The model.
        taps: Of the same target.
        batch: The samples.
        tangents: The direction by parameter name: [*shape] for all rows, or [B, *shape], a direction for each row.
        cure: The remedy to name when the model has no such derivative.

    Raises:
        NoForwardDerivativeError: An operation of the model has none.
    """

    def forward_of(path: str, layer: nn.Linear, weight: str | None, bias: str | None) -> Any:
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            output = nn.functional.linear(inputs, layer.weight, layer.bias)
            value, moved = parts(output)
            plain = parts(inputs)[0]
            shape = value.shape
            total = None if moved is None else moved.reshape(len(batch), -1, shape[-1])
            if weight is not None:
                tangent = (tangents[weight] * scale).to(value.dtype).transpose(-2, -1)
                own = plain.reshape(len(batch), -1, plain.shape[-1]).to(value.dtype) @ tangent
                total = own if total is None else own.add_(total)
            if bias is not None:
                tangent = (tangents[bias] * scale).to(value.dtype)
                tangent = tangent if tangent.dim() == 1 else tangent.unsqueeze(1)
                total = tangent.expand(len(batch), *shape[1:]) if total is None else total + tangent
            assert total is not None
            dual: torch.Tensor = forward_ad.make_dual(value, total.reshape(shape))  # type: ignore[no-untyped-call]
            return dual

        return forward

    target.try_out(batch)
    scale = _scale(target, tangents)
    # The fused attention kernels have no forward-mode derivative; the plain one does.
    with target.scoring(), torch.no_grad(), taps.replaced(forward_of), sdpa_kernel(SDPBackend.MATH):
        try:
            with forward_ad.dual_level():
                dual, rows, columns = target.token_losses(batch)
                losses, slopes = parts(dual)
        except NotImplementedError as error:
            reason = str(error).strip().split("\n")[0]
            raise NoForwardDerivativeError(
                f"forward-mode derivatives are needed, and an operation of this model has none ({reason}); {cure}"
            ) from error
    if slopes is None:
        slopes = torch.zeros_like(losses)
    weights = batch.token_weights(rows, columns).to(slopes.device)
    wide = torch.stack([slopes.double() / scale, losses.double(), weights.double()]).cpu()
    return Slopes(wide[0], wide[1], rows.cpu(), wide[2])


def _scale(target: Target, tangents: dict[str, torch.Tensor]) -> float:
    """The factor of directions for float16's narrow range: it makes them as long as the parameters; else 1."""
    if not any(parameter.dtype == torch.float16 for parameter in target.model.parameters()):
        return 1.0
    size = torch.stack([tangent.float().abs().amax() for tangent in tangents.values()]).amax()
    own = torch.stack([parameter.detach().float().abs().amax() for parameter in target.parameters.values()]).amax()
    ratio = float(own / size)
    # A power of two costs no digit.
    return 2.0 ** round(math.log2(ratio)) if 0 < ratio < math.inf else 1.0


def parts(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A dual tensor's value and its tangent, None where it has none."""
    dual = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return dual.primal, dual.tangent
