"""Twins of an adapter: its trained weights, moved a little along d = D ⊙ V, without ever writing to them.

The derivative of a sample's loss along d is its influence (`optimsyn.influence.derivative.scorer`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from optimsyn.influence.directions import Directions
from optimsyn.influence.estimators import Estimator
from optimsyn.influence.gradients.taps import GradientTaps
from optimsyn.influence.moments import moments_of
from optimsyn.target.encoding import IGNORE, Batch
from optimsyn.target.target import Target
from optimsyn.target.temporary import evaluating
from optimsyn.target.warm_up.checkpoints import Checkpoint


def step_directions(
    target: Target, checkpoint: Checkpoint, directions: Directions, estimator: Estimator
) -> dict[str, torch.Tensor]:
    """d_k = D ⊙ V_k: the derivative of a sample's loss along it is its influence on subtask k.

    Returns:
        Parameter name -> [K, *parameter.shape], float32 (float64 of a float64 model), on the parameter's device.
    """
    steps = {}
    for name, parameter in target.parameters.items():
        moments = moments_of(checkpoint, name, dtype=target.dtype, device=parameter.device)
        # D is diagonal, so applying it to V instead of g gives the same dot product.
        steps[name] = estimator.bind(moments)(directions.vectors[name].to(parameter.device, target.dtype))
    return steps


def length(tensors: Mapping[str, torch.Tensor]) -> float:
    """Euclidean norm of all tensors together, summed in float64."""
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors.values()))


class Twins:
    """Forward passes of a target with other values of its trained parameters.

    The forward of each trained `nn.Linear` is replaced during a pass, so the parameters themselves are never written,
    even after an error. The other values are float32 (float64 of a float64 model) even where the parameter is bfloat16,
    which rounds a step of a thousandth away. Between the two halves of a LoRA nothing is rounded to the model's dtype
    either; after them peft adds the result to the layer's output in that dtype.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._taps = GradientTaps(target)

    def moved(self, points: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The trained parameters plus each of these steps (an empty one: none), by name [points, *parameter.shape]."""
        dtype = self._target.dtype
        values = {}
        for name, parameter in self._target.parameters.items():
            here = parameter.detach().to(dtype)
            values[name] = torch.stack([here + point[name] if point else here for point in points])
        return values

    @torch.no_grad()
    def token_losses(
        self, batch: Batch, values: Mapping[str, torch.Tensor], *, together: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of a batch's label tokens at each of several values of the parameters.

        Args:
            batch: The samples, [B, T].
            values: From `moved`, for M points.
            together: One pass over M·B rows instead of M passes over B.

        Returns:
            Losses [M, N] float64 on the CPU, and the row [N] of each label token, in row-major order.
        """
        batch = _cut(batch)
        self._target.try_out(batch)
        count = len(next(iter(values.values())))
        if together:
            batch = Batch(
                indices=batch.indices * count,
                ids=batch.ids * count,
                input_ids=batch.input_ids.repeat(count, 1),
                labels=batch.labels.repeat(count, 1),
                weights=None if batch.weights is None else batch.weights.repeat(count, 1),
            )
        groups = [values] if together else [{k: v[i : i + 1] for k, v in values.items()} for i in range(count)]
        losses = []
        for group in groups:
            with self.at(group):
                tokens, rows, _ = self._target.token_losses(batch)
            losses.append(tokens.double().cpu())
        joined = torch.cat(losses).view(count, -1)
        return joined, rows[: joined.shape[1]].cpu()

    @contextmanager
    def at(self, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Runs the target, in evaluation mode, with other values of its trained parameters.

        Args:
            values: Parameter name -> [M, *shape]; a batch then holds M consecutive groups of rows, each with its own
                values. Gradients flow to them where they are enabled.
        """

        def moved(_: str, layer: nn.Linear, weight: str | None, bias: str | None) -> Any:
            return _linear_at(layer, weight, bias, values)

        # Not `Target.scoring`, which makes layers recompute activations for a backward pass.
        with evaluating(self._target.model), self._taps.replaced(moved):
            yield


def _linear_at(layer: nn.Linear, weight: str | None, bias: str | None, values: Mapping[str, torch.Tensor]) -> Any:
    """The layer's forward on equal groups of rows, each with its own values."""
    weights = values[weight] if weight is not None else layer.weight.detach()[None]
    biases = None
    if layer.bias is not None:
        biases = values[bias] if bias is not None else layer.bias.detach()[None]
    count = max(len(weights), 1 if biases is None else len(biases))
    # Inside a LoRA outputs stay float32; other layers must return the dtype that their neighbours expect.
    inside = weight is not None and (".lora_A." in weight or ".lora_B." in weight)

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        x = inputs.to(weights.dtype)
        if count == 1:
            output = nn.functional.linear(x, weights[0], None if biases is None else biases[0].to(x.dtype))
        else:
            # [M·B, T, in] -> [M, B·T, in]: groups are consecutive.
            output = torch.matmul(x.reshape(count, -1, x.shape[-1]), weights.transpose(1, 2))
            if biases is not None:
                output = output + biases.to(x.dtype).unsqueeze(1)
            output = output.view(*x.shape[:-1], output.shape[-1])
        return output if inside else output.to(inputs.dtype)

    return forward


def _cut(batch: Batch) -> Batch:
    """Drops the columns from the last label on: a label is predicted by the column before it."""
    last = int((batch.labels != IGNORE).any(dim=0).nonzero().max())
    weights = None if batch.weights is None else batch.weights[:, : last + 1]
    return Batch(batch.indices, batch.ids, batch.input_ids[:, :last], batch.labels[:, : last + 1], weights)
