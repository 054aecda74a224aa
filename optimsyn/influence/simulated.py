r"""Short trainings foretold from gradients at the warm checkpoint: what a *set* of pairs would do.

A score of a single pair takes the pair as if it stood alone. A hundred pairs with the same answer each look as good as
the first, and training on them collapses. Here a training on any set is foretold instead, without running it. The model
is taken as linear in its weights (its tangent kernel at θ, Jacot et al. 2018), but not its losses:

- A loss ℓ is taken as that of a logistic margin, ℓ = log(1 + e^{-μ}) with p = e^{-ℓ}, so that a step δ of the weights
  moves the margin of a question by -⟨g, δ⟩ / (1-p) and the gradient of a pair shrinks by (1-p_t) / (1-p_0) as it is
  learnt. That is exact for two outcomes; of a longer answer p is the geometric mean over its tokens.
- The steps are AdamW's: the gradient of the batch is clipped, momentum goes on from the checkpoint's m, and √v̂ is that
  of the checkpoint (over a dozen steps it hardly changes).

Everything it needs are inner products: of questions and pairs under Adam's preconditioner D = 1 / (√v̂ + ε),
⟨g_q, D g_i⟩, of pairs with each other, ⟨g_j, D g_i⟩ and ⟨g_j, g_i⟩ (for the clipping), and of all with m. There is no
free constant. Batches are replaced by their mean over the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from optimsyn.errors import DataError
from optimsyn.influence.gradients import GradientTaps
from optimsyn.influence.moments import moments_of
from optimsyn.influence.projection import Layout, Projection
from optimsyn.influence.trainings import rates_of
from optimsyn.models.encoding import Encoded
from optimsyn.models.target import Target
from optimsyn.models.warm_up import Checkpoint

_SMALLEST_LOSS = 1e-3
# Above so many bytes of gradients a projection takes their place.
_WHOLE_BYTES = 2**30
_SHORTLIST = 24


@dataclass(frozen=True)
class SimulatedTraining:
    """Foretells trainings on sets of n pairs, measured on Q questions. Tensors are float64 on the CPU.

    Attributes:
        question_kernel: ⟨g_q, D g_i⟩ [Q, n].
        pair_kernel: ⟨g_j, D g_i⟩ [n, n].
        gram: ⟨g_j, g_i⟩ [n, n].
        question_momentum: ⟨g_q, D m⟩ [Q].
        pair_momentum: ⟨g_i, D m⟩ [n].
        question_losses: [Q], in nats.
        pair_losses: [n].
        step: Optimiser steps before.
        beta1: Decay of the momentum.
        lr: Learning rate of the first step; it falls linearly, as in fine-tuning (`Trainings`).
        steps: How many are foretold.
        max_grad_norm: Clipping of the batch's gradient; None: none.
    """

    question_kernel: torch.Tensor
    pair_kernel: torch.Tensor
    gram: torch.Tensor
    question_momentum: torch.Tensor
    pair_momentum: torch.Tensor
    question_losses: torch.Tensor
    pair_losses: torch.Tensor
    step: int
    beta1: float
    lr: float
    steps: int
    max_grad_norm: float | None

    @classmethod
    def of(
        cls,
        target: Target,
        checkpoint: Checkpoint,
        pairs: Sequence[Encoded],
        questions: Sequence[Encoded],
        *,
        lr: float,
        steps: int,
        max_grad_norm: float | None = 1.0,
        batch_tokens: int = 1024,
        projection: Projection | None = None,
    ) -> SimulatedTraining:
        """One backward pass of every pair and question.

        Args:
            target: Its adapter is set to the checkpoint, and left there.
            checkpoint: Where training would go on from.
            pairs: Encoded as they would be trained on, with every label.
            questions: Encoded as what counts of them.
            lr: Learning rate of the training that is foretold.
            steps: Its steps.
            max_grad_norm: Its clipping.
            batch_tokens: Tokens a batch.
            projection: Of the gradients; None: whole ones where those of all pairs and questions fit into a gigabyte,
                else the default `Projection`.

        Raises:
            DataError: There is no pair or no question.
            ModelError: A loss or gradient is not finite.
        """
        if not pairs or not questions:
            raise DataError("a training can only be foretold for at least one pair, and of at least one question")
        size = sum(parameter.numel() for parameter in target.parameters.values()) * target.dtype.itemsize
        if projection is None and (2 * len(pairs) + len(questions)) * size > _WHOLE_BYTES:
            projection = Projection()
        layout = Layout({name: tuple(p.shape) for name, p in target.parameters.items()}, projection)
        target.load_checkpoint(checkpoint)
        taps = GradientTaps(target)
        roots, momentum = {}, []
        for name, parameter in target.parameters.items():
            moments = moments_of(checkpoint, name, dtype=target.dtype, device=parameter.device)
            scale = 1 / ((moments.second / (1 - moments.betas[1] ** moments.step)).sqrt() + moments.eps)
            roots[name] = scale.sqrt()
            momentum.append(layout.project(name, (roots[name] * moments.first)[None]).cpu())
        asked, question_losses = _features(target, taps, layout, questions, batch_tokens, [roots])
        held, pair_losses = _features(target, taps, layout, pairs, batch_tokens, [roots, None])
        scaled, plain = held
        drift = torch.cat(momentum, dim=1)[0].double()
        return cls(
            question_kernel=_products(asked[0], scaled),
            pair_kernel=_products(scaled, scaled),
            gram=_products(plain, plain),
            question_momentum=_products(asked[0], drift[None].to(asked[0]))[:, 0],
            pair_momentum=_products(scaled, drift[None].to(scaled))[:, 0],
            question_losses=question_losses,
            pair_losses=pair_losses,
            step=checkpoint.step,
            beta1=checkpoint.betas[0],
            lr=lr,
            steps=steps,
            max_grad_norm=max_grad_norm,
        )

    def __len__(self) -> int:
        return len(self.pair_losses)

    def losses(self, weights: torch.Tensor) -> torch.Tensor:
        """The questions' losses after training.

        Args:
            weights: [C, n], for each of C trainings the share of every pair in the batch's mean; rows sum to 1.
                Gradients flow to them where they are enabled.

        Returns:
            [C, Q], in nats.
        """
        known, learnt = (torch.exp(-x.clamp_min(_SMALLEST_LOSS)) for x in (self.question_losses, self.pair_losses))
        count = len(weights)
        question = torch.logit(known).expand(count, -1)
        pair = torch.logit(learnt).expand(count, -1)
        question_drift = self.question_momentum.expand(count, -1)
        pair_drift = self.pair_momentum.expand(count, -1)
        for number, rate in enumerate(rates_of(self.lr, self.steps, decay=True), 1):
            now = weights * torch.sigmoid(-pair) / (1 - learnt)
            if self.max_grad_norm is not None:
                length = ((now @ self.gram) * now).sum(1, keepdim=True).clamp_min(1e-30).sqrt()
                now = now * (self.max_grad_norm / length).clamp(max=1.0)
            question_drift = self.beta1 * question_drift + (1 - self.beta1) * (now @ self.question_kernel.t())
            pair_drift = self.beta1 * pair_drift + (1 - self.beta1) * (now @ self.pair_kernel)
            fix = rate / (1 - self.beta1 ** (self.step + number))
            question = question + fix * question_drift / (1 - known)
            pair = pair + fix * pair_drift / (1 - learnt)
        return torch.nn.functional.softplus(-question)

    def decrease(self, sets: Sequence[Sequence[int]]) -> torch.Tensor:
        """How much training on each of some sets lowers the questions' mean loss, [C]; a set's pairs weigh the same."""
        weights = torch.zeros(len(sets), len(self), dtype=torch.float64)
        for row, members in enumerate(sets):
            for place in members:
                weights[row, place] += 1 / len(members)
        start = torch.exp(-self.question_losses.clamp_min(_SMALLEST_LOSS)).log().neg().mean()
        return start - self.losses(weights).mean(1)

    def marginal(self, given: Sequence[int]) -> torch.Tensor:
        """What each pair adds to a set that has been chosen, [n]: the slope of `decrease` as its share grows from 0.

        The share of the others shrinks as that of the new one grows, so a pair that is no better than what is there
        already adds 0. Of an empty set: of all pairs together.
        """
        weights = torch.zeros(1, len(self), dtype=torch.float64)
        weights[0, list(given) or slice(None)] = 1 / (len(given) or len(self))
        weights.requires_grad_()
        with torch.enable_grad():
            loss = self.losses(weights).mean()
            (slope,) = torch.autograd.grad(loss, weights)
        return (slope * weights.detach()).sum() - slope[0]

    def select(self, count: int, among: Sequence[int] | None = None) -> list[int]:
        """Pairs of which training helps most, chosen one by one, each for what it adds to those before.

        Of every round's pairs those with the largest slope are tried in full, and the best of them is taken.

        Args:
            count: How many.
            among: Only these pairs may be chosen; None: all.

        Returns:
            Places of the pairs, in the order in which they were chosen.

        Raises:
            DataError: There are fewer pairs.
        """
        left = list(range(len(self)) if among is None else among)
        if count > len(left):
            raise DataError(f"{count} pairs cannot be chosen from {len(left)}")
        chosen: list[int] = []
        while len(chosen) < count:
            slopes = self.marginal(chosen)
            short = sorted(left, key=lambda place: (-float(slopes[place]), place))[:_SHORTLIST]
            gains = self.decrease([[*chosen, place] for place in short])
            best = short[int(gains.argmax())]
            chosen.append(best)
            left.remove(best)
        return chosen


def _features(
    target: Target,
    taps: GradientTaps,
    layout: Layout,
    encoded: Sequence[Encoded],
    batch_tokens: int,
    scales: Sequence[dict[str, torch.Tensor] | None],
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """For each scale the projected gradients [n, width], multiplied with it (None: as they are), and losses [n]."""
    rows = [torch.empty(len(encoded), layout.width, dtype=target.dtype) for _ in scales]
    losses = torch.empty(len(encoded), dtype=torch.float64)
    places, offset = {}, 0
    for name, width in layout.widths.items():
        places[name] = slice(offset, offset + width)
        offset += width
    with taps.attached():
        for batch in target.batches(list(encoded), batch_tokens):
            found = taps.run(batch, _Sink(layout, places, batch.indices, rows, scales))
            losses[batch.indices] = found.double().cpu()
    return rows, losses


class _Sink:
    """Writes projected gradients into rows."""

    def __init__(
        self,
        layout: Layout,
        places: dict[str, slice],
        indices: list[int],
        rows: list[torch.Tensor],
        scales: Sequence[dict[str, torch.Tensor] | None],
    ) -> None:
        self._layout, self._places, self._indices = layout, places, indices
        self._rows, self._scales = rows, scales

    def take(self, name: str, rows: slice, gradients: torch.Tensor) -> None:
        """Writes these rows."""
        for held, scale in zip(self._rows, self._scales, strict=True):
            part = gradients if scale is None else gradients * scale[name]
            held[self._indices[rows], self._places[name]] = self._layout.project(name, part).cpu()


def _products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[n, m] float64; columns in blocks, so that sums of a million float32 products keep their digits."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    for start in range(0, left.shape[1], 2**16):
        part = slice(start, start + 2**16)
        total += left[:, part].double() @ right[:, part].double().t()
    return total
