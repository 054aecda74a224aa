"""Adam's moments of one parameter at one checkpoint, for the estimators."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from optimsyn.base.errors import ModelError
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint


@dataclass(frozen=True)
class Moments:
    """AdamW's state of one parameter after `step` steps.

    Attributes:
        first: m, an exponential mean of clipped batch gradients; the parameter's shape.
        second: v, the same of their squares; the parameter's shape.
        step: t, the steps taken so far.
        betas: Decay rates of m and v.
        eps: Added to the root.
    """

    first: torch.Tensor
    second: torch.Tensor
    step: int
    betas: tuple[float, float]
    eps: float

    def part(self, rows: slice) -> Moments:
        """The moments of some rows of the parameter."""
        return replace(self, first=self.first[rows], second=self.second[rows])


def moments_of(checkpoint: Checkpoint, name: str, *, dtype: torch.dtype, device: torch.device | str) -> Moments:
    """The moments of the parameter called `name`.

    Raises:
        ModelError: The checkpoint lacks them, or they are not finite, or the second is negative.
    """
    if name not in checkpoint.exp_avg or name not in checkpoint.exp_avg_sq:
        raise ModelError(
            f"the warm-up checkpoint of step {checkpoint.step} has no moments for {name!r}; warm up again with the "
            "same lora settings"
        )
    first = checkpoint.exp_avg[name].to(device=device, dtype=dtype)
    second = checkpoint.exp_avg_sq[name].to(device=device, dtype=dtype)
    if not bool(torch.isfinite(first).all() and torch.isfinite(second).all() and (second >= 0).all()):
        raise ModelError(
            f"the warm-up moments of {name!r} at step {checkpoint.step} are not finite; lower warm_up.lr and warm up "
            "again"
        )
    return Moments(first, second, checkpoint.step, checkpoint.betas, checkpoint.eps)


def flat_moments(target: Target, checkpoint: Checkpoint) -> Moments:
    """Adam's moments as vectors [P], parameters in the target's order, on the CPU."""

    def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensors[name].to("cpu", target.dtype).flatten() for name in target.parameters])

    first, second = flat(checkpoint.exp_avg), flat(checkpoint.exp_avg_sq)
    return Moments(first, second, checkpoint.step, checkpoint.betas, checkpoint.eps)
