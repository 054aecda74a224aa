"""Intervals as text, and tables of evaluation and facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimsyn.base.counting import plural
from optimsyn.base.terminal.labels import metric_label, variant_label
from optimsyn.base.terminal.table import DASH, Table, number
from optimsyn.training.intervals import MetricRow


def interval(row: Mapping[str, Any], *, difference: bool = False, joint: str = " ") -> str:
    """A value with its interval, or the paired difference with its own; a dash for none."""
    keys = ("difference", "difference_low", "difference_high") if difference else ("value", "low", "high")
    value, low, high = (row[key] for key in keys)
    if value is None:
        return DASH
    plus = "+" if difference else ""
    text = f"{value:{plus}.3f}"
    if low is not None and high is not None:
        text += f"{joint}[{low:{plus}.3f},{joint}{high:{plus}.3f}]"
    return text.replace("-", "−")


def evaluation_table(rows: Sequence[MetricRow], *, confidence: float = 0.95) -> Table:
    """Every metric of every variant with its interval, and its paired difference to the target as it came.

    Args:
        rows: Rows of `evaluation.json`.
        confidence: Coverage of the intervals.
    """
    body: list[tuple[str, str, str]] = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        of_metric = [row for row in rows if row["metric"] == metric]
        body.append((f"{metric_label(metric)} ({plural(max(row['n'] for row in of_metric), 'question')})", "", ""))
        body += ((f"  {variant_label(r['variant'])}", interval(r), interval(r, difference=True)) for r in of_metric)
    note = f"Brackets: {confidence:.0%} percentile bootstrap over questions."
    if any(row["difference"] is not None for row in rows):
        note += (
            " Differences are to the target as it came, paired by question; where their interval excludes 0 the "
            "two differ on these questions. One seed of training: another seed may differ by more."
        )
    columns = ("variant", "value", "difference")
    return Table("Held-back test questions", columns, tuple(body), frozenset({1, 2}), note)


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Names and values, one per row; numbers with four significant digits."""
    body = []
    for name, value in facts.items():
        cell = number(value, 4) if isinstance(value, float) else DASH if value is None else str(value)
        body.append((name.replace("_", " "), cell))
    return Table(title, ("what", "value"), tuple(body))
