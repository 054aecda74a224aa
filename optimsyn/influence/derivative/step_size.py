"""The step ε of twins, chosen by measurement, and the derivative from their losses.

A central difference (ℓ(θ+εd) − ℓ(θ−εd)) / 2ε is wrong by c·ε² (curvature) and by δ/ε (rounding, δ about the
machine precision times ℓ). Neither constant is known beforehand, and in 16-bit models δ is thousands of times larger
than in float32, so both are measured. On a few questions the difference D(h) is computed for steps h in ratio ρ = 4.
Between neighbours it changes by Δ_j = rms |D(h_j) − D(h_{j+1})|, which is (ρ² − 1)·c·h_j² where curvature dominates and
about δ/h_j where rounding does. So

    e_j = hypot(Δ_j / (ρ² − 1), Δ_{j−1} / ρ)

estimates the error at h_j in both regimes, and the step with the smallest e_j is taken. (The same balance, for one
function, is in Press et al., Numerical Recipes, section 5.7.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

RATIO = 4.0
_SIDE = 2
_MOST = 6


@dataclass(frozen=True)
class Step:
    """The step of one direction, and its error on the measured questions.

    Attributes:
        epsilon: ε of the central difference, in units of d.
        error: Estimated error of the central difference, root mean square over the measured questions, as a share of
            the derivative's own root mean square.
        forward_epsilon: ε of the one-sided difference (ℓ(θ+εd) − ℓ(θ)) / ε.
        forward_error: The same share for the one-sided difference: its distance from the central one, which is mostly
            the truncation ε·ℓ''/2, and the central one's own error.
        length: ‖d‖.
    """

    epsilon: float
    error: float
    forward_epsilon: float
    forward_error: float
    length: float


def measure_step(
    losses: Callable[[float], tuple[torch.Tensor, torch.Tensor]],
    here: torch.Tensor,
    *,
    start: float,
    length: float,
) -> Step:
    """The best step along one direction.

    Args:
        losses: Maps ε to the losses [P] of the measured questions at θ + εd and at θ − εd, float64.
        here: Their losses [P] at θ.
        start: The first ε to try. Two steps to either side are tried, and more while the best is at the edge.
        length: ‖d‖, for the record.
    """
    central: dict[int, torch.Tensor] = {}
    forward: dict[int, torch.Tensor] = {}

    def measure(j: int) -> None:
        if j not in central:
            step = start * RATIO**j
            plus, minus = losses(step)
            central[j], forward[j] = (plus - minus) / (2 * step), (plus - here) / step

    low, high = -_SIDE, _SIDE
    while True:
        for j in range(low, high + 1):
            measure(j)
        errors = {
            j: math.hypot(_rms(central[j] - central[j + 1]) / (RATIO**2 - 1), _rms(central[j - 1] - central[j]) / RATIO)
            for j in range(low + 1, high)
        }
        best = min(errors, key=lambda j: errors[j])
        if best == low + 1 and low > -_SIDE - _MOST:
            low -= 1
        elif best == high - 1 and high < _SIDE + _MOST:
            high += 1
        else:
            break
    off = {j: math.hypot(_rms(forward[j] - central[best]), errors[best]) for j in forward}
    nearest = min(off, key=lambda j: off[j])
    size = _rms(central[best])
    return Step(
        epsilon=start * RATIO**best,
        error=_share(errors[best], size),
        forward_epsilon=start * RATIO**nearest,
        forward_error=_share(off[nearest], size),
        length=length,
    )


@dataclass(frozen=True)
class Plan:
    """The twins of one checkpoint, and how to read their losses.

    Attributes:
        checkpoint: Optimiser steps of the warm-up checkpoint.
        weight: Its share among the checkpoints.
        reference_norm: Scores are divided by it (see `Directions.reference_norms`).
        sides: central has two twins per subtask, one-sided one twin more than there are subtasks.
        steps: One per subtask.
    """

    checkpoint: int
    weight: float
    reference_norm: float
    sides: Literal["central", "one-sided"]
    steps: tuple[Step, ...]

    @property
    def points(self) -> tuple[tuple[int | None, float], ...]:
        """The points at which losses are needed: subtask and signed ε; (None, 0.0) is θ itself."""
        if self.sides == "central":
            return tuple((k, sign * step.epsilon) for k, step in enumerate(self.steps) for sign in (1.0, -1.0))
        return ((None, 0.0), *((k, step.forward_epsilon) for k, step in enumerate(self.steps)))

    def read(self, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Derivatives from the losses at `points`.

        Args:
            losses: [points, N], float64.

        Returns:
            Derivatives [N, K] along each d_k, and the loss [N] at θ (of central differences: the mean of all points,
            which is off by the order of ε²).
        """
        if self.sides == "central":
            epsilon = torch.tensor([step.epsilon for step in self.steps], dtype=losses.dtype)
            return ((losses[0::2] - losses[1::2]).t() / (2 * epsilon)), losses.mean(0)
        epsilon = torch.tensor([step.forward_epsilon for step in self.steps], dtype=losses.dtype)
        return (losses[1:] - losses[0]).t() / epsilon, losses[0]


def _rms(values: torch.Tensor) -> float:
    rms = float(values.double().square().mean().sqrt())
    # A step that makes the loss overflow is no candidate.
    return rms if math.isfinite(rms) else math.inf


def _share(error: float, size: float) -> float:
    if size > 0:
        return error / size
    return 0.0 if error == 0 else math.inf
