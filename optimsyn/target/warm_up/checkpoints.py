"""Warm-up checkpoints: adapter weights and AdamW moments, both kept by parameter *name*.

Optimizer state by index is a trap: trainers order parameters by decay group, so index 3 of the optimizer need not be
parameter 3 of the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from optimsyn.base.errors import ModelError
from optimsyn.target.encoding import Encoded

_WEIGHTS, _FIRST, _SECOND, _FACTS = "adapter", "exp_avg", "exp_avg_sq", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """The target after some step of its warm-up.

    Attributes:
        step: Optimiser steps taken so far (the t of Adam's bias correction).
        lr: Mean learning rate over the steps since the previous checkpoint, its weight in the influence.
        state: Trained parameters by name.
        exp_avg: First moments m by parameter name.
        exp_avg_sq: Second moments v by parameter name.
        betas: Adam's decay rates.
        eps: Adam's epsilon.
        losses: Training loss of each step since the previous checkpoint.
    """

    step: int
    lr: float
    state: dict[str, torch.Tensor]
    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    losses: tuple[float, ...] = field(default=())

    def save(self, folder: Path) -> None:
        """Writes three safetensors files and a JSON file atomically, by renaming the whole folder."""
        from safetensors.torch import save_file

        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        for name, tensors in ((_WEIGHTS, self.state), (_FIRST, self.exp_avg), (_SECOND, self.exp_avg_sq)):
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary / f"{name}.safetensors")
        facts = {"step": self.step, "lr": self.lr, "betas": self.betas, "eps": self.eps, "losses": self.losses}
        (temporary / _FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Reads what `save` wrote.

        Raises:
            ModelError: A file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            tensors = [load_file(folder / f"{name}.safetensors") for name in (_WEIGHTS, _FIRST, _SECOND)]
            return cls(
                step=int(facts["step"]),
                lr=float(facts["lr"]),
                state=tensors[0],
                exp_avg=tensors[1],
                exp_avg_sq=tensors[2],
                betas=(float(facts["betas"][0]), float(facts["betas"][1])),
                eps=float(facts["eps"]),
                losses=tuple(facts["losses"]),
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(
                f"{folder}: not a readable warm-up checkpoint ({error}); delete the folder and warm up again"
            ) from error

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of all its content."""
        digest = hashlib.sha256(json.dumps([self.step, self.lr, self.betas, self.eps]).encode())
        for tensors in (self.state, self.exp_avg, self.exp_avg_sq):
            for name in sorted(tensors):
                digest.update(name.encode())
                digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def named_moments(
    optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Adam's `exp_avg` and `exp_avg_sq` of each named parameter, copied to the CPU.

    Raises:
        ModelError: A parameter has no state, because no step of the optimiser touched it.
    """
    first, second = {}, {}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter)
        if not state:
            raise ModelError(f"parameter {name!r} received no optimiser step in the warm-up; leave it frozen")
        # `clone`: on a CPU, `.cpu()` returns the optimiser's own tensor, which later steps change.
        first[name] = state["exp_avg"].detach().cpu().clone()
        second[name] = state["exp_avg_sq"].detach().cpu().clone()
    return first, second


def checkpoint_steps(steps: int, checkpoints: int) -> list[int]:
    """The steps after which a checkpoint is kept: spread evenly, and always the last step."""
    if not 1 <= checkpoints <= steps:
        raise ModelError(f"{checkpoints} warm-up checkpoints cannot be spread over {steps} steps; use fewer of them")
    return [round(steps * (i + 1) / checkpoints) for i in range(checkpoints)]


def epochs(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices: a new seeded order each epoch, no sample twice within one batch."""
    generator = random.Random(seed)
    size = min(batch_size, count)
    while True:
        order = list(range(count))
        generator.shuffle(order)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


class DivergedError(ModelError):
    """A step of the warm-up, or a look at it, gave a loss that is not finite."""


class Training:
    """AdamW (no weight decay, constant learning rate) over seeded batches, in float32 or the parameters' wider dtype.

    Args:
        encoded: The samples.
        parameters: The trained parameters by name.
        backward: Adds the gradient of a batch's mean loss to `.grad` and returns the loss.
        order: The indices in `encoded` of the samples of each step, endless (see `epochs`).
        lr: Learning rate.
        max_grad_norm: The batch's gradient is scaled down to this norm, as fine-tuning does.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        parameters: dict[str, torch.nn.Parameter],
        backward: Callable[[list[Encoded]], float],
        order: Iterator[list[int]],
        *,
        lr: float,
        max_grad_norm: float,
    ) -> None:
        if not encoded:
            raise ModelError("warm-up needs at least one pair; check why no first-draft pair was valid")
        self.lr = lr
        self.steps = 0
        self.losses: list[float] = []
        self._encoded = encoded
        self._parameters = parameters
        self._backward = backward
        self._max_grad_norm = max_grad_norm
        self._masters = _masters(parameters)
        self._optimizer = torch.optim.AdamW(self._masters.values(), lr=lr, weight_decay=0.0)
        self._order = order
        self._reported = 0

    def step(self) -> None:
        """Takes one step.

        Raises:
            DivergedError: The loss is not finite.
        """
        _drop_gradients(self._parameters)
        batch = [self._encoded[i] for i in next(self._order)]
        loss = self._backward(batch)
        self.steps += 1
        if not math.isfinite(loss):
            names = ", ".join(item.id for item in batch)
            raise DivergedError(
                f"warm-up step {self.steps}: the loss is {loss}; look at samples {names}, or lower warm_up.lr"
            )
        for name, master in self._masters.items():
            gradient = self._parameters[name].grad
            master.grad = None if gradient is None else gradient.to(master.dtype)
        torch.nn.utils.clip_grad_norm_(list(self._masters.values()), self._max_grad_norm)
        self._optimizer.step()
        with torch.no_grad():
            for name, master in self._masters.items():
                if master is not self._parameters[name]:
                    self._parameters[name].copy_(master)
        _drop_gradients(self._parameters)
        self.losses.append(loss)

    def checkpoint(self) -> Checkpoint:
        """A copy on the CPU of the current weights and moments, with the losses since the previous checkpoint."""
        first, second = named_moments(self._optimizer, self._masters)
        state = {name: parameter.detach().cpu().clone() for name, parameter in self._parameters.items()}
        since, self._reported = tuple(self.losses[self._reported :]), self.steps
        # The learning rate is constant, so its mean since the last checkpoint is itself.
        return Checkpoint(self.steps, self.lr, state, first, second, losses=since)


def train(
    training: Training, *, steps: int, checkpoints: int, report: Callable[[int, int], None] | None = None
) -> list[Checkpoint]:
    """Takes `steps` steps and keeps checkpoints spread over them."""
    keep = set(checkpoint_steps(steps, checkpoints))
    kept: list[Checkpoint] = []
    for step in range(1, steps + 1):
        training.step()
        if report is not None:
            report(step, steps)
        if step in keep:
            kept.append(training.checkpoint())
    return kept


def _masters(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
    """The optimiser's parameters: float32 copies of those narrower than float32, else the parameters themselves.

    In bfloat16 Adam's v never decays (0.999 v rounds to v), and most steps are rounded away.
    """
    return {
        name: p if p.dtype.itemsize >= 4 else torch.nn.Parameter(p.detach().float()) for name, p in parameters.items()
    }


def _drop_gradients(parameters: dict[str, torch.nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = None
