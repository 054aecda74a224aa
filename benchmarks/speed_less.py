"""A per-sample autograd loop with random projection, as in LESS (Xia et al. 2024), for comparison.

Follows the published `collect_grad_reps.py`: batch size 1, the model's own loss with the logits of every position, the
flattened gradient, Adam's direction with ε inside the root, and every 16 samples a Rademacher projection to 8,192
numbers whose matrix is recomputed from its seed, block by block. 64 signs come from one random number, which is cheaper
than drawing each of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from optimsyn.target.encoding import Encoded
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint

INTERVAL = 16
_COLUMNS = 128
_ROWS = 2**16


@dataclass(frozen=True)
class Probe:
    """A part of the loop's work.

    Attributes:
        spent: Its seconds.
        whole: Estimated seconds of the whole work.
        samples: Number of processed samples.
        columns: Share of the projection's columns that were done.
    """

    spent: float
    whole: float
    samples: int
    columns: float


class LessLoop:
    """Projected Adam directions of samples, one at a time.

    Args:
        target: The model, at `checkpoint`.
        checkpoint: With Adam's moments.
        width: Size of a projected direction.
        label_logits: Take logits at label positions only, which the published loop does not.
        seed: Of the projection.
    """

    def __init__(
        self, target: Target, checkpoint: Checkpoint, *, width: int = 8192, label_logits: bool = False, seed: int = 0
    ) -> None:
        self.target = target
        self.width = width
        self.label_logits = label_logits
        self.seed = seed
        names = list(target.parameters)
        self._first = torch.cat([checkpoint.exp_avg[name].flatten().float() for name in names]).to(target.device)
        self._second = torch.cat([checkpoint.exp_avg_sq[name].flatten().float() for name in names]).to(target.device)
        # Half precision on a GPU, as published; on a processor it is only slower.
        self._dtype = torch.float16 if target.device.type == "cuda" else torch.float32
        places = torch.arange(256, device=target.device).unsqueeze(1) >> torch.arange(8, device=target.device)
        self._signs = ((places & 1) * 2 - 1).to(self._dtype)

    def run(self, encoded: Sequence[Encoded]) -> torch.Tensor:
        """[n, width], on the CPU."""
        waiting: list[torch.Tensor] = []
        projected: list[torch.Tensor] = []
        for item in encoded:
            waiting.append(self._direction(item))
            if len(waiting) == INTERVAL:
                projected.append(self.project(torch.stack(waiting)).cpu())
                waiting = []
        if waiting:
            projected.append(self.project(torch.stack(waiting)).cpu())
        return torch.cat(projected)

    def _direction(self, item: Encoded) -> torch.Tensor:
        target = self.target
        parameters = list(target.parameters.values())
        for parameter in parameters:
            parameter.grad = None
        with torch.enable_grad():
            if self.label_logits:
                (batch,) = target.batches([item], 2**62)
                loss = target.losses(batch).sum()
            else:
                ids = torch.tensor([item.input_ids], device=target.device)
                labels = torch.tensor([item.labels], device=target.device)
                mask = torch.ones_like(ids)
                loss = target.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
        gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        for parameter in parameters:
            parameter.grad = None
        gradient = gradient.float()
        first = 0.9 * self._first + 0.1 * gradient
        second = 0.999 * self._second + 0.001 * gradient**2
        return (first / torch.sqrt(second + 1e-8)).to(self._dtype)

    def within(self, encoded: Sequence[Encoded], seconds: float) -> Probe:
        """Does as much of the work as fits in a time, and estimates the time of the whole.

        Half of the time goes to samples one by one, sixteen at most, half to blocks of the projection's columns. All
        samples cost as much as these on average, and every sixteen of them a projection.
        """
        began, directions = time.perf_counter(), []
        for item in encoded[:INTERVAL]:
            directions.append(self._direction(item))
            self._wait()
            if time.perf_counter() - began > seconds / 2:
                break
        middle = time.perf_counter()
        _, columns = self._project(torch.stack(directions), seconds / 2)
        self._wait()
        end = time.perf_counter()
        whole = (middle - began) / len(directions) * len(encoded)
        whole += (end - middle) * self.width / columns * -(-len(encoded) // INTERVAL)
        return Probe(end - began, whole, len(directions), columns / self.width)

    def _wait(self) -> None:
        if self.target.device.type == "cuda":
            torch.cuda.synchronize(self.target.device)

    def project(self, directions: torch.Tensor) -> torch.Tensor:
        """Directions [n, p] times a matrix [p, width] of random signs that never exists as a whole."""
        return self._project(directions, None)[0]

    def _project(self, directions: torch.Tensor, seconds: float | None) -> tuple[torch.Tensor, int]:
        """The projection, and how many of its columns were done before the time was up."""
        began = time.perf_counter()
        device = directions.device
        generator = torch.Generator(device).manual_seed(self.seed)
        projected = torch.zeros(len(directions), self.width, device=device)
        for column in range(0, self.width, _COLUMNS):
            columns = min(_COLUMNS, self.width - column)
            for row in range(0, directions.shape[1], _ROWS):
                part = directions[:, row : row + _ROWS]
                count = part.shape[1] * columns
                bits = torch.empty(-(-count // 64), dtype=torch.int64, device=device)
                bits.random_(-(2**63), None, generator=generator)
                signs = self._signs[bits.view(torch.uint8).int()].flatten()[:count].view(-1, columns)
                projected[:, column : column + columns] += (part @ signs).float()
            if seconds is not None:
                self._wait()
                if time.perf_counter() - began > seconds:
                    return projected, column + columns
        return projected, self.width
