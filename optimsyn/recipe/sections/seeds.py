"""The section `seeds` of a recipe: parts of its randomness with a seed of their own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optimsyn.recipe.sections.models import Section

Purpose = Literal["data", "generator", "policy", "fine_tune"]


class Seeds(Section):
    """Seeds that vary a part of a run alone; null: as `seed`."""

    data: int | None = Field(
        None, ge=0, description="Of the sampled documents, the questions' split, the order of passages, the warm-up."
    )
    generator: int | None = Field(None, ge=0, description="Of the sampled rubrics and pairs of drafts and candidates.")
    policy: int | None = Field(None, ge=0, description="Of both optimisers: prompt search and policy training.")
    fine_tune: int | None = Field(None, ge=0, description="Of the fine-tuning: the adapter's start, order of pairs.")

    @property
    def given(self) -> dict[str, int]:
        """Those that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}
