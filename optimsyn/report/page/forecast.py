"""The forecast of a run beside its actual usage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.runs.forecast import Range, StageForecast, counted, money

if TYPE_CHECKING:
    from optimsyn.llm.reply import Usage
    from optimsyn.runs.manifest import Manifest

# A stage that has not started has nothing to compare.
_NOT_YET = "–"


def forecast_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    """A row for each stage: forecast and actual requests, tokens and money; none without a forecast."""
    forecast = manifest.forecast
    if forecast is None or not forecast.stages:
        return []
    rows = []
    for stage in forecast.stages:
        record = manifest.stage(stage.stage)
        rows.append(_row(stage.stage, stage, record.cost if record.attempts else None))
    return [*rows, _row("in all", forecast.total, manifest.cost)]


def _row(name: str, forecast: StageForecast, sent: Usage | None) -> tuple[str, ...]:
    tokens = forecast.input_tokens + forecast.output_tokens
    return (
        name,
        counted(forecast.requests),
        _NOT_YET if sent is None else f"{sent.replies:,}",
        counted(tokens),
        _NOT_YET if sent is None else f"{sent.input_tokens + sent.output_tokens:,}",
        money(forecast.cost_usd, unit=""),
        _NOT_YET if sent is None else money(Range.exactly(sent.cost_usd), unit=""),
    )
