"""Gradients of many samples in two parts, answer and end, from which every definition of what counts follows.

Under `optimsyn.target.encoding.counted` a sample's loss is Σ w_t ℓ_t with one weight for all tokens of the answer and
one for those that end it. So the gradients of both sums give the gradient under any definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from optimsyn.base.errors import ModelError
from optimsyn.influence.gradients.rows import gradient_rows, layout_of
from optimsyn.influence.gradients.taps import GradientTaps
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.encoding import Encoded, Role, counted
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint

_ANSWER = CountedTokens(end_of_pairs=0, reduction="sum")


@dataclass(frozen=True)
class GradientParts:
    """Gradients of n samples at one checkpoint, parameters in the target's order.

    Attributes:
        answer: [n, P], of the sum over the answer's tokens.
        end: [n, P], of the sum over the tokens that end it; zeros where there is none.
        answer_tokens: [n] float64.
        end_tokens: [n] float64.
        answer_loss: [n] float64, sums in nats.
        end_loss: [n] float64.
    """

    answer: torch.Tensor
    end: torch.Tensor
    answer_tokens: torch.Tensor
    end_tokens: torch.Tensor
    answer_loss: torch.Tensor
    end_loss: torch.Tensor

    @classmethod
    def of(
        cls, target: Target, checkpoint: Checkpoint, encoded: Sequence[Encoded], batch_tokens: int = 1024
    ) -> GradientParts:
        """Two backward passes of every sample."""
        target.load_checkpoint(checkpoint)
        taps = GradientTaps(target)
        answers = [counted(item, _ANSWER, "pair") for item in encoded]
        places = [i for i, item in enumerate(encoded) if item.label_tokens > answers[i].label_tokens]
        ends = [_ending(encoded[i], answers[i]) for i in places]
        answer, answer_loss = _rows(taps, answers, batch_tokens)
        end, end_loss = torch.zeros_like(answer), torch.zeros(len(encoded), dtype=torch.float64)
        if ends:
            end[places], end_loss[places] = _rows(taps, ends, batch_tokens)
        tokens = torch.tensor([item.label_tokens for item in answers], dtype=torch.float64)
        whole = torch.tensor([item.label_tokens for item in encoded], dtype=torch.float64)
        return cls(answer, end, tokens, whole - tokens, answer_loss, end_loss)

    def under(self, tokens: CountedTokens, role: Role) -> torch.Tensor:
        """The gradients [n, P] of the samples' losses when these tokens count."""
        return self._weighted(self.answer, self.end, tokens, role)

    def losses(self, tokens: CountedTokens, role: Role) -> torch.Tensor:
        """The losses [n] when these tokens count, in nats."""
        return self._weighted(self.answer_loss[:, None], self.end_loss[:, None], tokens, role)[:, 0]

    def _weighted(self, answer: torch.Tensor, end: torch.Tensor, tokens: CountedTokens, role: Role) -> torch.Tensor:
        share = tokens.end_of_questions if role == "question" else tokens.end_of_pairs
        total = self.answer_tokens + share * self.end_tokens
        power = {"mean": 1.0, "root": 0.5, "sum": 0.0}[tokens.reduction]
        divisor = total.pow(power).to(answer)[:, None]
        return torch.add(answer, end, alpha=share) / divisor


def _ending(whole: Encoded, answer: Encoded) -> Encoded:
    """Only the tokens that `answer` leaves out of `whole`, each with weight 1."""
    labels = [full if kept == -100 else -100 for full, kept in zip(whole.labels, answer.labels, strict=True)]
    count = sum(label != -100 for label in labels)
    return replace(whole, labels=labels, weights=(1.0,) * count)


def _rows(taps: GradientTaps, encoded: Sequence[Encoded], batch_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    (rows,), losses = gradient_rows(taps, layout_of(taps.target), encoded, [None], batch_tokens=batch_tokens)
    if not bool(torch.isfinite(rows).all()):
        bad = [encoded[i].id for i in (~torch.isfinite(rows).all(dim=1)).nonzero().flatten().tolist()]
        raise ModelError(f"the gradients of samples {', '.join(map(repr, bad))} are not finite; look at their text")
    return rows, losses
