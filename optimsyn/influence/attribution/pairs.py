"""The influence of pairs, split over the words of their answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimsyn.base.errors import ModelError
from optimsyn.data.forms import shown
from optimsyn.influence.attribution.pieces import answer_pieces
from optimsyn.influence.attribution.records import PairShares, TokenPiece

if TYPE_CHECKING:
    from optimsyn.data.records import Pair
    from optimsyn.influence.factory import Scorer
    from optimsyn.target.target import Target


def pair_shares(scorer: Scorer, target: Target, pairs: Sequence[Pair]) -> list[PairShares]:
    """Scores pairs and splits each score over the pieces of the answer; works with every scorer.

    A simulated training (`influence.estimator: simulated`) is not a sum over tokens; shares and influence are then
    those of `adam_linear` with `dot`.

    Args:
        scorer: The exact scorer, the twin scorer or that of a simulated training.
        target: Its target, for the tokens.
        pairs: A few pairs; this takes about four times as long as scoring them (with twins, no longer).

    Returns:
        In the caller's order. Shares and remainder of a pair sum to its influence.

    Raises:
        ModelError: A pair cannot be scored, or the model has no forward-mode derivatives.

    Example:
        >>> from optimsyn.report.heatmap import Heatmap
        >>> Heatmap(pair_shares(scorer, target, pairs))                              # doctest: +SKIP
    """
    from optimsyn.influence.simulated.scorer import SimulatedScorer

    if isinstance(scorer, SimulatedScorer):
        scorer = scorer.linear
    scores = scorer.score(pairs, token_shares=True)
    rows = []
    for index, pair in enumerate(pairs):
        shares = [] if scores.token_shares is None else [float(share) for share in scores.token_shares[index]]
        cut = answer_pieces(target.tokenizer, pair, target.max_length)
        encoded = target.encode(pair)
        if len(shares) == encoded.label_tokens - encoded.end_tokens - len(encoded.earlier_ends):
            # With end_of_pairs 0 the ends of turns do not count and have no share.
            shares = [0.0] * len(encoded.earlier_ends) + shares + [0.0] * encoded.end_tokens
        if sum(count for _, count in cut) != len(shares):
            raise ModelError(
                f"pair {pair.id!r}: {len(shares)} token shares for {sum(count for _, count in cut)} tokens; does the "
                "scorer belong to this target?"
            )
        left = iter(shares)
        pieces = [
            TokenPiece(text=text, shares=tuple(next(left) for _ in range(count)), end=not text) for text, count in cut
        ]
        total = float(scores.total[index])
        (question, *below), answer = shown(pair)
        rows.append(
            PairShares(
                id=pair.id,
                question=question if pair.choices else "\n".join((question, *below)),
                answer=answer,
                choices=tuple(below) if pair.choices else None,
                influence=total,
                remainder=total - math.fsum(shares),
                pieces=tuple(pieces),
            )
        )
    return rows
