"""A look at a warm-up: the losses of form and content, of questions and of pairs not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.encoding import Encoded, Role, counted
from optimsyn.target.warm_up.curve import Losses

if TYPE_CHECKING:
    from optimsyn.target.warm_up.protocol import Trainee

# Independent of what the reward counts.
_CONTENT = CountedTokens(end_of_questions=0, end_of_pairs=0)


@torch.no_grad()
def measure(
    target: Trainee, questions: Sequence[Encoded], unseen: Sequence[Encoded], batch_tokens: int = 2048
) -> Losses:
    """Losses of form and content of the target in its current state."""
    asked = _tokens(target, questions, "question", batch_tokens)
    pairs = _tokens(target, unseen, "pair", batch_tokens)
    # All or none: a tokenizer either ends a text or it does not.
    ends = [end for _, end in asked]
    return Losses(
        end=tuple(_mean(end) for end in ends) if all(ends) else (),
        first=tuple(content[0] for content, _ in asked),
        content=tuple(_mean(content) for content, _ in asked),
        unseen=tuple(_mean(content) for content, _ in pairs),
    )


def _tokens(
    target: Trainee, encoded: Sequence[Encoded], role: Role, batch_tokens: int
) -> list[tuple[list[float], list[float]]]:
    """For each sample the losses of the tokens that count, and of those after them."""
    by_sample: list[tuple[list[float], list[float]]] = [([], []) for _ in encoded]
    content = [counted(item, _CONTENT, role).label_tokens for item in encoded]
    for batch in target.batches(encoded, batch_tokens):
        losses, rows, _ = target.token_losses(batch)
        for row, loss in zip(rows.tolist(), losses.tolist(), strict=True):
            index = batch.indices[row]
            counts, ends = by_sample[index]
            (counts if len(counts) < content[index] else ends).append(loss)
    return by_sample


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
