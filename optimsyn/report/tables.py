"""Tables of what a run has found: evaluation, influence, lost rows, pairs, facts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimsyn.base.labels import metric_label, variant_label
from optimsyn.base.table import DASH, Table, number

if TYPE_CHECKING:
    from optimsyn.data.losses import Loss
    from optimsyn.data.records import Pair
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
            "questions tell the two apart. One seed of training: another seed may differ by more."
        )
    return Table(
        title="Held-back test questions",
        columns=("variant", "value", "difference"),
        rows=tuple(body),
        right=frozenset({1, 2}),
        note=note,
    )


def influence_table(influence: Mapping[str, Sequence[float]], *, zero_gradient: float | None = None) -> Table:
    """Count and quantiles of the influence of each variant's valid pairs.

    Args:
        influence: Variant to influences.
        zero_gradient: Influence that the estimator gives a sample without any gradient.
    """
    body = []
    for variant, values in influence.items():
        ordered = sorted(values)
        if len(ordered) > 1:
            low, *_, high = statistics.quantiles(ordered, n=10, method="inclusive")
            middle = statistics.median(ordered)
            cells = [number(value) for value in (statistics.fmean(ordered), low, middle, high, ordered[-1])]
        else:
            cells = [number(value) for value in (ordered * 5)] if ordered else [DASH] * 5
        body.append((variant_label(variant), str(len(ordered)), *cells))
    note = "" if zero_gradient is None else f"A sample with zero gradient would score {number(zero_gradient)}."
    return Table(
        title="Influence of the valid pairs",
        columns=("variant", "pairs", "mean", "10%", "median", "90%", "highest"),
        rows=tuple(body),
        right=frozenset(range(1, 7)),
        note=note,
    )


def losses_table(losses: Iterable[Loss], kept: Mapping[str, int] | None = None) -> Table:
    """How rows were lost between the documents and the final dataset, most frequent reason first within a stage.

    Args:
        losses: Every lost row.
        kept: Rows that went on, by the same stages; adds a column.
    """
    counts: dict[str, dict[str, int]] = {}
    for loss in losses:
        reasons = counts.setdefault(loss.stage, {})
        reasons[loss.reason] = reasons.get(loss.reason, 0) + 1
    body: list[tuple[str, ...]] = []
    for stage in dict.fromkeys([*(kept or {}), *counts]):
        frequent = sorted(counts.get(stage, {}).items(), key=lambda item: (-item[1], item[0])) or [(DASH, 0)]
        for place, (reason, count) in enumerate(frequent):
            went_on = str(kept[stage]) if kept and stage in kept and place == 0 else ""
            body.append((stage if place == 0 else "", str(count), reason, went_on))
    columns = ("stage", "lost", "why", "went on")
    if kept is None:
        return Table("Rows lost on the way", columns[:3], tuple(row[:3] for row in body), frozenset({1}))
    return Table("Rows lost on the way", columns, tuple(body), frozenset({1, 3}))


def pairs_table(
    pairs: Sequence[Pair], influence: Sequence[float | None] | None = None, *, title: str = "Pairs"
) -> Table:
    """Question, answer, options and influence of some pairs.

    Args:
        pairs: The pairs, in the order to show.
        influence: Their influence; None for a pair that was not scored.
        title: Line above the table.
    """
    body = []
    for place, pair in enumerate(pairs):
        question = pair.question
        if pair.choices is not None:
            question += "".join(f"\n{chr(65 + index)}. {choice}" for index, choice in enumerate(pair.choices))
        cells: list[str] = [variant_label(pair.variant), question, pair.answer]
        if influence is not None:
            cells.append(number(influence[place]))
        body.append(tuple(cells))
    columns = ("made with", "question", "answer", "influence")
    if influence is None:
        return Table(title, columns[:3], tuple(body))
    return Table(title, columns, tuple(body), frozenset({3}))


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Names and values, one a row; numbers with four significant digits."""
    body = []
    for name, value in facts.items():
        shown = number(value, 4) if isinstance(value, float) else DASH if value is None else str(value)
        body.append((name.replace("_", " "), shown))
    return Table(title, ("what", "value"), tuple(body))
