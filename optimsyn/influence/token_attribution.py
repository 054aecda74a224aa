r"""The share of each label token in a sample's score: one backward pass and one forward-mode pass per batch.

A direction is Γ(g) = c(g) + D(g) ⊙ g, where c comes from momentum (see `Estimator.gain`). A sample's gradient is the
mean of its T label tokens' gradients g_t, so its score is

    ⟨V, Γ(g)⟩ / n = ⟨V, c⟩ / n + Σ_t share_t            share_t = ⟨V ⊙ D(g), g_t⟩ / (n T)

with n the norm that the score is divided by. The shares sum to the score minus the first term, the contribution of
momentum alone; without momentum they sum to the score. ⟨w, g_t⟩ with w = V ⊙ D(g) is the directional derivative of
token t's loss along w. Forward-mode differentiation gives those of all tokens at once, and since a sample's tokens do
not see another sample, each row of a batch can have its own direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optimsyn.influence.directions import Directions
from optimsyn.influence.estimators import Direction, Estimator, normalised
from optimsyn.influence.gradients.slopes import token_slopes
from optimsyn.influence.gradients.taps import GradientTaps, small_batches
from optimsyn.influence.sinks import DotSink, pieces_of
from optimsyn.target.encoding import Encoded
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint


def token_shares(
    taps: GradientTaps,
    sink: TangentSink,
    encoded: Sequence[Encoded],
    winners: torch.Tensor | None,
    *,
    batch_tokens: int,
) -> list[torch.Tensor]:
    """A float64 tensor [label tokens] of shares for each sample, at one checkpoint, which must be loaded.

    A direction for each sample of a batch is held; batches are cut so that this takes at most half a gigabyte (or one
    sample's direction). With bfloat16 layers the forward-mode pass rounds as they do.

    The shares split the score of the subtask `winners` [n], or the mean over subtasks.
    """
    target = taps.target
    rows = [torch.empty(0, dtype=torch.float64)] * len(encoded)
    for indices, batch in small_batches(target, encoded, batch_tokens):
        sink.choose(None if winners is None else winners[indices])
        sink.start(len(batch))
        with taps.attached():
            taps.run(batch, sink)
        slopes = token_slopes(target, taps, batch, sink.tangents, cure="score without token shares")
        counts = torch.bincount(slopes.rows, minlength=len(batch))
        shares = normalised(slopes.slopes * slopes.weights, sink.norms().flatten()[slopes.rows])
        for index, part in zip(indices, torch.split(shares, counts.tolist()), strict=True):
            rows[index] = part
    return rows


class TangentSink(DotSink):
    """Also keeps w = V ⊙ D(g) of every parameter and row."""

    def __init__(
        self, target: Target, estimator: Estimator, checkpoint: Checkpoint, directions: Directions, *, cosine: bool
    ) -> None:
        super().__init__(target, estimator, checkpoint, directions, cosine=cosine)
        self._parameters = target.parameters
        self._directions = directions
        self._gain: dict[tuple[str, int], Direction] = {
            (name, piece.start): estimator.gain(moments) for name, piece, moments in pieces_of(target, checkpoint)
        }
        self._chosen: torch.Tensor | None = None
        self.tangents: dict[str, torch.Tensor] = {}

    def choose(self, subtasks: torch.Tensor | None) -> None:
        """The subtask of each row of the next batch; None for the mean."""
        self._chosen = subtasks

    def start(self, rows: int) -> None:
        """Begins a batch and drops the previous one's tangents."""
        super().start(rows)
        self.tangents = {}

    def take_slice(self, name: str, rows: slice, outputs: slice, gradients: torch.Tensor) -> None:
        """Keeps the direction of these rows too."""
        super().take_slice(name, rows, outputs, gradients)
        if name not in self.tangents:
            shape = self._rows, *self._parameters[name].shape
            self.tangents[name] = torch.empty(shape, dtype=gradients.dtype, device=gradients.device)
        start = outputs.start
        piece = slice(start, start + gradients.shape[1])
        vectors = self._directions.vectors[name][:, piece]
        vector = vectors.mean(0, keepdim=True) if self._chosen is None else vectors[self._chosen[rows]]
        torch.mul(self._gain[name, start](gradients), vector.to(gradients), out=self.tangents[name][rows, piece])
