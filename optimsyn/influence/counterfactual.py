"""Counterfactuals: what a sample really does to the validation loss, to judge the scores that foretell it.

Everything starts from the weights θ, the moments m, v and the step count t of the target's last warm-up checkpoint and
goes on with AdamW as the warm-up does (no weight decay, gradient clipping).

| truth        | definition                                                                                       |
|--------------|--------------------------------------------------------------------------------------------------|
| in_batch     | L(one step on a fixed batch without z) - L(one step on the batch with z added to its mean)       |
| lone         | L(θ) - L(one step on z alone)                                                                    |
| subset       | L(θ) - L(some steps on a subset); over random subsets this is what the LDS correlates (Ilyas et  |
|              | al. 2022, "Datamodels"; Park et al. 2023, "TRAK")                                                |

L is the mean loss over the questions, of the tokens that count (`optimsyn.models.encoding.counted`), so that a positive
truth means: it helped. Steps train on every token, as fine-tuning does. A counterfactual costs one
validation pass, because samples' gradients at θ are kept. Each result is appended to a ledger, and what the ledger
holds is never computed again.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optimsyn.data.jsonl import append_jsonl, iter_json
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.errors import DataError, ModelError
from optimsyn.influence.gradients import GradientTaps
from optimsyn.models.encoding import Encoded, counted
from optimsyn.models.target import Target
from optimsyn.models.warm_up import Checkpoint
from optimsyn.recipe_models import CountedTokens

LEDGER = "counterfactuals.jsonl"

Item = Pair | Question | Sample


@dataclass(frozen=True)
class AdamState:
    """All trained weights and Adam's moments as flat vectors [P], parameters in the target's order.

    Attributes:
        weights: θ.
        first: m.
        second: v.
        count: t, steps taken so far.
        betas: Decay rates.
        eps: Added to the root.
    """

    weights: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    count: int
    betas: tuple[float, float]
    eps: float

    @classmethod
    def of(cls, target: Target, checkpoint: Checkpoint) -> AdamState:
        """The state at a checkpoint, in the target's precision, on the CPU."""

        def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.cat([tensors[name].to("cpu", target.dtype).flatten() for name in target.parameters])

        first, second = flat(checkpoint.exp_avg), flat(checkpoint.exp_avg_sq)
        return cls(flat(checkpoint.state), first, second, checkpoint.step, checkpoint.betas, checkpoint.eps)

    def step(self, gradient: torch.Tensor, *, lr: float, max_grad_norm: float | None = None) -> AdamState:
        """The state after one step of `torch.optim.AdamW` without weight decay.

        Args:
            gradient: [P], the batch's.
            lr: Learning rate.
            max_grad_norm: Scale the gradient down to this norm beforehand, as `clip_grad_norm_` does; None: never.
        """
        if max_grad_norm is not None:
            norm = float(gradient.double().norm())
            gradient = gradient * min(1.0, max_grad_norm / (norm + 1e-6))
        beta1, beta2 = self.betas
        count = self.count + 1
        first = torch.lerp(self.first, gradient, 1 - beta1)
        second = (self.second * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second.sqrt() / math.sqrt(1 - beta2**count)).add_(self.eps)
        weights = torch.addcdiv(self.weights, first, root, value=-lr / (1 - beta1**count))
        return AdamState(weights, first, second, count, self.betas, self.eps)


class Counterfactuals:
    """Truths about the samples of a pool, for one warmed-up target.

    Args:
        target: Its last checkpoint is where every counterfactual starts.
        pool: The samples.
        questions: The validation questions; the same that give the scores their directions.
        companions: What the fixed batch of `in_batch` is drawn from; none: the pool itself, where z is replaced by a
            spare sample when it was drawn.
        held_out: Further questions, whose loss is measured beside (and costs a pass as well).
        tokens: Which tokens count in the loss of the questions, and in what the scores are made of.
        batch_size: Samples in the fixed batch.
        lr: Learning rate; None: the checkpoint's.
        max_grad_norm: Gradient clipping; None: none.
        seed: Of every random choice.
        batch_tokens: Tokens that go through the model at once.
        folder: Keep gradients and results here, and use what is there; None: in memory.
        on_result: Is told the key and the seconds of every counterfactual that had to be computed.

    Raises:
        ModelError: The target has not been warmed up, or a sample cannot be encoded.
        DataError: A list is empty or too short, or the folder belongs to other samples or settings.
    """

    def __init__(
        self,
        target: Target,
        pool: Sequence[Item],
        questions: Sequence[Item],
        *,
        companions: Sequence[Item] = (),
        held_out: Sequence[Item] = (),
        tokens: CountedTokens = CountedTokens(),  # noqa: B008 - frozen
        batch_size: int = 8,
        lr: float | None = None,
        max_grad_norm: float | None = 1.0,
        seed: int = 0,
        batch_tokens: int = 1024,
        folder: Path | None = None,
        on_result: Callable[[str, float], None] | None = None,
    ) -> None:
        if not target.checkpoints:
            raise ModelError("the target has no warm-up checkpoint; call target.warm_up(pairs) first")
        if not pool or not questions:
            raise DataError("counterfactuals need at least one sample and one validation question")
        self.target = target
        self.checkpoint = target.checkpoints[-1]
        self.pool = [target.encode(item) for item in pool]
        self.tokens = tokens
        self.questions = [counted(target.encode(item), tokens, "question") for item in questions]
        self.scored = [counted(item, tokens, "pair") for item in self.pool]
        self.held_out = [counted(target.encode(item), tokens, "question") for item in held_out]
        self._companions = [target.encode(item) for item in companions]
        self.state = AdamState.of(target, self.checkpoint)
        self.lr = self.checkpoint.lr if lr is None else lr
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self._batch_tokens = batch_tokens
        self._folder = folder
        self._on_result = on_result
        self._rows = self._fixed_rows(batch_size)
        self._held: dict[str, torch.Tensor] = {}
        self._results: dict[str, dict[str, Any]] = {}
        self.fingerprint = self._fingerprint()
        if folder is not None:
            self._open(folder / LEDGER)

    def gradients(self, which: str = "pool") -> torch.Tensor:
        """The gradient of each sample's loss at θ.

        Args:
            which: pool or companions, as they are trained on; scored, the pool as far as it counts for a score;
                questions.

        Returns:
            [n, P] on the CPU; of a folder, mapped from its file.
        """
        if which in self._held:
            return self._held[which]
        items = self._sets()[which]
        file = None if self._folder is None else self._folder / f"gradients-{which}.npy"
        if file is None or not file.is_file():
            rows = torch.empty(len(items), len(self.state.weights), dtype=self.target.dtype)
            self._fill(items, rows)
            if file is not None:
                partial = file.with_suffix(".partial")
                with partial.open("wb") as opened:
                    np.save(opened, rows.numpy())
                partial.replace(file)
        else:
            rows = torch.from_numpy(np.load(file, mmap_mode="c"))
        self._held[which] = rows
        return rows

    def losses(self, which: str = "pool") -> torch.Tensor:
        """The loss of each sample at θ, [n] float64 in nats; `which` as for `gradients`."""
        self._put(self.state.weights)
        return self._item_losses(self._sets()[which])

    def start(self) -> float:
        """L(θ)."""
        return float(self._loss("start", lambda: self.state)["loss"])

    def in_batch(self, *, held_out: bool = False) -> torch.Tensor:
        """The in-batch truth of each pool sample, [n] float64 in nats."""
        return self._differences("in_batch", held_out)

    def lone(self, *, held_out: bool = False) -> torch.Tensor:
        """The lone-step truth of each pool sample, [n] float64 in nats."""
        return self._differences("lone", held_out)

    def subset(self, members: Sequence[int], *, batch_size: int = 8, epochs: int = 1, seed: int = 0) -> float:
        """How much training on some of the pool lowers the validation loss, in nats.

        Args:
            members: Places in the pool.
            batch_size: Samples a step; the last step of an epoch may have fewer.
            epochs: Passes over the subset, each in a new order.
            seed: Of the order.

        Raises:
            DataError: There are no members.
        """
        if not members:
            raise DataError("a subset to train on needs at least one sample")
        chosen = sorted(members)
        facts = json.dumps([chosen, batch_size, epochs, seed]).encode()
        key = f"subset/{hashlib.sha256(facts).hexdigest()[:16]}"
        after = self._loss(key, lambda: self._train(chosen, batch_size, epochs, seed))
        return self.start() - float(after["loss"])

    def _sets(self) -> dict[str, list[Encoded]]:
        return {
            "pool": self.pool,
            "scored": self.scored,
            "questions": self.questions,
            "companions": self._companions,
        }

    def _differences(self, kind: str, held_out: bool) -> torch.Tensor:
        if held_out and not self.held_out:
            raise DataError("no held-out questions were given")
        column = "held_out" if held_out else "loss"
        found = []
        for i in range(len(self.pool)):
            if kind == "lone":
                before = self._loss("start", lambda: self.state)
                after = self._loss(f"lone/{i}", partial(self._step_on_one, i))
            else:
                rows = self._rows_for(i)
                before = self._loss(f"in_batch/without/{'-'.join(map(str, rows))}", partial(self._step_on_batch, rows))
                after = self._loss(f"in_batch/{i}", partial(self._step_on_batch, rows, i))
            found.append(before[column] - after[column])
        return torch.tensor(found, dtype=torch.float64)

    def _fixed_rows(self, batch_size: int) -> list[int]:
        """Which companions are the fixed batch; of the pool itself one more, to stand in for z."""
        source, needed = len(self._companions), batch_size
        if not self._companions:
            source, needed = len(self.pool), batch_size + 1
        if source < needed:
            raise DataError(f"a fixed batch of {batch_size} needs {needed} samples, there are {source}; give more")
        return random.Random(f"batch {self.seed}").sample(range(source), needed)

    def _rows_for(self, i: int) -> list[int]:
        if self._companions:
            return self._rows
        return [row for row in self._rows if row != i][: len(self._rows) - 1]

    def _step_on_one(self, i: int) -> AdamState:
        return self._step(self.gradients()[i])

    def _step_on_batch(self, rows: list[int], extra: int | None = None) -> AdamState:
        total = self.gradients("companions" if self._companions else "pool")[rows].sum(0)
        if extra is None:
            return self._step(total / len(rows))
        return self._step((total + self.gradients()[extra]) / (len(rows) + 1))

    def _step(self, gradient: torch.Tensor) -> AdamState:
        return self.state.step(gradient, lr=self.lr, max_grad_norm=self.max_grad_norm)

    def _train(self, members: list[int], batch_size: int, epochs: int, seed: int) -> AdamState:
        state, generator = self.state, random.Random(f"order {seed}")
        for _ in range(epochs):
            order = list(members)
            generator.shuffle(order)
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                if state is self.state:
                    # The first step is taken at θ, where every gradient is known.
                    gradient = self.gradients()[rows].mean(0)
                else:
                    self._put(state.weights)
                    gradient = self._batch_gradient([self.pool[row] for row in rows])
                state = state.step(gradient, lr=self.lr, max_grad_norm=self.max_grad_norm)
        return state

    def _batch_gradient(self, items: Sequence[Encoded]) -> torch.Tensor:
        """[P], of the mean over samples of their mean token loss."""
        parameters = list(self.target.parameters.values())
        total = torch.zeros_like(self.state.weights)
        with self.target.scoring():
            for batch in self.target.batches(items, self._batch_tokens):
                parts = torch.autograd.grad(self.target.losses(batch).sum(), parameters, allow_unused=True)
                known = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, parts, strict=True)]
                total += torch.cat([part.flatten().to(total) for part in known])
        return total / len(items)

    def _fill(self, items: Sequence[Encoded], rows: torch.Tensor) -> None:
        """Writes the gradients at θ of `items` into `rows` [n, P]."""
        taps = GradientTaps(self.target)
        places, offset = {}, 0
        for name, parameter in self.target.parameters.items():
            places[name] = slice(offset, offset + parameter.numel())
            offset += parameter.numel()
        self._put(self.state.weights)
        with taps.attached():
            for batch in self.target.batches(items, self._batch_tokens):
                taps.run(batch, _Rows(rows, places, batch.indices))
        if not bool(torch.isfinite(rows).all()):
            bad = [items[i].id for i in (~torch.isfinite(rows).all(dim=1)).nonzero().flatten().tolist()]
            raise ModelError(f"the gradients of samples {', '.join(map(repr, bad))} are not finite; look at their text")

    def _put(self, weights: torch.Tensor) -> None:
        """Puts flat weights [P] into the model."""
        offset = 0
        with torch.no_grad():
            for parameter in self.target.parameters.values():
                part = weights[offset : offset + parameter.numel()]
                parameter.copy_(part.view_as(parameter))
                offset += parameter.numel()

    def _item_losses(self, items: Sequence[Encoded]) -> torch.Tensor:
        losses = torch.zeros(len(items), dtype=torch.float64)
        with self.target.scoring(), torch.no_grad():
            for batch in self.target.batches(items, self._batch_tokens):
                losses[batch.indices] = self.target.losses(batch).double().cpu()
        return losses

    def _loss(self, key: str, state: Callable[[], AdamState]) -> dict[str, Any]:
        """The ledger's row of this counterfactual; computed and written when it is not there."""
        if key not in self._results:
            began = time.monotonic()
            self._put(state().weights)
            losses = self._item_losses([*self.questions, *self.held_out])
            self.target.load_checkpoint(self.checkpoint)
            seconds = time.monotonic() - began
            if not bool(torch.isfinite(losses).all()):
                raise ModelError(f"counterfactual {key}: the validation loss is not finite; lower the learning rate")
            row = {"key": key, "loss": float(losses[: len(self.questions)].mean()), "seconds": round(seconds, 3)}
            if self.held_out:
                row["held_out"] = float(losses[len(self.questions) :].mean())
            self._results[key] = row
            if self._folder is not None:
                append_jsonl(self._folder / LEDGER, [row])
            if self._on_result is not None:
                self._on_result(key, seconds)
        return self._results[key]

    def _fingerprint(self) -> str:
        sets = [*self._sets().values(), self.held_out]
        texts = [[[item.id, item.input_ids, item.labels, item.weights] for item in items] for items in sets]
        settings = [str(self.target.dtype), self._rows, self.lr, self.max_grad_norm, self.seed]
        facts = [2, self.target.fingerprint(), self.checkpoint.fingerprint, settings, texts]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _open(self, ledger: Path) -> None:
        """Reads a ledger, or begins one."""
        if not ledger.is_file():
            append_jsonl(ledger, [{"key": "settings", "fingerprint": self.fingerprint}])
        # A line that a kill left half written is skipped, and its counterfactual done again.
        rows = list(iter_json(ledger, tolerate_torn=True))
        begun = next((row.get("fingerprint") for row in rows if row.get("key") == "settings"), None)
        if begun != self.fingerprint:
            raise DataError(
                f"{ledger}: belongs to another target, pool, question set or setting ({begun}, this is "
                f"{self.fingerprint}); name another folder or delete this one"
            )
        self._results = {str(row["key"]): row for row in rows if "loss" in row}


class _Rows:
    """A sink that writes each sample's gradient into its row of a matrix."""

    def __init__(self, matrix: torch.Tensor, places: dict[str, slice], indices: list[int]) -> None:
        self._matrix, self._places, self._indices = matrix, places, indices

    def take(self, name: str, rows: slice, gradients: torch.Tensor) -> None:
        """Writes these rows."""
        self._matrix[self._indices[rows], self._places[name]] = gradients.flatten(1).to(self._matrix)
