"""Saves the token shares of the best and worst pairs for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimsyn.base.errors import ModelError
from optimsyn.influence.attribution.records import SHARES_FILE, TokenShares

if TYPE_CHECKING:
    from optimsyn.reward.judgements import Judgement
    from optimsyn.stages.shared import Tools

MOST_SHOWN = 3
"""How many of the best and of the worst pairs: few, since shares cost about four times a score."""


def extremes(judgements: Sequence[Judgement]) -> list[Judgement]:
    """The valid pairs of highest and of lowest influence, highest first; ties by order of writing."""
    valid = [row for row in judgements if row.valid and row.pair is not None and row.influence is not None]
    order = sorted(valid, key=lambda row: -(row.influence or 0.0))
    return order if len(order) <= 2 * MOST_SHOWN else [*order[:MOST_SHOWN], *order[-MOST_SHOWN:]]


def keep_token_shares(tools: Tools, variant: str, judgements: Sequence[Judgement]) -> None:
    """Writes `synthesize/token_shares.json`, unless it exists.

    A model without forward-mode derivatives has no shares. The file then says so and the run goes on: its pairs are
    scored and good.

    Args:
        tools: Tools of the run.
        variant: Variant of the pairs.
        judgements: The variant's candidates without duplicates.
    """
    from optimsyn.influence.attribution.pairs import pair_shares

    path = tools.run.path("synthesize", SHARES_FILE)
    if path.is_file():
        return
    config = tools.recipe.influence
    attributed = config.linear if config.estimator == "simulated" and config.is_influence else config
    note = " (simulated, by which pairs are judged, is not a sum over tokens)" if attributed is not config else ""
    record = TokenShares(variant=variant, estimator=f"{attributed.label}{note}")
    pairs = [row.pair for row in extremes(judgements) if row.pair is not None]
    try:
        shares = tuple(pair_shares(tools.scorer, tools.target, pairs))
    except ModelError as error:
        record = record.model_copy(update={"reason": str(error)})
    else:
        record = record.model_copy(update={"pairs": shares})
    record.write(path)
