"""What a search for a guiding text found, whoever wrote the rubrics."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from optimsyn.base.counting import plural
from optimsyn.optimize.confirmation import Confirmation
from optimsyn.runs.results.stage_result import NOT_RECORDED


class TextSearch(BaseModel):
    """A search for a guiding text; without one all is None."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    start_score: float | None = Field(None, description="Mean reward of the text that it started from.")
    score: float | None = Field(None, description="Mean reward of the chosen guiding text.")
    start_text: str | None = Field(None, description="The text that it started from.")
    text: str | None = Field(None, description="The chosen guiding text.")
    candidates: int | None = Field(None, description="Texts that were tried.")
    judged: int | None = Field(None, description="Pairs that were judged.")
    changed: bool | None = Field(None, description="Whether another text than the start text was chosen.")
    ended: str | None = Field(None, description="Why it ended: budget, patience, proposals (none left) or plan.")
    confirmation: Confirmation | None = Field(
        None, description="The winner beside the start text on passages that chose nothing, where it was confirmed."
    )

    def rows_from(self, whose: str) -> tuple[tuple[Any, ...], ...]:
        """Rows of a table: the texts before and after, `whose` the first one is (such as "the recipe's")."""
        judged = NOT_RECORDED if self.judged is None else f"{plural(self.judged, 'pair')} judged"
        rows: tuple[tuple[Any, ...], ...] = (
            (f"reward of {whose} guiding text", self.start_score, self.start_text),
            ("reward of the chosen guiding text", self.score, self.text),
            ("candidates tried", self.candidates, judged),
        )
        if (seen := self.confirmation) is None:
            return rows
        what = "gain on passages that chose nothing"
        interval = f"{seen.low:+.4f} to {seen.high:+.4f}, {plural(seen.passages, 'passage')}"
        return (*rows, (what, seen.difference, interval))


class SecondTurn(TextSearch):
    """The second search of the guiding text, with the trained policy as the writer of rubrics."""

    notes: tuple[str, ...] = Field((), description="Sentences on its end and its confirmation.")
