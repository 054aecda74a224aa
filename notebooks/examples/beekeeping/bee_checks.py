"""A validity check of one's own, named in recipe.yaml as `bee_checks:answer_is_short`."""

from __future__ import annotations

from optimsyn.data.records import Pair
from optimsyn.programs.checks import CheckContext

LONGEST = 8


def answer_is_short(pair: Pair, context: CheckContext) -> str | None:
    """An examiner of beekeepers wants a few words, not a sentence."""
    words = len(pair.answer.split())
    return f"the answer has {words} words, more than {LONGEST}" if words > LONGEST else None
