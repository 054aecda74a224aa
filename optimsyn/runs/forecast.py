"""Forecast of a run: requests, tokens and money by stage, each with a range. Saved in the manifest.

This module only holds the result; `optimsyn.machine.forecast.requests` computes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from optimsyn.base.terminal.table import Shown

if TYPE_CHECKING:
    from optimsyn.base.terminal.table import Table


class Range(BaseModel):
    """An estimate: hardly below `low`, hardly above `high`."""

    model_config = ConfigDict(frozen=True)

    low: float = 0.0
    expected: float = 0.0
    high: float = 0.0

    @classmethod
    def exactly(cls, value: float) -> Range:
        """A quantity that is known."""
        return cls(low=value, expected=value, high=value)

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, expected=self.expected + other.expected, high=self.high + other.high)

    def __mul__(self, other: Range | float) -> Range:
        by = other if isinstance(other, Range) else Range.exactly(other)
        return Range(low=self.low * by.low, expected=self.expected * by.expected, high=self.high * by.high)

    def less(self, amount: Range) -> Range:
        """The rest after subtracting an amount, low from low and high from high, at least 0."""
        low, expected, high = (
            max(0.0, getattr(self, name) - getattr(amount, name)) for name in ("low", "expected", "high")
        )
        return Range(low=low, expected=expected, high=high)

    def at_least(self, least: float) -> Range:
        """The range, raised to what has already happened."""
        low, expected, high = (max(value, least) for value in (self.low, self.expected, self.high))
        return Range(low=low, expected=expected, high=high)

    @classmethod
    def sum(cls, ranges: Iterable[Range]) -> Range:
        """The sum of all."""
        total = cls()
        for item in ranges:
            total += item
        return total


class StageForecast(BaseModel):
    """Forecast of one stage.

    Attributes:
        requests: Replies of models, including those on this machine.
        cost_usd: US dollars; None if a price is unknown.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    requests: Range = Range()
    input_tokens: Range = Range()
    output_tokens: Range = Range()
    cost_usd: Range | None = Range()


class Forecast(Shown, BaseModel):
    """Forecast of a run.

    Attributes:
        paid: Whether a model costs money or its price is unknown.
        notes: Assumptions behind figures that are not measured.
    """

    model_config = ConfigDict(frozen=True)

    stages: tuple[StageForecast, ...] = ()
    paid: bool = False
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> StageForecast:
        """All stages together."""
        costs = [stage.cost_usd for stage in self.stages]
        return StageForecast(
            stage="all",
            requests=Range.sum(stage.requests for stage in self.stages),
            input_tokens=Range.sum(stage.input_tokens for stage in self.stages),
            output_tokens=Range.sum(stage.output_tokens for stage in self.stages),
            cost_usd=None if any(cost is None for cost in costs) else Range.sum(cost for cost in costs if cost),
        )

    def of(self, stage: str) -> StageForecast:
        """The forecast of one stage."""
        return next((forecast for forecast in self.stages if forecast.stage == stage), StageForecast(stage=stage))

    @property
    def sentence(self) -> str:
        """The forecast in one sentence."""
        total = self.total
        tokens = total.input_tokens + total.output_tokens
        text = f"about {counted(total.requests)} requests, {counted(tokens)} tokens"
        if self.paid:
            text += f", {money(total.cost_usd)}"
        return text

    def _table(self) -> Table:
        from optimsyn.base.terminal.table import Table

        columns = ("stage", "requests", "tokens read", "tokens written", *(("US dollars",) if self.paid else ()))
        total = self.total
        rows = [self._row(stage.stage, stage, "expected") for stage in self.stages]
        rows += [self._row("all", total, "expected")]
        rows += [self._row(words, total, end) for words, end in (("at least", "low"), ("at most", "high"))]
        note = " ".join(self.notes)
        return Table("What the run is going to send", columns, tuple(rows), frozenset(range(1, len(columns))), note)

    def _row(self, name: str, stage: StageForecast, end: str) -> tuple[str, ...]:
        amounts = (stage.requests, stage.input_tokens, stage.output_tokens)
        cells = tuple(_rounded(getattr(amount, end)) for amount in amounts)
        cost = "unknown" if stage.cost_usd is None else _dollars(getattr(stage.cost_usd, end))
        return (name, *cells, *((cost,) if self.paid else ()))


def counted(amount: Range) -> str:
    """A range of a count: `1,200 (900 to 3,000)`."""
    low, expected, high = (_rounded(value) for value in (amount.low, amount.expected, amount.high))
    return expected if low == high else f"{expected} ({low} to {high})"


def money(amount: Range | None, unit: str = " US dollars") -> str:
    """A range of money: `0.84 (0.50 to 2.10)`."""
    if amount is None:
        return f"an unknown number of{unit}" if unit else "unknown"
    low, expected, high = (_dollars(value) for value in (amount.low, amount.expected, amount.high))
    return (expected if low == high else f"{expected} ({low} to {high})") + unit


def _rounded(value: float) -> str:
    """A count with three significant digits."""
    return f"{int(float(f'{value:.3g}')):,}"


def _dollars(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"
