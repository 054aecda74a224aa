"""The judgements that a reward has returned, and how each compares with the others of its passage."""

from __future__ import annotations

from optimsyn.reward.judgements import Judgement, describe


class GivenOut:
    """The keys of returned judgements, and the best and the worst pair of each passage, for feedback.

    Adding and comparing take constant time. Not thread-safe.
    """

    def __init__(self) -> None:
        self._passages: dict[str, str] = {}
        self._extremes: dict[str, tuple[Judgement, Judgement]] = {}

    def __len__(self) -> int:
        return len(self._passages)

    def in_order(self) -> list[str]:
        """All keys, in an order that does not depend on timing: by passage, then by key."""
        return sorted(self._passages, key=lambda key: (self._passages[key], key))

    def add(self, row: Judgement) -> None:
        """Adds a judgement, once."""
        if row.key in self._passages:
            return
        self._passages[row.key] = row.passage_id
        best, worst = self._extremes.get(row.passage_id, (row, row))
        self._extremes[row.passage_id] = (
            max(best, row, key=lambda judgement: (judgement.reward, judgement.key)),
            min(worst, row, key=lambda judgement: (judgement.reward, judgement.key)),
        )

    def compared(self, row: Judgement) -> str:
        """The feedback on a judgement, with the best and the worst other pair of the passage and their rubrics."""
        parts = [row.feedback]
        # If the pair itself is one of them, no other is better (or worse).
        best, worst = self._extremes.get(row.passage_id, (row, row))
        if best.reward > row.reward:
            parts.append(f"Better for the same passage: {describe(best)}")
        if worst.reward < row.reward:
            parts.append(f"Worse for the same passage: {describe(worst)}")
        return " ".join(parts)
