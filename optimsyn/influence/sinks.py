"""What the scorer does with each parameter's per-sample gradients before they are dropped."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from optimsyn.influence.directions import Directions
from optimsyn.influence.gamma import Direction, Estimator, normalised
from optimsyn.influence.gradients import output_slices
from optimsyn.influence.moments import Moments, moments_of
from optimsyn.models.target import Target
from optimsyn.models.warm_up import Checkpoint


def pieces_of(target: Target, checkpoint: Checkpoint) -> Iterator[tuple[str, slice, Moments]]:
    """Each trained parameter in the slices of rows in which its gradient comes, with the moments of the slice."""
    for name, parameter in target.parameters.items():
        moments = moments_of(checkpoint, name, dtype=target.dtype, device=parameter.device)
        for piece in output_slices(parameter, target.dtype):
            yield name, piece, moments.part(piece)


class DotSink:
    """Adds up, parameter by parameter, ⟨V_k, Γ⟩, ‖Γ‖² and ‖g‖² of the rows of a batch.

    Args:
        target: Whose parameters.
        estimator: Gives Γ.
        checkpoint: Gives the moments.
        directions: V_k at this checkpoint.
        cosine: Divide by ‖Γ‖; else by the directions' constant reference norm.
    """

    def __init__(
        self, target: Target, estimator: Estimator, checkpoint: Checkpoint, directions: Directions, *, cosine: bool
    ) -> None:
        self._reference = None if cosine else directions.reference_norms[estimator.name]
        self._gamma: dict[tuple[str, int], Direction] = {}
        self._vectors: dict[tuple[str, int], torch.Tensor] = {}
        for name, piece, moments in pieces_of(target, checkpoint):
            key = name, piece.start
            self._gamma[key] = estimator.bind(moments)
            self._vectors[key] = directions.vectors[name][:, piece].flatten(1).t().to(moments.first.device)
        self._subtasks = len(directions.subtasks)

    def start(self, rows: int) -> None:
        """Begins a batch."""
        self._rows = rows
        self._sums: dict[torch.device, torch.Tensor] = {}

    def take(self, name: str, rows: slice, gradients: torch.Tensor) -> None:
        """Adds one parameter's part."""
        self._add(name, rows, 0, gradients)

    def take_slice(self, name: str, rows: slice, outputs: slice, gradients: torch.Tensor) -> None:
        """Adds the part of some output rows of a large weight."""
        self._add(name, rows, outputs.start, gradients)

    def _add(self, name: str, rows: slice, start: int, gradients: torch.Tensor) -> None:
        gamma = self._gamma[name, start](gradients).flatten(1)
        dots = gamma @ self._vectors[name, start]
        squares = [part.norm(dim=1, keepdim=True).double().square() for part in (gamma, gradients.flatten(1))]
        # Within a layer float32 is enough; across layers sums are float64 (a float32 cosine came out as 1.0001). One
        # sum per device, so that nothing waits for a copy in the middle of the backward pass.
        device = gradients.device
        if device not in self._sums:
            self._sums[device] = torch.zeros(self._rows, self._subtasks + 2, dtype=torch.float64, device=device)
        self._sums[device][rows] += torch.cat([dots.double(), *squares], dim=1)

    def scores(self) -> torch.Tensor:
        """[B, K]."""
        return normalised(self._total()[:, :-2], self.norms())

    def norms(self) -> torch.Tensor:
        """What the dot products are divided by, [B, 1]."""
        squares = self._total()[:, -2:-1]
        return squares.sqrt() if self._reference is None else torch.full_like(squares, self._reference)

    def gradient_norms(self) -> torch.Tensor:
        """[B]."""
        return self._total()[:, -1].sqrt()

    def _total(self) -> torch.Tensor:
        return torch.stack([part.cpu() for part in self._sums.values()]).sum(0)
