"""From a scorer's tensors to the numbers of judgements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import ModelError
from optimsyn.data.records import Pair

if TYPE_CHECKING:
    from optimsyn.influence.factory import Scorer

SCORE_FIELDS = ("influence", "by_subtask", "gradient_norm", "loss", "label_tokens")


def score_fields(scorer: Scorer, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Influence, gradient norm and loss of pairs as fields of a judgement, in order.

    Raises:
        ModelError: A score is not finite; TRL takes a NaN as "no advantage", and infinity zeroes a gradient.
    """
    scores = scorer.score(pairs)
    subtasks = tuple(scorer.subtasks)
    rows = []
    for index, pair in enumerate(pairs):
        numbers = [float(scores.total[index]), *(float(value) for value in scores.by_subtask[index])]
        if not all(math.isfinite(number) for number in numbers):
            raise ModelError(
                f"pair {pair.id!r} (passage {pair.passage_id!r}): its influence is not a finite number "
                f"({numbers[0]}), which no optimiser may see. Is the target's dtype too narrow, or did its "
                "warm-up diverge? Try models.target.dtype: float32 or a smaller warm_up.lr."
            )
        norm = None if scores.gradient_norm is None else _rounded(float(scores.gradient_norm[index]))
        rows.append(
            {
                "influence": _rounded(numbers[0]),
                "by_subtask": {name: _rounded(x) for name, x in zip(subtasks, numbers[1:], strict=True)},
                "gradient_norm": norm,
                "loss": _rounded(float(scores.loss[index])),
                "label_tokens": int(scores.label_tokens[index]),
            }
        )
    return rows


def _rounded(number: float) -> float:
    """Nine significant digits; further ones depend on the order in which threads add."""
    return float(f"{number:.9g}")
