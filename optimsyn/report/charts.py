"""Small charts as vector drawings for the pages: they follow the page's colours, stay sharp and weigh little.

A chart is a list of marks in a coordinate system of its own, drawn by `templates/chart.html.j2`. It is narrow enough to
be read on a phone; on a wide screen several stand side by side.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optimsyn.base.labels import method_label, metric_label, variant_label
from optimsyn.base.table import decimals_for, fixed, number

WIDTH = 380.0
_LEFT, _RIGHT = 6.0, 374.0
# Dots drawn per variant; the numbers beside them are of all values.
_MOST_DOTS = 180
_GRID_TICKS = 4


class Mark(NamedTuple):
    """One thing drawn.

    Attributes:
        kind: `line`, `dots`, `path`, `band`, `rect` or `text`; a path is any line that is not straight or not one.
        tone: Its colour and weight, a class of the page's style sheet; `v-…` is a variant's colour.
        at: Coordinates: a line's two ends, a text's place, a rectangle's corner and size; empty for paths.
        text: What a text says; the data of a path.
        anchor: start, middle or end of a text.
        title: Shown when one points at it.
    """

    kind: str
    tone: str
    at: tuple[float, ...] = ()
    text: str = ""
    anchor: str = "start"
    title: str = ""


@dataclass
class Chart:
    """A drawing.

    Attributes:
        title: Above it.
        height: In the units of `WIDTH`.
        alt: What it shows, for those who cannot see it.
        note: How to read it, below.
        marks: From back to front.
    """

    title: str
    height: float
    alt: str
    note: str = ""
    marks: list[Mark] = field(default_factory=list)

    @property
    def width(self) -> float:
        """The same for all."""
        return WIDTH


class Axis:
    """Maps values to places, with ticks at round numbers.

    Args:
        values: What has to fit.
        start: Place of the low end.
        end: Place of the high end.
        ticks: About so many.
        whole: Ticks at whole numbers only.
        room: Space kept free at both ends, as a share of the span.
    """

    def __init__(
        self,
        values: Iterable[float],
        start: float,
        end: float,
        *,
        ticks: int = _GRID_TICKS,
        whole: bool = False,
        room: float = 0.05,
    ) -> None:
        found = list(values)
        low, high = min(found), max(found)
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
            spread = abs(high) * 0.1 or 1.0
            low, high = low - spread, high + spread
        pad = room * (high - low)
        self.low, self.high, self.start, self.end = low - pad, high + pad, start, end
        step = _round_step((self.high - self.low) / ticks)
        step = max(1.0, round(step)) if whole else step
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        places = range(first, last + 1)
        self.ticks = [(self.at(place * step), fixed(place * step + 0.0, digits)) for place in places]

    def at(self, value: float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= least * (1 - 1e-9))


def influence_chart(influence: Mapping[str, Sequence[float]], *, zero_gradient: float | None = None) -> Chart:
    """Where the influence of each variant's valid pairs lies: a dot a pair, the middle half as a bar, the median.

    Args:
        influence: Variant to influences; none may be empty.
        zero_gradient: Influence of a pair without any gradient; drawn only when it is not 0.
    """
    row, top = 54.0, 6.0
    bottom = top + row * len(influence)
    every = [value for values in influence.values() for value in values]
    decimals = decimals_for(every)
    axis = Axis([*every, 0.0, *([zero_gradient] if zero_gradient else [])], _LEFT, _RIGHT)
    chart = Chart("Influence of the valid pairs", bottom + 20, _influence_alt(influence))
    lanes = [(top + place * row + 19, top + place * row + 47) for place in range(len(influence))]
    chart.marks += _grid(axis, lanes)
    chart.marks.append(_upright("zero", axis.at(0.0), lanes))
    if zero_gradient:
        chart.marks.append(_upright("dashed", axis.at(zero_gradient), lanes, "a pair without any gradient"))
    generator = random.Random(0)
    for number_, (variant, values) in enumerate(influence.items()):
        y = top + number_ * row
        middle = y + 33
        dots = list(values) if len(values) <= _MOST_DOTS else generator.sample(list(values), _MOST_DOTS)
        path = "".join(f"M{axis.at(v):.1f} {middle + generator.uniform(-9, 9):.1f}h0" for v in dots)
        median = statistics.median(values)
        said = f"{_pairs(len(values))}, median {fixed(median, decimals)}"
        chart.marks += [
            Mark("text", "label", (_LEFT, y + 14), variant_label(variant)),
            Mark("text", "value", (_RIGHT, y + 14), said, "end"),
        ]
        if len(values) >= 4:
            low, _, high = statistics.quantiles(sorted(values), n=4, method="inclusive")
            corner = (axis.at(low), middle - 11, max(axis.at(high) - axis.at(low), 0.5), 22.0)
            chart.marks.append(
                Mark("rect", f"half v-{variant}", corner, title=f"middle half: {number(low)} to {number(high)}")
            )
        chart.marks += [
            Mark("dots", f"v-{variant}", text=path),
            Mark(
                "line",
                "median",
                (axis.at(median), middle - 14, axis.at(median), middle + 14),
                title=f"median {number(median)}",
            ),
        ]
    chart.note = "A dot is a pair, the box holds the middle half, the bar is the median."
    if zero_gradient:
        chart.note += f" Dashed: what a pair without any gradient would score ({number(zero_gradient)})."
    return chart


def prompt_chart(history: Sequence[Mapping[str, Any]], method: str = "gepa") -> Chart | None:
    """Reward of every guiding text that the method tried, and of the best so far; None when none was."""
    tried = [row for row in history if isinstance(row.get("score"), int | float)]
    if not tried:
        return None
    top, bottom, left = 10.0, 168.0, 48.0
    spent = [float(row.get("judged", place)) for place, row in enumerate(tried)]
    across = Axis([0.0, *spent], left, _RIGHT, whole=True)
    up = Axis([row["score"] for row in tried], bottom, top, room=0.12)
    compared = [(x, row["score"]) for x, row in zip(spent, tried, strict=True) if row.get("status") != "rejected"]
    rejected = [(x, row["score"]) for x, row in zip(spent, tried, strict=True) if row.get("status") == "rejected"]
    chart = Chart(f"Guiding text ({method_label(method)})", bottom + 40, _prompt_alt(compared, len(tried)))
    chart.marks += _frame(across, up, "pairs judged", "reward")
    best, line = -math.inf, ""
    for x, score in compared:
        best = max(best, score)
        line += f"H{across.at(x):.1f}V{up.at(best):.1f}" if line else f"M{across.at(x):.1f} {up.at(best):.1f}"
    if line:
        chart.marks.append(Mark("path", "v-optimized", text=f"{line}H{across.at(max(spent)):.1f}"))
    chart.marks += [
        Mark("rect", "rejected", (across.at(x) - 4, up.at(y) - 4, 8.0, 8.0), title=f"rejected: {number(y)}")
        for x, y in rejected
    ]
    chart.marks += [
        Mark(
            "dots",
            "big v-optimized",
            text=f"M{across.at(x):.1f} {up.at(y):.1f}h0",
            title=f"compared on all passages: {number(y)}",
        )
        for x, y in compared
    ]
    chart.note = "Dot: compared on all passages of the search. Line: the best so far."
    if rejected:
        chart.note += " Square: rejected after a few passages."
    return chart


def policy_chart(history: Sequence[Mapping[str, Any]], method: str = "grpo") -> Chart | None:
    """Mean reward and share of valid pairs by training step of the method; None before the first step."""
    trained = [row for row in history if isinstance(row.get("reward"), int | float)]
    if not trained:
        return None
    steps = [float(row.get("step", place + 1)) for place, row in enumerate(trained)]
    means = [float(row["reward"]) for row in trained]
    spread = [float(row.get("reward_std") or 0.0) for row in trained]
    valid = [float(row["valid"]) for row in trained if isinstance(row.get("valid"), int | float)]
    with_valid = len(valid) == len(steps)
    top, left = 10.0, 48.0
    bottom = 118.0 if with_valid else 168.0
    across = Axis(steps, left + 8, _RIGHT - 8, whole=True, room=0.0)
    edges = [*(m - s for m, s in zip(means, spread, strict=True)), *(m + s for m, s in zip(means, spread, strict=True))]
    up = Axis(edges, bottom, top, room=0.08)
    chart = Chart(f"Rubric policy ({method_label(method)})", 208.0, _policy_alt(means, steps))
    chart.marks += _frame(across, up, "" if with_valid else "training step", "reward", left=left)
    over = [f"{across.at(x):.1f} {up.at(m + s):.1f}" for x, m, s in zip(steps, means, spread, strict=True)]
    under = [f"{across.at(x):.1f} {up.at(m - s):.1f}" for x, m, s in zip(steps, means, spread, strict=True)]
    chart.marks.append(Mark("band", "v-policy", text="M" + "L".join([*over, *reversed(under)]) + "Z"))
    places = [f"{across.at(x):.1f} {up.at(m):.1f}" for x, m in zip(steps, means, strict=True)]
    chart.marks.append(Mark("path", "v-policy", text="M" + "L".join(places)))
    if len(steps) <= 60:
        chart.marks.append(Mark("dots", "big v-policy", text="".join(f"M{place}h0" for place in places)))
    chart.note = "Line: mean reward of a step. Band: ± one standard deviation within it."
    if with_valid:
        share = Axis([0.0, 1.0], 168.0, 136.0, ticks=2, room=0.0)
        chart.marks += _frame(across, share, "training step", "valid", left=left, labels=("0", "½", "1"))
        places = [f"{across.at(x):.1f} {share.at(v):.1f}" for x, v in zip(steps, valid, strict=True)]
        chart.marks.append(Mark("path", "grey", text="M" + "L".join(places)))
        if len(steps) <= 60:
            chart.marks.append(Mark("dots", "grey", text="".join(f"M{place}h0" for place in places)))
        chart.note += " Below: the share of pairs that passed every check."
    return chart


def interval_chart(
    metric: str, rows: Sequence[Mapping[str, Any]], labels: Sequence[str] | None = None, *, zero: bool = False
) -> Chart:
    """A metric of several variants with intervals, each on a line of its own.

    Args:
        metric: Its name.
        rows: Rows of `evaluation.json` of this metric.
        labels: In place of the variants' names; rows of one label in a row stand closer together.
        zero: Draw where 0 is.
    """
    names = list(labels) if labels is not None else [variant_label(row["variant"]) for row in rows]
    grouped = labels is not None
    top, y = 6.0, 0.0
    every = [row[key] for row in rows for key in ("value", "low", "high") if row[key] is not None]
    axis = Axis([*every, 0.0] if zero or not every else every, _LEFT, _RIGHT)
    marks: list[Mark] = []
    lanes: list[tuple[float, float]] = []
    for place, row in enumerate(rows):
        fresh = place == 0 or names[place] != names[place - 1]
        y = top if place == 0 else y + (40.0 if not grouped else 38.0 if fresh else 15.0)
        if fresh:
            marks.append(Mark("text", "label", (_LEFT, y + 13), names[place]))
        middle = y + 25
        if fresh:
            lanes.append((middle - 8, middle + 8))
        else:
            lanes[-1] = (lanes[-1][0], middle + 8)
        told = _interval_text(row)
        if not grouped:
            marks.append(Mark("text", "value", (_RIGHT, y + 13), told, "end"))
        title = f"{names[place]}: {told}" if not grouped else f"{names[place]}, {variant_label(row['variant'])}: {told}"
        if row["low"] is not None and row["high"] is not None:
            ends = (axis.at(row["low"]), middle, axis.at(row["high"]), middle)
            marks.append(Mark("line", f"interval v-{row['variant']}", ends, title=title))
        dot = f"M{axis.at(row['value']):.1f} {middle:.1f}h0"
        marks.append(Mark("dots", f"big v-{row['variant']}", text=dot, title=title))
    chart = Chart(metric_label(metric), y + 54, "")
    chart.marks = _grid(axis, lanes)
    if zero:
        chart.marks.append(_upright("zero", axis.at(0.0), lanes))
    first = None if grouped else next((row for row in rows if row["difference"] is None), None)
    if first is not None:
        chart.marks.append(_upright("dashed", axis.at(first["value"]), lanes, f"{names[0]}: {first['value']:.3f}"))
    chart.marks += marks
    said = [f"{names[i]} ({variant_label(r['variant'])})" if grouped else names[i] for i, r in enumerate(rows)]
    chart.alt = f"{metric_label(metric)}: " + "; ".join(
        f"{name} {_interval_text(row)}" for name, row in zip(said, rows, strict=True)
    )
    return chart


def _grid(axis: Axis, lanes: Sequence[tuple[float, float]]) -> list[Mark]:
    """Lines at the ticks, in the lanes of the rows only, so that none crosses a text."""
    bottom = lanes[-1][1] if lanes else 0.0
    marks = [_upright("grid", place, lanes) for place, _ in axis.ticks]
    return marks + [Mark("text", "tick", (place, bottom + 15), label, "middle") for place, label in axis.ticks]


def _upright(tone: str, x: float, lanes: Sequence[tuple[float, float]], title: str = "") -> Mark:
    data = "".join(f"M{x:.1f} {low:.1f}V{high:.1f}" for low, high in lanes)
    return Mark("path", f"thin {tone}", text=data, title=title)


def _frame(
    across: Axis, up: Axis, below: str, beside: str, *, left: float = 48.0, labels: Sequence[str] | None = None
) -> list[Mark]:
    marks = []
    for place, (y, label) in enumerate(up.ticks):
        shown = label if labels is None else labels[min(place, len(labels) - 1)]
        marks.append(Mark("line", "grid", (left, y, _RIGHT, y)))
        marks.append(Mark("text", "tick", (left - 5, y + 4), shown, "end"))
    if below:
        bottom = up.start
        marks += [Mark("text", "tick", (place, bottom + 15), label, "middle") for place, label in across.ticks]
        marks.append(Mark("text", "tick", ((left + _RIGHT) / 2, bottom + 33), below, "middle"))
    marks.append(Mark("text", "tick side", (11.0, (up.start + up.end) / 2), beside, "middle"))
    return marks


def _interval_text(row: Mapping[str, Any]) -> str:
    text = f"{row['value']:.3f}"
    if row["low"] is not None and row["high"] is not None:
        text += f" [{row['low']:.3f}, {row['high']:.3f}]"
    return text.replace("-", "−")


def _pairs(count: int) -> str:
    return f"{count:,} pair{'' if count == 1 else 's'}"


def _influence_alt(influence: Mapping[str, Sequence[float]]) -> str:
    parts = (f"{variant_label(name)} {number(statistics.median(values))}" for name, values in influence.items())
    return f"Median influence of the valid pairs: {', '.join(parts)}."


def _prompt_alt(compared: Sequence[tuple[float, float]], tried: int) -> str:
    if not compared:
        return f"{tried} guiding texts were tried."
    best = max(score for _, score in compared)
    return f"{tried} guiding texts: reward {number(compared[0][1])} at the start, best {number(best)}."


def _policy_alt(means: Sequence[float], steps: Sequence[float]) -> str:
    return f"Mean reward {number(means[0])} in step {steps[0]:g}, {number(means[-1])} in step {steps[-1]:g}."
