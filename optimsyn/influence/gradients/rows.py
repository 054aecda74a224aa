"""Per-sample gradients held as rows: of questions, of pairs, plain and under Adam's preconditioner.

Simulated trainings and rewards with a history need inner products of single samples with each other, where a score
needs only those with one direction. So the gradients are kept, whole where they fit, else projected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from optimsyn.influence.gradients.projection import Layout, Projection
from optimsyn.influence.gradients.taps import GradientTaps
from optimsyn.influence.moments import moments_of
from optimsyn.target.encoding import Encoded
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint

WHOLE_BYTES = 2**30
"""Most bytes of held gradients; larger ones are projected."""

# Each projection to try is half as wide as the previous one; a narrower one leaves only noise.
_SIZES = (32, 16, 8, 4)
# Of one operand of a product, in float64.
_PRODUCT_VALUES = 2**24

Scale = Mapping[str, torch.Tensor] | None
"""The factor of gradients, parameter name -> the parameter's shape; None does not scale."""


def layout_of(target: Target, projection: Projection | None = None) -> Layout:
    """The layout of a target's gradients under a projection; None keeps them whole."""
    return Layout({name: tuple(parameter.shape) for name, parameter in target.parameters.items()}, projection)


def layout_for(target: Target, rows: int, *, limit: int = WHOLE_BYTES, projection: Projection | None = None) -> Layout:
    """The layout that holds this many gradients within a limit: whole, or the widest projection that fits."""
    choices = [None, *(Projection(size, size) for size in _SIZES)] if projection is None else [projection]
    layouts = [layout_of(target, choice) for choice in choices]
    fitting = [layout for layout in layouts if rows * layout.width * target.dtype.itemsize <= limit]
    return (fitting or layouts[-1:])[0]


@dataclass(frozen=True)
class AdamScale:
    """Adam's preconditioner at a checkpoint.

    Attributes:
        roots: Parameter name -> √D, with D = 1 / (√v̂ + ε).
        drift: √D m of all parameters in one row [width], float64 on the CPU.
    """

    roots: dict[str, torch.Tensor]
    drift: torch.Tensor

    @classmethod
    def of(cls, target: Target, checkpoint: Checkpoint, layout: Layout) -> AdamScale:
        """From the moments of a checkpoint."""
        roots, momentum = {}, []
        for name, parameter in target.parameters.items():
            moments = moments_of(checkpoint, name, dtype=target.dtype, device=parameter.device)
            scale = 1 / ((moments.second / (1 - moments.betas[1] ** moments.step)).sqrt() + moments.eps)
            roots[name] = scale.sqrt()
            momentum.append(layout.project(name, (roots[name] * moments.first)[None]).cpu())
        return cls(roots, torch.cat(momentum, dim=1)[0].double())


def gradient_rows(
    taps: GradientTaps,
    layout: Layout,
    encoded: Sequence[Encoded],
    scales: Sequence[Scale],
    *,
    batch_tokens: int = 1024,
    report: Callable[[int], None] | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The gradients of samples at the target's current weights.

    Args:
        taps: Of the target.
        layout: How gradients are held.
        encoded: The samples.
        scales: The gradients are returned once for each of these factors.
        batch_tokens: Tokens per batch; 1 puts each sample in its own batch, so that its row does not depend on its
            neighbours' lengths, to the last bit.
        report: Called with the number of samples of each finished batch.

    Returns:
        For each scale [n, width], and the losses [n] float64.
    """
    target = taps.target
    rows = [torch.empty(len(encoded), layout.width, dtype=target.dtype) for _ in scales]
    losses = torch.empty(len(encoded), dtype=torch.float64)
    places, offset = {}, 0
    for name, width in layout.widths.items():
        places[name] = slice(offset, offset + width)
        offset += width
    with taps.attached():
        for batch in target.batches(list(encoded), batch_tokens):
            batch_losses = taps.run(batch, _Sink(layout, places, batch.indices, rows, scales))
            losses[batch.indices] = batch_losses.double().cpu()
            if report is not None:
                report(len(batch))
    return rows, losses


class _Sink:
    """Writes projected gradients into rows."""

    def __init__(
        self,
        layout: Layout,
        places: dict[str, slice],
        indices: list[int],
        rows: list[torch.Tensor],
        scales: Sequence[Scale],
    ) -> None:
        self._layout, self._places, self._indices = layout, places, indices
        self._rows, self._scales = rows, scales

    def take(self, name: str, rows: slice, gradients: torch.Tensor) -> None:
        for held, scale in zip(self._rows, self._scales, strict=True):
            part = gradients if scale is None else gradients * scale[name]
            held[self._indices[rows], self._places[name]] = self._layout.project(name, part).cpu()


def products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Inner products of rows, [n, m] float64.

    In blocks of columns: sums of a million float32 products keep their digits, and float64 copies stay small.
    """
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    block = max(1, min(2**16, _PRODUCT_VALUES // max(len(left), len(right), 1)))
    for start in range(0, left.shape[1], block):
        part = slice(start, start + block)
        total += left[:, part].double() @ right[:, part].double().t()
    return total
