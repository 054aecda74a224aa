"""Log-probabilities of tokens after a frozen output layer, a chunk of positions at a time.

With a vocabulary of 262,144 the logits take most of a small model's time and memory. Here the gradient of the hidden
states is computed together with a chunk's logits, so that no [positions, vocabulary] matrix outlives its chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Largest matrix of logits in memory.
CHUNK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class OutputLayer:
    """A frozen output layer and the post-processing of its logits, in this order.

    Attributes:
        weight: [vocabulary, H].
        bias: [vocabulary], or None.
        scale: Logits are multiplied by this,
        softcap: bent into (-softcap, softcap) unless this is None,
        temperature: and divided by this.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0


def _log_probs(
    hidden: torch.Tensor,
    layer: OutputLayer,
    targets: torch.Tensor,
    with_gradient: bool,
    entropies: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities [N] of targets [N], their gradients [N, H] to hidden [N, H]; fills entropies [N] if given."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    log_probs = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
    # Kept in float32, so that it is rounded only once, when the model takes it back.
    gradient = torch.empty_like(hidden, dtype=dtype) if with_gradient else None
    chunk = max(1, CHUNK_BYTES // (len(layer.weight) * dtype.itemsize))
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        logits = nn.functional.linear(hidden[part], layer.weight, layer.bias).to(dtype)
        if layer.scale != 1.0:
            logits.mul_(layer.scale)
        bent = None
        if layer.softcap is not None:
            bent = torch.tanh(logits.div_(layer.softcap))
            logits = bent * layer.softcap
        if layer.temperature != 1.0:
            logits.div_(layer.temperature)
        total = torch.logsumexp(logits, dim=-1, keepdim=True)
        wanted = targets[part].unsqueeze(-1)
        log_probs[part] = (logits.gather(-1, wanted) - total).squeeze(-1)
        probabilities = None
        if entropies is not None:
            probabilities = (logits - total).exp_()
            entropies[part] = total.squeeze(-1) - torch.linalg.vecdot(probabilities, logits)
        if gradient is None:
            continue
        slope = (logits.sub_(total).exp_() if probabilities is None else probabilities).neg_()
        slope.scatter_add_(-1, wanted, torch.ones_like(wanted, dtype=dtype))
        if bent is not None:
            slope.mul_(bent.square_().neg_().add_(1.0))
        if layer.scale != 1.0:
            slope.mul_(layer.scale)
        if layer.temperature != 1.0:
            slope.div_(layer.temperature)
        gradient[part] = slope.to(layer.weight.dtype) @ layer.weight
    return log_probs, gradient


def _to_hidden(ctx: Any, moved: torch.Tensor) -> torch.Tensor:
    """The gradient of the hidden states [N, H], from that of the log-probabilities [N]."""
    (gradient,) = ctx.saved_tensors
    slope: torch.Tensor = moved.unsqueeze(-1) * gradient
    return slope.to(ctx.hidden_dtype)


class TokenLosses(torch.autograd.Function):
    """Cross entropies [N] of targets [N] after a frozen output layer, also in forward mode."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, layer: OutputLayer, targets: torch.Tensor, with_gradient: bool
    ) -> torch.Tensor:
        """In nats, for hidden states [N, H]."""
        log_probs, gradient = _log_probs(hidden, layer, targets, with_gradient)
        ctx.hidden_dtype = hidden.dtype
        if gradient is not None:
            gradient.neg_()
            ctx.save_for_backward(gradient)
            ctx.save_for_forward(gradient)
        return log_probs.neg_()

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> torch.Tensor:
        """How the losses change when only the hidden states do."""
        (gradient,) = ctx.saved_tensors
        moved = tangents[0]
        assert moved is not None
        dtype = torch.promote_types(moved.dtype, torch.float32)
        slope: torch.Tensor = (gradient.to(dtype) * moved).sum(-1)
        return slope

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient to the hidden states only: the output layer is frozen."""
        return _to_hidden(ctx, outputs[0]), None, None, None


class TokenLogProbs(torch.autograd.Function):
    """Log-probabilities of tokens and entropies of their distributions after a frozen output layer."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, layer: OutputLayer, targets: torch.Tensor, with_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both [N], in nats, for hidden states [N, H] and targets [N]; only the first is differentiable."""
        entropies = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        log_probs, gradient = _log_probs(hidden, layer, targets, with_gradient, entropies)
        ctx.hidden_dtype = hidden.dtype
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropies)
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient to the hidden states only: the output layer is frozen."""
        return _to_hidden(ctx, outputs[0]), None, None, None
