"""Sinks: they reduce each parameter's per-sample gradients before these are dropped."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from optimsyn.influence.directions import Directions
from optimsyn.influence.estimators import Direction, Estimator, normalised
from optimsyn.influence.gradients.taps import output_slices
from optimsyn.influence.moments import Moments, moments_of
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint


def pieces_of(target: Target, checkpoint: Checkpoint) -> Iterator[tuple[str, slice, Moments]]:
    """Each trained parameter in the row slices of its gradient, with the moments of the slice."""
    for name, parameter in target.parameters.items():
        moments = moments_of(checkpoint, name, dtype=target.dtype, device=parameter.device)
        for piece in output_slices(parameter, target.dtype):
            yield name, piece, moments.part(piece)


class DotSink:
    """Sums ⟨V_k, Γ⟩, ‖Γ‖² and ‖g‖² of the rows of a batch, parameter by parameter.

    Everything that does not depend on samples is copied to the parameters' devices once, so reuse a sink. It never
    waits for a GPU before `results`. A linear Γ(g) = D ⊙ g is computed only if its norm is needed:
    ⟨V, D ⊙ g⟩ = ⟨V ⊙ D, g⟩.

    `cosine` divides by ‖Γ‖, else by the directions' constant reference norm.
    """

    def __init__(
        self, target: Target, estimator: Estimator, checkpoint: Checkpoint, directions: Directions, *, cosine: bool
    ) -> None:
        self._reference = None if cosine else directions.reference_norms[estimator.identity]
        self._gamma: dict[tuple[str, int], Direction | None] = {}
        self._vectors: dict[tuple[str, int], torch.Tensor] = {}
        # The row of each piece's sums in the table of its device.
        self._place: dict[tuple[str, int], int] = {}
        self._count: dict[torch.device, int] = {}
        folded = estimator.linear and not cosine
        for name, piece, moments in pieces_of(target, checkpoint):
            key, device = (name, piece.start), moments.first.device
            gamma = estimator.bind(moments)
            vectors = directions.vectors[name][:, piece].to(device)
            self._gamma[key] = None if folded else gamma
            self._vectors[key] = (gamma(vectors) if folded else vectors).flatten(1).t()
            self._place[key] = self._count.get(device, 0)
            self._count[device] = self._place[key] + 1
        self._subtasks = len(directions.subtasks)
        self._dtype = target.dtype

    def start(self, rows: int) -> None:
        """Begins a batch."""
        self._rows = rows
        # One row per parameter: ⟨V_k, Γ⟩ of every subtask, ‖Γ‖ where needed, ‖g‖. Within a layer float32 is enough;
        # across layers sums are float64 (a float32 cosine came out as 1.0001).
        self._table = {
            device: torch.zeros(count, rows, self._subtasks + 2, dtype=self._dtype, device=device)
            for device, count in self._count.items()
        }

    def take(self, name: str, rows: slice, gradients: torch.Tensor) -> None:
        """Adds one parameter's part."""
        self.take_slice(name, rows, slice(0, None), gradients)

    def take_slice(self, name: str, rows: slice, outputs: slice, gradients: torch.Tensor) -> None:
        """Adds the part of some output rows of a large weight."""
        key, flat = (name, outputs.start), gradients.flatten(1)
        out = self._table[gradients.device][self._place[key], rows]
        gamma = self._gamma[key]
        direction = flat if gamma is None else gamma(gradients).flatten(1)
        out[:, :-2] = direction @ self._vectors[key]
        if self._reference is None:
            torch.linalg.vector_norm(direction, dim=1, out=out[:, -2])
        torch.linalg.vector_norm(flat, dim=1, out=out[:, -1])

    def results(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [B, K] and gradient norms [B], float64, on the first parameter's device, without synchronisation."""
        total = self._total()
        return normalised(total[:, :-2], self._norms(total)), total[:, -1].sqrt()

    def norms(self) -> torch.Tensor:
        """The divisors of the dot products, [B, 1]."""
        return self._norms(self._total()).cpu()

    def _norms(self, total: torch.Tensor) -> torch.Tensor:
        squares = total[:, -2:-1]
        return squares.sqrt() if self._reference is None else torch.full_like(squares, self._reference)

    def _total(self) -> torch.Tensor:
        total: torch.Tensor | None = None
        for table in self._table.values():
            # Apple's GPUs have no float64.
            wide = (table.cpu() if table.device.type == "mps" else table).double()
            part = torch.cat([wide[..., :-2].sum(0), wide[..., -2:].square().sum(0)], dim=1)
            total = part if total is None else total + part.to(total.device)
        assert total is not None
        return total
