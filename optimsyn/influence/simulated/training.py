r"""Short trainings simulated from gradients at the warm checkpoint: the effect of a *set* of pairs.

The score of a single pair ignores the others. A hundred pairs with the same answer each look as good as the first, and
training on them collapses. Here a training on any set is simulated instead, without running it. The
model is taken as linear in its weights (its tangent kernel at θ, Jacot et al. 2018), but not its losses:

- A loss ℓ is taken as that of a logistic margin, ℓ = log(1 + e^{-μ}) with p = e^{-ℓ}, so that a step δ of the weights
  moves the margin of a question by -⟨g, δ⟩ / (1-p) and the gradient of a pair shrinks by (1-p_t) / (1-p_0) as it is
  learnt. That is exact for two outcomes; of a longer answer p is the geometric mean over its tokens.
- The steps are AdamW's: the gradient of the batch is clipped, momentum goes on from the checkpoint's m, and √v̂ is that
  of the checkpoint (over a dozen steps it hardly changes).

It needs inner products: of questions and pairs under Adam's preconditioner D = 1 / (√v̂ + ε), ⟨g_q, D g_i⟩, of
pairs with each other, ⟨g_j, D g_i⟩ and ⟨g_j, g_i⟩ (for the clipping), and of all with m. There is no free constant.
Batches are replaced by their mean over the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from optimsyn.base.errors import DataError
from optimsyn.influence.gradients.projection import Projection
from optimsyn.influence.gradients.rows import AdamScale, gradient_rows, layout_for, products
from optimsyn.influence.gradients.taps import GradientTaps
from optimsyn.influence.trainings import rates_of
from optimsyn.target.encoding import Encoded
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint

HORIZON = 12
"""Steps for which real trainings confirm the prediction; selection looks no further (docs/concepts/selection.md)."""

_SMALLEST_LOSS = 1e-3
_SHORTLIST = 24
# A round of `select` adds at most this share to the chosen pairs: one by one up to twice its inverse.
_GROWTH = 16


@dataclass(frozen=True)
class WarmGradients:
    """Gradients and losses of pairs and questions at a warm-up checkpoint (see `optimsyn.influence.gradients.rows`).

    Attributes:
        checkpoint: The checkpoint.
        scale: Its preconditioner, under the layout of the gradients.
        questions: Gradients of the questions times `scale.roots` [Q, width].
        question_losses: [Q].
        scaled: Gradients of the pairs times `scale.roots` [n, width].
        plain: Unscaled gradients of the pairs [n, width].
        losses: Of the pairs [n].
    """

    checkpoint: Checkpoint
    scale: AdamScale
    questions: torch.Tensor
    question_losses: torch.Tensor
    scaled: torch.Tensor
    plain: torch.Tensor
    losses: torch.Tensor

    @classmethod
    def of(
        cls,
        target: Target,
        checkpoint: Checkpoint,
        pairs: Sequence[Encoded],
        questions: Sequence[Encoded],
        *,
        batch_tokens: int = 1024,
        projection: Projection | None = None,
    ) -> WarmGradients:
        """One backward pass of every pair and question.

        Args:
            target: Its adapter is set to the checkpoint and left there.
            checkpoint: The start of the training.
            pairs: Encoded for training, with every label.
            questions: Encoded with the labels that count.
            batch_tokens: Tokens per batch.
            projection: Of the gradients; None keeps them whole where those of all pairs and questions fit into a
                gigabyte, else uses the default `Projection`.

        Raises:
            DataError: There is no pair or no question.
            ModelError: A loss or gradient is not finite.
        """
        if not pairs or not questions:
            raise DataError("predicting a training needs at least one pair and one question")
        layout = layout_for(target, 2 * len(pairs) + len(questions), projection=projection)
        target.load_checkpoint(checkpoint)
        taps = GradientTaps(target)
        scale = AdamScale.of(target, checkpoint, layout)
        (asked,), asked_losses = gradient_rows(taps, layout, questions, [scale.roots], batch_tokens=batch_tokens)
        (scaled, plain), losses = gradient_rows(taps, layout, pairs, [scale.roots, None], batch_tokens=batch_tokens)
        return cls(checkpoint, scale, asked, asked_losses, scaled, plain, losses)


@dataclass(frozen=True)
class SimulatedTraining:
    """Simulates trainings on sets of n pairs, measured on Q questions. Tensors are float64 on the CPU.

    Attributes:
        question_kernel: ⟨g_q, D g_i⟩ [Q, n].
        pair_kernel: ⟨g_j, D g_i⟩ [n, n].
        gram: ⟨g_j, g_i⟩ [n, n].
        question_momentum: ⟨g_q, D m⟩ [Q].
        pair_momentum: ⟨g_i, D m⟩ [n].
        question_losses: [Q], in nats.
        pair_losses: [n].
        step: Earlier optimiser steps.
        beta1: Decay of the momentum.
        lr: Learning rate of the first step; it falls linearly, as in fine-tuning (`Trainings`).
        steps: How many steps are predicted.
        max_grad_norm: Clipping of the batch's gradient; None does not clip.
        lengths: What the sums over the answers' tokens are divided by in the questions' losses, [Q]. With them sets are
            compared by the mean probability of the answers in place of the mean loss.
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
    lengths: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        gradients: WarmGradients,
        *,
        lr: float,
        steps: int,
        max_grad_norm: float | None = 1.0,
        lengths: Sequence[float] | None = None,
    ) -> SimulatedTraining:
        """A training that continues from the checkpoint of the gradients.

        Args:
            gradients: Of the pairs and questions at the checkpoint.
            lr: Learning rate of the simulated training.
            steps: Its steps.
            max_grad_norm: Its clipping.
            lengths: Of the answers, to compare sets by their probability.
        """
        asked, scaled, plain = gradients.questions, gradients.scaled, gradients.plain
        drift = gradients.scale.drift[None]
        return cls(
            question_kernel=products(asked, scaled),
            pair_kernel=products(scaled, scaled),
            gram=products(plain, plain),
            question_momentum=products(asked, drift)[:, 0],
            pair_momentum=products(scaled, drift)[:, 0],
            question_losses=gradients.question_losses,
            pair_losses=gradients.losses,
            step=gradients.checkpoint.step,
            beta1=gradients.checkpoint.betas[0],
            lr=lr,
            steps=steps,
            max_grad_norm=max_grad_norm,
            lengths=None if lengths is None else torch.tensor(lengths, dtype=torch.float64),
        )

    def of_places(self, places: Sequence[int]) -> SimulatedTraining:
        """The same for some of the pairs, renumbered from 0."""
        kept = torch.tensor(list(places), dtype=torch.int64)
        return replace(
            self,
            question_kernel=self.question_kernel[:, kept],
            pair_kernel=self.pair_kernel[kept][:, kept],
            gram=self.gram[kept][:, kept],
            pair_momentum=self.pair_momentum[kept],
            pair_losses=self.pair_losses[kept],
        )

    def __len__(self) -> int:
        return len(self.pair_losses)

    def start(self) -> torch.Tensor:
        """The questions' losses before training, [Q]; like all losses here at least .001."""
        return self.question_losses.clamp_min(_SMALLEST_LOSS)

    def losses(self, weights: torch.Tensor) -> torch.Tensor:
        """The questions' losses after training.

        Args:
            weights: [C, n], for each of C trainings the share of every pair in the batch's mean; rows sum to 1.
                Gradients flow to them where they are enabled.

        Returns:
            [C, Q], in nats.
        """
        probability, learnt = (
            torch.exp(-x.clamp_min(_SMALLEST_LOSS)) for x in (self.question_losses, self.pair_losses)
        )
        count = len(weights)
        question = torch.logit(probability).expand(count, -1)
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
            question = question + fix * question_drift / (1 - probability)
            pair = pair + fix * pair_drift / (1 - learnt)
        return torch.nn.functional.softplus(-question)

    def decrease(self, sets: Sequence[Sequence[int]]) -> torch.Tensor:
        """The decrease of the questions' mean loss by training on each set, [C]; a set's pairs weigh the same.

        With `lengths` the increase of the answers' mean probability.
        """
        weights = torch.zeros(len(sets), len(self), dtype=torch.float64)
        for row, members in enumerate(sets):
            for place in members:
                weights[row, place] += 1 / len(members)
        return self._compared(self.start()).mean() - self._compared(self.losses(weights)).mean(1)

    def _compared(self, losses: torch.Tensor) -> torch.Tensor:
        """Losses [..., Q], or the answers' probabilities with the sign of losses."""
        return losses if self.lengths is None else -torch.exp(-self.lengths * losses)

    def marginal(self, history: Sequence[int]) -> torch.Tensor:
        """What each pair adds to a chosen set, [n]: the slope of `decrease` as its share grows from 0.

        The share of the others shrinks as that of the new one grows, so a pair that is no better than the chosen ones
        adds 0. An empty set stands for all pairs together.
        """
        weights = torch.zeros(1, len(self), dtype=torch.float64)
        weights[0, list(history) or slice(None)] = 1 / (len(history) or len(self))
        weights.requires_grad_()
        with torch.enable_grad():
            loss = self._compared(self.losses(weights)).mean()
            (slope,) = torch.autograd.grad(loss, weights)
        return (slope * weights.detach()).sum() - slope[0]

    def select(self, count: int, among: Sequence[int] | None = None) -> list[int]:
        """The pairs that help most in training, chosen in rounds, each for what it adds to the earlier ones.

        The first 32 are chosen one by one: the pairs with the largest slope are simulated in full, and the best of them
        is chosen. A larger set grows by a sixteenth per round, by the pairs of largest slope, which nearly equals their
        effect. So a thousand pairs take some ninety rounds, and nearly all simulated trainings belong to the first 32.

        Args:
            count: How many.
            among: Choose only among these pairs; None allows all.

        Returns:
            Indices of the pairs in the order of choice; the first of equal ones.

        Raises:
            DataError: There are fewer pairs.
        """
        places = list(range(len(self)) if among is None else among)
        if count > len(places):
            raise DataError(f"{count} pairs cannot be chosen from {len(places)}")
        return [places[i] for i in (self if among is None else self.of_places(places))._chosen(count)]

    def _chosen(self, count: int) -> list[int]:
        chosen: list[int] = []
        left = list(range(len(self)))
        while len(chosen) < count:
            slopes = self.marginal(chosen).tolist()
            order = sorted(left, key=lambda place: (-slopes[place], place))
            taken = order[: min(len(chosen) // _GROWTH, count - len(chosen))]
            if len(taken) < 2:
                short = order[:_SHORTLIST]
                # Only these have weight, so only they are trained.
                part = self.of_places([*chosen, *short])
                held = list(range(len(chosen)))
                gains = part.decrease([[*held, len(chosen) + i] for i in range(len(short))])
                taken = [short[int(gains.argmax())]]
            chosen += taken
            left = sorted(set(left) - set(taken))
        return chosen
