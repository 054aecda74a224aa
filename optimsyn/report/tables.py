"""Tables of evaluation and facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimsyn.base.terminal.labels import metric_label, variant_label
from optimsyn.base.terminal.table import DASH, Table, number

if TYPE_CHECKING:
    from optimsyn.training.intervals import MetricRow


def _interval(value: float, low: float | None, high: float | None, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    if low is None or high is None:
        return f"{value:{plus}.3f}".replace("-", "−")
    return f"{value:{plus}.3f} [{low:{plus}.3f}, {high:{plus}.3f}]".replace("-", "−")


def evaluation_table(rows: Sequence[MetricRow], *, confidence: float = 0.95) -> Table:
    """Every metric of every variant with its interval, and its paired difference to the target as it came.

    Args:
        rows: Rows of `evaluation.json`.
        confidence: Coverage of the intervals.
    """
    body: list[tuple[str, str, str]] = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        of_metric = [row for row in rows if row["metric"] == metric]
        body.append((f"{metric_label(metric)} ({max(row['n'] for row in of_metric)} questions)", "", ""))
        for row in of_metric:
            difference = DASH
            if row["difference"] is not None:
                difference = _interval(row["difference"], row["difference_low"], row["difference_high"], sign=True)
            value = _interval(row["value"], row["low"], row["high"])
            body.append((f"  {variant_label(row['variant'])}", value, difference))
    note = f"Brackets: {confidence:.0%} percentile bootstrap over questions."
    if any(row["difference"] is not None for row in rows):
        note += (
            " Differences are to the target as it came, paired by question; where their interval excludes 0 the "
            "two differ on these questions. One seed of training: another seed may differ by more."
        )
    return Table(
        title="Held-back test questions",
        columns=("variant", "value", "difference"),
        rows=tuple(body),
        right=frozenset({1, 2}),
        note=note,
    )


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Names and values, one per row; numbers with four significant digits."""
    body = []
    for name, value in facts.items():
        cell = number(value, 4) if isinstance(value, float) else DASH if value is None else str(value)
        body.append((name.replace("_", " "), cell))
    return Table(title, ("what", "value"), tuple(body))
