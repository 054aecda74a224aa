"""Real trainings from one warm-up checkpoint, many side by side: the ground truth for scores.

Each training continues from the checkpoint's weights θ, moments m, v and step count t with AdamW as in fine-tuning (no
weight decay, clipped gradients, a linearly decaying rate), on the batches of its schedule. It trains on every token, as
fine-tuning does, and measures the loss of questions over the tokens that count.

The trainings share only the frozen model. Their batches go through it together, each group of rows with its own
weights, so that twenty short trainings cost little more than the forward passes of their tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

from optimsyn.base.errors import DataError, ModelError
from optimsyn.base.identity import Identity, digest_of
from optimsyn.influence.derivative.twin_adapters import Twins
from optimsyn.target.encoding import Batch, Encoded, pad
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint

Schedule = Sequence[Sequence[int]]
"""For each step the indices of its batch in the pool; an index may occur more than once."""


def rates_of(lr: float, steps: int, *, decay: bool) -> list[float]:
    """The learning rate of each step."""
    return [lr * (steps - step) / steps if decay else lr for step in range(steps)]


def schedule(members: Sequence[int], steps: int, batch_size: int, seed: int) -> Schedule:
    """Batches for `steps` steps: pass after pass over all members, each in a new order."""
    generator = random.Random(f"order {seed}")
    waiting: list[int] = []
    batches = []
    for _ in range(steps):
        while len(waiting) < batch_size:
            order = list(members)
            generator.shuffle(order)
            waiting += order
        batches.append(waiting[:batch_size])
        waiting = waiting[batch_size:]
    return batches


@dataclass
class _State:
    """M trainings: parameter name -> [M, *shape] each."""

    weights: dict[str, torch.Tensor]
    first: dict[str, torch.Tensor]
    second: dict[str, torch.Tensor]
    step: int


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a short training.

    Attributes:
        lr: Learning rate of the first step; None: the checkpoint's.
        decay: The rate falls linearly over a schedule, to 0 after its last step, as in fine-tuning; else constant.
        max_grad_norm: Gradient clipping; None does not clip.
    """

    lr: float | None = None
    decay: bool = True
    max_grad_norm: float | None = 1.0


class Trainings:
    """Short trainings of one target from one checkpoint.

    Args:
        target: Its trained parameters are weights or biases of `nn.Linear` modules, as LoRA's are.
        checkpoint: Where every training starts.
        pool: The samples to train on.
        questions: The questions to measure, with the labels that count (`optimsyn.target.encoding.counted`).
        settings: Rate and clipping.
        rows: Most samples of all trainings per forward pass.
    """

    def __init__(
        self,
        target: Target,
        checkpoint: Checkpoint,
        pool: Sequence[Encoded],
        questions: Sequence[Encoded],
        settings: TrainingSettings = TrainingSettings(),
        *,
        rows: int = 32,
    ) -> None:
        if not questions:
            raise DataError("trainings need at least one question whose loss is measured")
        self.target = target
        self.checkpoint = checkpoint
        self.lr = checkpoint.lr if settings.lr is None else settings.lr
        self.decay = settings.decay
        self.max_grad_norm = settings.max_grad_norm
        self._pool = list(pool)
        self._questions = list(questions)
        self._rows = rows
        self._twins = Twins(target)
        (tried, *_) = target.batches(self._questions[:1])
        target.load_checkpoint(checkpoint)
        target.try_out(tried)
        if not self._groups_stay_apart():
            self._rows = 1

    @property
    def identity(self) -> Identity:
        """Everything that changes a result."""
        texts = [[[i.id, i.input_ids, i.labels, i.weights] for i in items] for items in (self._pool, self._questions)]
        return Identity.of(
            {
                "the rule of training": 1,
                "the target": self.target.fingerprint(),
                "its checkpoint": self.checkpoint.fingerprint,
                "the number format or the settings": [
                    str(self.target.dtype),
                    self.lr,
                    self.decay,
                    self.max_grad_norm,
                ],
                "the pool or the questions": texts,
            },
            digest_of,
        )

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with everything that changes a result."""
        return self.identity.digest

    def together(self, schedules: Iterable[Schedule]) -> int:
        """How many of these trainings run side by side."""
        return max(1, self._rows // max((len(step) for schedule in schedules for step in schedule), default=1))

    def start(self) -> torch.Tensor:
        """The questions' losses before any training, [Q] float64."""
        return self._losses(self._begin(1).weights)[0]

    def run(
        self, schedules: Sequence[Schedule], looks: Collection[int], report: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """Trains by each schedule and measures the questions' losses on the way.

        Args:
            schedules: All of one length and one batch size.
            looks: Steps after which to measure losses; 1 is the first step.
            report: Called with the number of trainings of each finished group.

        Returns:
            [schedules, looks, Q] float64, looks in ascending order.

        Raises:
            DataError: Schedules differ in length or batch size, or a look is out of range.
            ModelError: A loss is not finite.
        """
        if not schedules:
            return torch.zeros(0, len(looks), len(self._questions), dtype=torch.float64)
        sizes = {len(step) for schedule in schedules for step in schedule}
        lengths = {len(schedule) for schedule in schedules}
        if len(sizes) != 1 or len(lengths) != 1 or 0 in sizes:
            raise DataError("the schedules of trainings side by side must have one length and one batch size")
        (length,) = lengths
        wanted = sorted(set(looks))
        if not wanted or wanted[0] < 1 or wanted[-1] > length:
            raise DataError(f"looks must lie between step 1 and step {length}, the schedules' length")
        together = self.together(schedules)
        parts = []
        for begin in range(0, len(schedules), together):
            group = schedules[begin : begin + together]
            parts.append(self._train(group, wanted))
            if report is not None:
                report(len(group))
        self.target.load_checkpoint(self.checkpoint)
        return torch.cat(parts)

    def _groups_stay_apart(self) -> bool:
        """Whether a group's losses are independent of the other groups' weights.

        Where a layer reorders its inputs (routed experts), groups of rows cannot have separate weights; trainings then
        run one after the other.
        """
        alone = self._begin(1).weights
        other = {name: torch.cat([value, torch.zeros_like(value)]) for name, value in alone.items()}
        single, double = (self._losses(weights, self._questions[:2])[0] for weights in (alone, other))
        return bool(torch.allclose(single, double, rtol=1e-3, atol=1e-3))

    def _train(self, schedules: Sequence[Schedule], looks: list[int]) -> torch.Tensor:
        state = self._begin(len(schedules))
        losses = []
        for number in range(1, looks[-1] + 1):
            rates = rates_of(self.lr, len(schedules[0]), decay=self.decay)
            self._step(state, [schedule[number - 1] for schedule in schedules], rates[number - 1])
            if number in looks:
                losses.append(self._losses(state.weights))
        return torch.stack(losses, dim=1)

    def _begin(self, count: int) -> _State:
        dtype, device = self.target.dtype, self.target.device

        def spread(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {
                name: tensors[name].to(device, dtype).expand(count, *tensors[name].shape).clone()
                for name in self.target.parameters
            }

        checkpoint = self.checkpoint
        return _State(
            spread(checkpoint.state), spread(checkpoint.exp_avg), spread(checkpoint.exp_avg_sq), checkpoint.step
        )

    def _step(self, state: _State, batches: Sequence[Sequence[int]], lr: float) -> None:
        count, size = len(batches), len(batches[0])
        rows = [self._pool[place] for batch in batches for place in batch]
        leaves = {name: value.requires_grad_(True) for name, value in state.weights.items()}
        with self._twins.at(leaves), torch.enable_grad():
            losses = self.target.losses(self._pad(rows)).view(count, size).mean(1)
            if not bool(torch.isfinite(losses).all()):
                names = ", ".join(sorted({row.id for row in rows}))
                raise ModelError(f"a training's loss is not finite; lower the learning rate, or look at {names}")
            parts = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        with torch.no_grad():
            gradients = {
                name: torch.zeros_like(leaf) if part is None else part
                for (name, leaf), part in zip(leaves.items(), parts, strict=True)
            }
            self._clip(gradients)
            self._adamw(state, gradients, lr)

    def _clip(self, gradients: dict[str, torch.Tensor]) -> None:
        """As `clip_grad_norm_`, for each training separately."""
        if self.max_grad_norm is None:
            return
        squares = torch.stack([part.flatten(1).double().square().sum(1).cpu() for part in gradients.values()])
        share = (self.max_grad_norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
        for part in gradients.values():
            part.mul_(share.to(part).view(-1, *[1] * (part.dim() - 1)))

    def _adamw(self, state: _State, gradients: dict[str, torch.Tensor], lr: float) -> None:
        """One step of `torch.optim.AdamW` without weight decay, elementwise over all trainings."""
        state.step += 1
        beta1, beta2 = self.checkpoint.betas
        for name, gradient in gradients.items():
            first = state.first[name].lerp_(gradient, 1 - beta1)
            second = state.second[name].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = (second.sqrt() / math.sqrt(1 - beta2**state.step)).add_(self.checkpoint.eps)
            moved = torch.addcdiv(state.weights[name].detach(), first, root, value=-lr / (1 - beta1**state.step))
            state.weights[name] = moved

    def _losses(self, weights: dict[str, torch.Tensor], questions: Sequence[Encoded] = ()) -> torch.Tensor:
        """[M, Q] float64 on the CPU; of all questions by default."""
        questions = questions or self._questions
        count = len(next(iter(weights.values())))
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].input_ids))
        table = torch.zeros(count, len(order), dtype=torch.float64)
        size = max(1, self._rows // count)
        detached = {name: value.detach() for name, value in weights.items()}
        with torch.no_grad(), self._twins.at(detached):
            for begin in range(0, len(order), size):
                places = order[begin : begin + size]
                rows = [questions[place] for place in places] * count
                losses = self.target.losses(self._pad(rows)).view(count, len(places))
                table[:, places] = losses.double().cpu()
        if not bool(torch.isfinite(table).all()):
            raise ModelError("a question's loss is not finite after training; lower the learning rate")
        return table

    def _pad(self, rows: Sequence[Encoded]) -> Batch:
        pad_id = self.target.pad_id
        return pad(rows, list(range(len(rows))), pad_id=pad_id, device=self.target.device)
