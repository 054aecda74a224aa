"""How busy the models were while a stage ran."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from optimsyn.base.meter import Meter
from optimsyn.runs.results.stage_result import StageResult


class PartLoad(BaseModel):
    """How busy a model was, over the whole time of the stage's last attempt."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    busy: float = Field(description="Share of the time in which at least one request or scoring was under way.")
    in_flight: float = Field(description="Mean number of requests or scorings under way.")


class MeasuredResult(StageResult):
    """Result of a stage whose models are measured."""

    busy: dict[str, PartLoad] | None = Field(
        None, description="How busy `generator`, `rubric` and `target` were; a model without work is absent."
    )


def loads_of(meter: Meter) -> dict[str, PartLoad]:
    """The loads so far, by model."""
    return {
        name: PartLoad(busy=round(load.busy, 4), in_flight=round(load.mean, 4))
        for name, load in sorted(meter.loads().items())
    }
