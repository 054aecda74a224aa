"""Turns samples into records of a gradient store: the part that needs the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from optimsyn.base.errors import ModelError
from optimsyn.base.identity import digest_of
from optimsyn.data.records import Sample
from optimsyn.influence.estimators import Direction, estimator_of
from optimsyn.influence.gradients.projection import Layout, Projection
from optimsyn.influence.gradients.rows import layout_of
from optimsyn.influence.gradients.taps import GradientTaps, small_batches
from optimsyn.influence.moments import moments_of
from optimsyn.influence.options import checkpoint_weights
from optimsyn.influence.scores import refuse_not_finite
from optimsyn.influence.store.shards import VERSION, record_type
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.encoding import Batch, Encoded, Role, counted
from optimsyn.target.target import Target

_BATCH_BYTES = 512 * 2**20
_SHARD_BYTES = 256 * 2**20
_PROBE = Sample(
    id="probe",
    prompt="Question: 1?\nAnswer:",
    completion=" 2",
    messages=({"role": "user", "content": "Question: 1?"}, {"role": "assistant", "content": "2"}),
)


def describe(
    target: Target, kind: str, estimator: str, tokens: CountedTokens, projection: Projection | None, dtype: str
) -> dict[str, Any]:
    """The manifest of a store with these settings.

    Raises:
        ModelError: The target has not been warmed up.
        RecipeError: There is no such estimator.
        DataError: There is no such dtype.
    """
    if not target.checkpoints:
        raise ModelError("the target has no warm-up checkpoint; call target.warm_up(pairs) first")
    checkpoint_weights([checkpoint.lr for checkpoint in target.checkpoints])
    chosen = estimator_of(estimator)
    layout = layout_of(target, projection)
    record = record_type(len(target.checkpoints), layout.width, dtype)
    # Tokeniser and chat template are no part of the target's fingerprint, so a short text represents them.
    probe = target.encode(_PROBE)
    return {
        "version": VERSION,
        "kind": kind,
        "target": target.fingerprint(),
        "precision": str(target.dtype).removeprefix("torch."),
        "encoding": digest_of([probe.input_ids, probe.labels, probe.end_tokens]),
        "checkpoints": [{"step": c.step, "lr": c.lr, "fingerprint": c.fingerprint} for c in target.checkpoints],
        "estimator": chosen.name,
        # The source of a custom estimator; a built-in one is identified by its name.
        **({} if chosen.identity == chosen.name else {"estimator_source": chosen.identity}),
        "tokens": tokens.model_dump(),
        "projection": None if projection is None else projection.facts(),
        "parameters": layout.facts(),
        "width": layout.width,
        "dtype": dtype,
        "rows_per_shard": max(1, _SHARD_BYTES // record.itemsize),
    }


class Writer:
    """Runs samples through the model and computes their records.

    Γ of every checkpoint stays in memory: two to three times the trained parameters per checkpoint.

    Of questions it keeps g/‖g‖ instead of Γ(g).
    """

    def __init__(self, target: Target, manifest: dict[str, Any], record: np.dtype[Any], *, questions: bool) -> None:
        facts = manifest["projection"]
        projection = None if facts is None else Projection(facts["out_size"], facts["in_size"], facts["seed"])
        self._target = target
        self._record = record
        self._questions = questions
        self._tokens = CountedTokens(**manifest["tokens"])
        self._layout = layout_of(target, projection)
        self._taps = GradientTaps(target)
        self._verified = False
        estimator = estimator_of(manifest["estimator"])
        self._checkpoints = list(target.checkpoints)
        self._gammas = [
            {
                name: estimator.bind(moments_of(checkpoint, name, dtype=target.dtype, device=parameter.device))
                for name, parameter in target.parameters.items()
            }
            for checkpoint in self._checkpoints
        ]

    def records(self, samples: Sequence[Sample], batch_tokens: int) -> Iterator[tuple[list[str], np.ndarray[Any, Any]]]:
        """The ids and the records [B], batch by batch."""
        if not samples:
            return
        role: Role = "question" if self._questions else "pair"
        encoded = [counted(self._target.encode(sample), self._tokens, role) for sample in samples]
        self._target.load_checkpoint(self._checkpoints[-1])
        if not self._verified:
            self._taps.verify(encoded)
            self._verified = True
        # Rows are float32 until their batch is written, which must not take more memory than the model.
        limit = max(1, _BATCH_BYTES // (4 * len(self._checkpoints) * self._layout.width))
        for indices, batch in small_batches(self._target, encoded, batch_tokens, limit):
            yield batch.ids, self._batch(batch, [encoded[i] for i in indices])

    def _batch(self, batch: Batch, items: list[Encoded]) -> np.ndarray[Any, Any]:
        records = np.zeros(len(batch), dtype=self._record)
        records["label_tokens"] = [item.label_tokens for item in items]
        for i, (checkpoint, gammas) in enumerate(zip(self._checkpoints, self._gammas, strict=True)):
            if len(self._checkpoints) > 1:
                self._target.load_checkpoint(checkpoint)
            sink = _RowSink(self._layout, gammas, len(batch), plain=self._questions)
            with self._taps.attached():
                losses = self._taps.run(batch, sink)
            norms, lengths = sink.norms()
            values = sink.rows()
            finite = torch.isfinite(norms) & torch.isfinite(lengths) & torch.isfinite(values).all(dim=1)
            refuse_not_finite(batch.ids, finite)
            if self._questions:
                flat = [repr(batch.ids[row]) for row in (lengths == 0).nonzero().flatten().tolist()]
                if flat:
                    raise ModelError(
                        f"questions {', '.join(flat)} have a gradient of 0 and give no direction; remove them"
                    )
                values = values / lengths.to(values).unsqueeze(1)
            records["direction_norm"][:, i] = norms.numpy()
            records["gradient_norm"][:, i] = lengths.numpy()
            records["loss"][:, i] = losses.double().cpu().numpy()
            records["scale"][:, i], records["values"][:, i] = scaled_to_one(values)
        return records


def scaled_to_one(values: torch.Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scales [B] and values / scale [B, width] within ±1; scales are powers of two, so that nothing is rounded.

    Plain gradients can be below float16's range.
    """
    peaks = values.abs().amax(dim=1).double().numpy()
    scales = np.where(peaks > 0, np.exp2(np.ceil(np.log2(np.maximum(peaks, 1e-300)))), 1.0)
    return scales, (values.double().numpy() / scales[:, None])


class _RowSink:
    """Projects the rows of a batch, parameter by parameter, and sums ‖Γ‖² and ‖g‖² of the whole gradient."""

    def __init__(self, layout: Layout, gammas: dict[str, Direction], samples: int, *, plain: bool) -> None:
        self._layout = layout
        self._gammas = gammas
        self._samples = samples
        self._plain = plain
        self._parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
        self._squares: dict[torch.device, torch.Tensor] = {}

    def take(self, name: str, rows: slice, gradients: torch.Tensor) -> None:
        """Adds one parameter's part."""
        gamma = self._gammas[name](gradients)
        # One sum per device, as in the scorer, so that the backward pass never waits for a copy.
        device = gradients.device
        if device not in self._squares:
            self._squares[device] = torch.zeros(self._samples, 2, dtype=torch.float64, device=device)
        squares = [part.flatten(1).norm(dim=1).double().square() for part in (gamma, gradients)]
        self._squares[device][rows] += torch.stack(squares, dim=1)
        kept = self._layout.project(name, gradients if self._plain else gamma)
        self._parts.setdefault(name, []).append((rows.start, kept))

    def norms(self) -> tuple[torch.Tensor, torch.Tensor]:
        """‖Γ‖ [B] and ‖g‖ [B], float64."""
        total = torch.stack([part.cpu() for part in self._squares.values()]).sum(0).sqrt()
        return total[:, 0], total[:, 1]

    def rows(self) -> torch.Tensor:
        """[B, width] on the CPU, parameters in the layout's order."""
        columns = [
            torch.cat([part for _, part in sorted(self._parts[name], key=lambda item: item[0])]).cpu()
            for name in self._layout.shapes
        ]
        return torch.cat(columns, dim=1)
