"""Per-sample losses from logits at label positions only.

Only hidden states that predict a label reach the output layer, in chunks where that layer is frozen
(`optimsyn.target.output_layer`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from optimsyn.base.errors import ModelError
from optimsyn.target.encoding import IGNORE, Batch
from optimsyn.target.output_layer import OutputLayer, TokenLosses
from optimsyn.target.temporary import evaluating


class LabelLoss:
    """Weighted loss of each sample over its label tokens, for any Hugging Face causal language model.

    There are two exact methods. The first computes the output layer itself: a frozen `nn.Linear`, followed by at most a
    scale and a soft cap. It is checked against the model's own logits once before it is used. The second calls the
    model, with a hook that passes its output layer the hidden states of label positions only; it works for every model.
    """

    def __init__(self, causal: Any) -> None:
        self._causal = causal
        self._head = causal.get_output_embeddings()
        config = causal.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = float(getattr(config, "logit_scale", None) or 1.0)
        if getattr(config, "logits_scaling", None):
            self._scale /= float(config.logits_scaling)
        # Whether only the label positions go through the output layer; None before the first batch.
        self.fused: bool | None = None

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Weighted losses [B] (float32, or float64 of a float64 model) of a right-padded batch [B, T]."""
        tokens, rows, columns = self.tokens(batch.input_ids, batch.labels)
        # With a model on several GPUs, losses are on the device of its output layer.
        weighted = tokens * batch.token_weights(rows, columns).to(tokens)
        sums = torch.zeros(len(batch), dtype=tokens.dtype, device=tokens.device)
        return sums.index_add(0, rows.to(tokens.device), weighted)

    def tokens(self, input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of each of the N label tokens of a right-padded batch.

        Args:
            input_ids: [B, T].
            labels: [B, T], -100 where no token is predicted.

        Returns:
            Losses [N] in nats, and the row [N] and the column [N] of each label, in row-major order.
        """
        # No attention mask: under a causal mask no position before the padding sees it, and without one the fast
        # attention kernels can be used. Nothing after the last label has a loss, so gradients at padding are exactly 0.
        rows, columns = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        targets = labels[rows, columns + 1]
        self.try_out(input_ids)
        if self.fused:
            hidden = self._hidden(input_ids)[rows, columns]
            tokens = self._head_loss(hidden, targets)
        else:
            logits = self._logits_at(input_ids, rows, columns)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            tokens = nn.functional.cross_entropy(logits, targets, reduction="none")
        return tokens, rows, columns + 1

    @torch.no_grad()
    def try_out(self, input_ids: torch.Tensor) -> None:
        """Tests the model on the first tokens of a batch [B, T]; later calls do nothing.

        Dropout is off during the test: two passes over the same tokens must agree.

        Raises:
            ModelError: The model's predictions depend on later tokens, so that padding changes losses; or a weight is
                not finite.
        """
        if self.fused is not None:
            return
        with evaluating(self._causal):
            self._refuse_foresight(input_ids[:1, :8])
            self.fused = self._try_fused(input_ids[:1, :8])

    def _refuse_foresight(self, input_ids: torch.Tensor) -> None:
        """The logits of the first half of the tokens must not change when other tokens follow."""
        half = max(1, input_ids.shape[1] // 2)
        # The same number of tokens, so that the same kernels add in the same order.
        other = torch.cat([input_ids[:, :half], input_ids[:, :half], input_ids], dim=1)[:, : input_ids.shape[1]]
        columns = torch.arange(half, device=input_ids.device)
        rows = torch.zeros_like(columns)
        logits = self._logits_at(input_ids, rows, columns).float()
        again = self._logits_at(other, rows, columns).float()
        exact = all(p.dtype in (torch.float32, torch.float64) for p in self._causal.parameters())
        self._refuse_broken_weights(logits)
        # The tolerance allows for rounding in a mixture of experts.
        moved = float((logits - again).square().mean().sqrt()) / max(float(logits.std()), 1e-30)
        if moved > (1e-3 if exact else 0.02):
            raise ModelError(
                f"{type(self._causal).__name__}: its predictions depend on later tokens, so it is not a causal "
                "language model and sees the answer that it predicts; name another target, or make it causal in its "
                "configuration (is_decoder, where a model has it)"
            )

    def _refuse_broken_weights(self, logits: torch.Tensor) -> None:
        """Names the weight that makes logits NaN or infinite; if there is none, the losses name the sample."""
        if bool(torch.isfinite(logits).all()):
            return
        for name, parameter in self._causal.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise ModelError(
                    f"{type(self._causal).__name__}: the weight {name} contains NaN or infinite values; download the "
                    "model's files again, or name another model"
                )

    def _hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        output = self._causal.base_model(input_ids=input_ids, use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _head_loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = self._head.weight
        hidden = hidden.to(weight.device)
        dual = forward_ad.unpack_dual(hidden).tangent is not None  # type: ignore[no-untyped-call]
        with_gradient = dual or (torch.is_grad_enabled() and hidden.requires_grad)
        layer = OutputLayer(weight, self._head.bias, self._scale, self._softcap)
        losses: torch.Tensor = TokenLosses.apply(  # type: ignore[no-untyped-call]
            hidden, layer, targets.to(weight.device), with_gradient
        )
        return losses

    def _logits_at(self, input_ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The model's own logits [N, vocabulary] at these positions, with all its post-processing."""
        counts = torch.bincount(rows, minlength=len(input_ids))
        places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]

        def pick(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            # Padded to [B, most labels, hidden], not joined: a trained output layer must see each sample separately.
            hidden = arguments[0]
            picked = hidden.new_zeros(len(hidden), int(counts.max()), hidden.shape[-1])
            return picked.index_put((rows, places), hidden[rows, columns]), *arguments[1:]

        hook = self._head.register_forward_pre_hook(pick)
        try:
            logits: torch.Tensor = self._causal(input_ids=input_ids, use_cache=False).logits
        finally:
            hook.remove()
        return logits[rows, places]

    def _try_fused(self, input_ids: torch.Tensor) -> bool:
        """Whether the first method gives this model's own losses; an unknown scale or soft cap shows here."""
        head = self._head
        plain_head = type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters())
        if not plain_head or self._causal.base_model is self._causal:
            return False
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        targets = torch.roll(input_ids[0], -1)
        own = self._logits_at(input_ids, torch.zeros_like(columns), columns).float()
        expected = nn.functional.cross_entropy(own, targets.to(own.device), reduction="none")
        fused = self._head_loss(self._hidden(input_ids)[0], targets).float()
        tolerance = 1e-4 if head.weight.dtype in (torch.float32, torch.float64) else 2e-2
        return torch.allclose(fused, expected.to(fused.device), rtol=tolerance, atol=tolerance)
