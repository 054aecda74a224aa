"""Exact per-sample gradients from one backward pass of a batch, streamed layer by layer.

For a linear layer with inputs a [B, T, in] and output gradients b [B, T, out] the gradient of sample i is
G_i = Σ_t b_it a_itᵀ. A layer's G exists only until the sink has taken it.

The layers are tapped where their gradient arises: during scoring the forward of each trained `nn.Linear` is an autograd
function whose backward sees a and b together. This stays correct under activation recomputation (the backward of a
layer runs once, whatever its forward does), and no `.grad` is ever filled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from optimsyn.base.errors import ModelError
from optimsyn.target.encoding import Batch, Encoded
from optimsyn.target.target import Target
from optimsyn.target.temporary import with_forwards
from optimsyn.target.upcast import NARROW, in_float32, is_narrow

SLICE_BYTES = 256 * 2**20
HOLD_BYTES = 512 * 2**20


class Sink(Protocol):
    """Takes the per-sample gradients of one parameter at a time."""

    def take(self, name: str, rows: slice, gradients: torch.Tensor) -> None:
        """Called once for each parameter and row of the batch.

        Args:
            name: The parameter's name.
            rows: Rows of the batch.
            gradients: [rows, *parameter.shape], float32 (float64 for float64 weights). Do not change them.
        """


@runtime_checkable
class SlicedSink(Sink, Protocol):
    """A sink that also takes a large weight a few output rows at a time, so that no whole G has to exist."""

    def take_slice(self, name: str, rows: slice, outputs: slice, gradients: torch.Tensor) -> None:
        """Called instead of `take` for a weight whose gradient of one sample is larger than a slice.

        Args:
            name: The parameter's name.
            rows: Rows of the batch.
            outputs: Rows of the weight; one of `output_slices` of its shape.
            gradients: [rows, outputs, in].
        """


def output_slices(parameter: torch.Tensor, dtype: torch.dtype) -> list[slice]:
    """The slices in which a parameter's gradient is computed: one, unless one sample takes more than 256 MiB."""
    outputs, size = parameter.shape[0], parameter.numel() * dtype.itemsize
    if parameter.dim() < 2 or size <= SLICE_BYTES:
        return [slice(0, outputs)]
    step = max(1, SLICE_BYTES * outputs // size)
    return [slice(start, min(start + step, outputs)) for start in range(0, outputs, step)]


def small_batches(
    target: Target, encoded: Sequence[Encoded], batch_tokens: int, limit: int | None = None
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of at most `limit` rows, with the index of each row in the caller's order.

    By default the gradients of a batch take at most half a gigabyte (or the batch is one sample).
    """
    size = sum(parameter.numel() for parameter in target.parameters.values()) * target.dtype.itemsize
    limit = limit or max(1, HOLD_BYTES // size)
    for whole in target.batches(encoded, batch_tokens):
        for start in range(0, len(whole), limit):
            indices = whole.indices[start : start + limit]
            (batch,) = target.batches([encoded[i] for i in indices], 2**62)
            yield [indices[i] for i in batch.indices], batch


def refuse_infinite(losses: torch.Tensor, ids: Sequence[str], model: nn.Module) -> None:
    """Refuses losses that are not finite."""
    finite = torch.isfinite(losses)
    if bool(finite.all()):
        return
    bad = ", ".join(repr(ids[i]) for i in (~finite).nonzero().flatten().tolist())
    half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    cure = (
        "float16 ends at 65,504, which some models exceed; set models.target.dtype to bfloat16 or float32"
        if half
        else "look at their text"
    )
    raise ModelError(f"the loss of samples {bad} is not finite; {cure}")


class GradientTaps:
    """Per-sample gradients of a target's trained parameters.

    They must be weights or biases of `nn.Linear` modules, as LoRA's are.

    Raises:
        ModelError: A trained parameter belongs to another module, so its gradient would be missing.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        names = {id(parameter): name for name, parameter in target.parameters.items()}
        self._layers: dict[str, nn.Linear] = {}
        for path, module in target.model.named_modules():
            for kind, parameter in module._parameters.items():
                if parameter is None or id(parameter) not in names:
                    continue
                # A subclass with another forward may use the weight in ways that the formula does not cover.
                if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
                    raise ModelError(
                        f"{path}.{kind} is trained, but it belongs to a {type(module).__name__}; influence is exact "
                        "for linear layers only: use plain LoRA (no DoRA, no embeddings) or freeze it"
                    )
                self._layers[path] = module
        # By identity: a tied parameter has one name, wherever it is used.
        self._names = names
        self._pass: _Pass | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Taps the layers and switches on the target's scoring mode; `run` needs this context."""
        with self.target.scoring(), self.replaced(self._tapped):
            yield

    @contextmanager
    def replaced(self, forward_of: Callable[[str, nn.Linear, str | None, str | None], Any]) -> Iterator[None]:
        """Gives each tapped layer another forward for a while.

        Args:
            forward_of: From a layer's path, the layer, and the names of its trained weight and bias (None where that
                is not trained) to its forward.
        """
        name = self._names.get
        forwards = [
            (layer, forward_of(path, layer, name(id(layer.weight)), name(id(layer.bias))))
            for path, layer in self._layers.items()
        ]
        with with_forwards(forwards):
            yield

    def run(self, batch: Batch, sink: Sink) -> torch.Tensor:
        """The losses [B]; one forward and one backward pass of Σ_i mean_t ℓ_it hands every gradient to the sink.

        A parameter that the loss does not reach gives zeros.

        Raises:
            ModelError: A loss is not finite or undefined, or a layer's input has lost the samples' dimension.
        """
        self.target.try_out(batch)
        self._pass = current = _Pass(len(batch), self.target.dtype, sink)
        try:
            losses = self.target.losses(batch)
            current.in_forward = False
            losses.sum().backward()  # type: ignore[no-untyped-call]
            current.finish(self.target.parameters)
        finally:
            self._pass = None
        # Checked last, so that a GPU has its backward pass queued before the losses are awaited.
        refuse_infinite(losses, batch.ids, self.target.model)
        return losses.detach()

    def verify(self, encoded: Sequence[Encoded]) -> None:
        """Compares Σ_i G_i with autograd's own gradient, for the two shortest samples.

        Raises:
            ModelError: They differ, because the model uses a trained weight outside of its layer.
        """
        (batch,) = self.target.batches(sorted(encoded, key=lambda item: len(item.input_ids))[:2], 2**62)
        total = _Total()
        # In 16 bits two passes differ.
        wide = in_float32 if is_narrow(self.target.model) else nullcontext
        with self.attached(), wide():
            self.run(batch, total)
        parameters = self.target.parameters
        with self.target.scoring(), wide():
            loss = self.target.losses(batch).sum()
            expected = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        pairs = {
            name: (total.sums[name], torch.zeros_like(total.sums[name]) if e is None else e.to(total.sums[name]))
            for name, e in zip(parameters, expected, strict=True)
        }
        scale = max(float(e.norm()) for _, e in pairs.values())
        # Autograd rounds the gradient of a 16-bit weight to 16 bits.
        tolerance = 1e-2 if any(p.dtype in NARROW for p in parameters.values()) else 1e-3
        for name, (computed, wanted) in pairs.items():
            if not float((computed - wanted).norm()) <= tolerance * max(float(wanted.norm()), 1e-3 * scale):
                raise ModelError(
                    f"the gradient of {name} is not the sum of its layer's per-sample gradients: this model uses the "
                    "weight outside of its linear layer; leave that module out of lora.target_modules"
                )

    def _tapped(self, path: str, layer: nn.Linear, weight: str | None, bias: str | None) -> Any:
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            current = self._pass
            if current is None:
                return nn.functional.linear(inputs, layer.weight, layer.bias)
            if current.in_forward:
                current.uses.update(name for name in (weight, bias) if name is not None)
            output: torch.Tensor = _Tap.apply(  # type: ignore[no-untyped-call]
                inputs, layer.weight, layer.bias, (current, path, weight, bias)
            )
            return output

        return forward


class _Tap(torch.autograd.Function):
    """A linear layer whose backward passes (a, b) on instead of computing the batch's weight gradient."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tap: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.tap = tap
        return nn.functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        current, path, weight_name, bias_name = ctx.tap
        current.record(path, weight, weight_name, bias_name, inputs, outputs[0])
        # A model at work in float32 keeps its 16-bit weights.
        slope = outputs[0] @ weight.to(outputs[0].dtype) if ctx.needs_input_grad[0] else None
        return slope, None, None, None


class _Pass:
    """Bookkeeping of one forward and backward pass."""

    def __init__(self, samples: int, dtype: torch.dtype, sink: Sink) -> None:
        self.in_forward = True
        # Uses of a parameter in the forward pass. Recomputation happens in the backward pass and is not counted.
        self.uses: Counter[str] = Counter()
        self._samples = samples
        self._dtype = dtype
        self._sink = sink
        self._sums: dict[str, torch.Tensor] = {}
        self._waiting: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._done: set[str] = set()

    @torch.no_grad()
    def record(
        self,
        path: str,
        parameter: torch.Tensor,
        weight: str | None,
        bias: str | None,
        inputs: torch.Tensor,
        outputs: torch.Tensor,
    ) -> None:
        """Per-sample gradients of one use of a layer."""
        if inputs.dim() == 2 and self._samples == 1:
            inputs, outputs = inputs.unsqueeze(0), outputs.unsqueeze(0)
        if inputs.dim() < 3 or len(inputs) != self._samples:
            raise ModelError(
                f"layer {path} sees an input of shape {tuple(inputs.shape)}, in which the {self._samples} samples of "
                "the batch cannot be told apart (as in a mixture of experts); leave it out of lora.target_modules"
            )
        a = inputs.flatten(1, -2).to(self._dtype)
        b = outputs.flatten(1, -2).to(self._dtype)
        if weight is not None:
            self._weight(weight, parameter, a, b)
        if bias is not None:
            held = self._sums.pop(bias, None)
            total = b.sum(1) if held is None else held.add_(b.sum(1))
            if self._last_use(bias):
                self._hand_on(bias, total)
            else:
                self._sums[bias] = total

    def _weight(self, name: str, parameter: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        # A reused weight has one gradient, the sum over its uses; Γ is not linear, so it must wait for the last use.
        # Until then it keeps the smaller of two: the activations of its uses, joined in time, or the gradient itself.
        before, total = self._waiting.pop(name, None), self._sums.pop(name, None)
        if before is not None:
            a, b = torch.cat([before[0], a], dim=1), torch.cat([before[1], b], dim=1)
        if self._last_use(name):
            self._stream(name, parameter, a, b, total)
        elif total is not None or a.numel() + b.numel() > self._samples * parameter.numel():
            gradient = torch.bmm(b.transpose(1, 2), a)
            self._sums[name] = gradient if total is None else total.add_(gradient)
        else:
            self._waiting[name] = (a, b)

    def _last_use(self, name: str) -> bool:
        self.uses[name] -= 1
        return self.uses[name] == 0

    def _stream(
        self, name: str, parameter: torch.Tensor, a: torch.Tensor, b: torch.Tensor, total: torch.Tensor | None
    ) -> None:
        """Computes Σ_t b_t a_tᵀ (plus the sum of earlier uses) slice by slice for the sink."""
        b, sink = b.transpose(1, 2), self._sink
        slices = output_slices(parameter, self._dtype) if isinstance(sink, SlicedSink) else [slice(0, b.shape[1])]
        step = max(1, SLICE_BYTES // (parameter.numel() * self._dtype.itemsize))
        for start in range(0, self._samples, step):
            rows = slice(start, min(start + step, self._samples))
            for piece in slices:
                gradients = torch.bmm(b[rows, piece], a[rows])
                if total is not None:
                    gradients += total[rows, piece]
                if len(slices) > 1 and isinstance(sink, SlicedSink):
                    sink.take_slice(name, rows, piece, gradients)
                else:
                    sink.take(name, rows, gradients)
        self._done.add(name)

    def _hand_on(self, name: str, gradients: torch.Tensor) -> None:
        self._sink.take(name, slice(0, self._samples), gradients)
        self._done.add(name)

    @torch.no_grad()
    def finish(self, parameters: dict[str, nn.Parameter]) -> None:
        """Passes on gradients that still wait for an unreached use, and zeros for parameters without any."""
        for name, parameter in parameters.items():
            if name in self._done:
                continue
            total = self._sums.pop(name, None)
            if name in self._waiting:
                self._stream(name, parameter, *self._waiting.pop(name), total)
            elif total is not None:
                self._hand_on(name, total)
            elif parameter.dim() < 2:
                self._hand_on(name, parameter.new_zeros(self._samples, len(parameter), dtype=self._dtype))
            else:
                a, b = (parameter.new_zeros(self._samples, 0, n, dtype=self._dtype) for n in parameter.shape[::-1])
                self._stream(name, parameter, a, b, None)


class _Total:
    """A sink that sums over samples."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}

    def take(self, name: str, rows: slice, gradients: torch.Tensor) -> None:
        part = gradients.sum(0)
        self.sums[name] = self.sums[name] + part if name in self.sums else part
