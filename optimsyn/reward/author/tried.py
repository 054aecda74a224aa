"""A draft that an author has tried, and what tools have to say about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimsyn.data.forms import shown
from optimsyn.programs.prompts.fence import fenced_result
from optimsyn.reward.author.trajectory import AuthorDraft

if TYPE_CHECKING:
    from optimsyn.data.records import Rubric
    from optimsyn.reward.drafting import Draft
    from optimsyn.reward.judgements import Judgement


@dataclass
class Tried:
    """A draft of a rubric.

    Attributes:
        rubric: The draft.
        draft: The pair under it; None: not written.
        row: Its judgement; None: not scored.
    """

    rubric: Rubric
    draft: Draft | None = None
    row: Judgement | None = None

    @property
    def scored(self) -> bool:
        """Whether it has a reward."""
        return self.row is not None and self.row.unjudged is None

    @property
    def record(self) -> AuthorDraft:
        """The draft as a trajectory keeps it."""
        row = self.row
        valid = self.draft.valid if self.draft is not None and self.draft.unjudged is None else None
        if row is not None:
            valid = None if row.unjudged is not None else row.valid
        reward = row.reward if row is not None and self.scored else None
        return AuthorDraft(rubric=self.rubric, key=None if row is None else row.key, valid=valid, reward=reward)

    @property
    def pair(self) -> str:
        """The pair and, before it is scored, what is wrong with it, on one line."""
        if self.draft is None:
            return "It has no pair."
        if self.draft.pair is None:
            return f"No pair could be read: {fenced_result(' '.join(self.draft.remarks))}"
        lines, answer = shown(self.draft.pair)
        said = f"Question: {fenced_result(' · '.join(lines))} Answer: {fenced_result(answer)}"
        if self.row is None:
            wrong = fenced_result("; ".join(self.draft.remarks))
            said += f" It fails: {wrong}." if wrong else " It passes the checks."
        return said


def best_of(tried: Sequence[Tried]) -> int | None:
    """Number of the draft to take: valid ones first, then the highest reward; else one with a pair, else the last.

    None without a draft.
    """
    numbered = list(enumerate(tried, 1))
    scored = [(each.row.valid, each.row.reward, -n) for n, each in numbered if each.row is not None and each.scored]
    if scored:
        return -max(scored)[2]
    with_pair = [number for number, each in numbered if each.draft is not None]
    return with_pair[-1] if with_pair else len(numbered) or None


def ranking(tried: Sequence[Tried]) -> str:
    """All scored drafts, a line each, the best first."""
    scored = [(n, each.row) for n, each in enumerate(tried, 1) if each.row is not None and each.scored]
    scored.sort(key=lambda each: (not each[1].valid, -each[1].reward, each[0]))
    said = (f"reward {row.reward:+.3g}, {'valid' if row.valid else 'invalid'}" for _, row in scored)
    return "\n".join(f"Draft {number}: {line}." for (number, _), line in zip(scored, said, strict=True))
