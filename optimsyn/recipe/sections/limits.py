"""The section `limits` of a recipe."""

from __future__ import annotations

from pydantic import Field

from optimsyn.recipe.sections.models import Section


class Limits(Section):
    """Caps that stop a run loudly, with everything paid for kept."""

    cost_usd: float | None = Field(None, gt=0, description="Most that all replies of the run may cost, in US dollars.")
    requests: int | None = Field(None, ge=1, description="Most requests that the run may send.")
    tokens: int | None = Field(None, ge=1, description="Most tokens, read and written together.")
    stage_minutes: float | None = Field(None, gt=0, description="Longest time for one stage, in minutes.")
