"""Drawings for the pages: small SVGs in the page's colours.

Each fits on a phone; on a wide screen several are side by side.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimsyn.base.terminal.labels import method_label, metric_label, variant_label
from optimsyn.base.terminal.table import number
from optimsyn.report.drawing import Drawing, page_axes, svg
from optimsyn.report.panels import (
    INFLUENCE_ROW,
    draw_influence,
    draw_intervals,
    draw_policy,
    draw_prompt,
    interval_text,
    intervals_height,
)

WIDTH = 380.0
_LEFT, _RIGHT = 6.0, 374.0
_FRAMED_HEIGHT = 208.0


@dataclass
class Chart:
    """A drawing in a page.

    Attributes:
        title: Title above the drawing.
        svg: The drawing, with alternative text.
        note: How to read it.
    """

    title: str
    svg: Drawing
    note: str = ""


def influence_chart(influence: Mapping[str, Sequence[float]], *, zero_gradient: float | None = None) -> Chart:
    """Distribution of the influence of each variant's valid pairs.

    Args:
        influence: Variant to influences; none may be empty.
        zero_gradient: Influence of a pair without any gradient; drawn only when it is not 0.
    """
    height = INFLUENCE_ROW * len(influence)
    with page_axes(WIDTH, height + 26, (_LEFT, 2, _RIGHT, height + 2)) as axes:
        note = draw_influence(axes, influence, zero_gradient or None)
        medians = (f"{variant_label(name)} {number(statistics.median(values))}" for name, values in influence.items())
        alt = f"Median influence of the valid pairs: {', '.join(medians)}."
        return Chart("Influence of the valid pairs", svg(axes, alt), note)


def prompt_chart(history: Sequence[Mapping[str, Any]], method: str = "gepa") -> Chart | None:
    """Reward of every guiding text that was tried, and of the best so far; None without any."""
    candidates = scored(history, "score")
    if not candidates:
        return None
    compared = [row["score"] for row in candidates if row.get("status") != "rejected"]
    alt = f"{len(candidates)} guiding texts were tried."
    if compared:
        best = number(max(compared))
        alt = f"{len(candidates)} guiding texts: reward {number(compared[0])} at the start, best {best}."
    with page_axes(WIDTH, _FRAMED_HEIGHT, (54, 10, _RIGHT - 6, 166)) as axes:
        note = draw_prompt(axes, candidates)
        return Chart(f"Guiding text ({method_label(method)})", svg(axes, alt), note)


def policy_chart(history: Sequence[Mapping[str, Any]], method: str = "grpo") -> Chart | None:
    """Mean reward and share of valid pairs by training step of the method; None before the first step."""
    trained = scored(history, "reward")
    if not trained:
        return None
    first, last = (trained[place] for place in (0, -1))
    alt = (
        f"Mean reward {number(first['reward'])} in step {first.get('step', 1):g}, {number(last['reward'])} in step "
        f"{last.get('step', len(trained)):g}."
    )
    with page_axes(WIDTH, _FRAMED_HEIGHT, (54, 10, _RIGHT - 40, 166)) as axes:
        note = draw_policy(axes, trained)
        return Chart(f"Rubric policy ({method_label(method)})", svg(axes, alt), note)


def interval_chart(
    metric: str, rows: Sequence[Mapping[str, Any]], labels: Sequence[str] | None = None, *, zero: bool = False
) -> Chart:
    """A metric of several variants with intervals, one line each.

    Args:
        metric: Name of the metric.
        rows: Rows of `evaluation.json` of this metric.
        labels: Labels in place of variant names; consecutive rows with one label are grouped.
        zero: Draw a line at 0.
    """
    variants = [variant_label(row["variant"]) for row in rows]
    names = variants if labels is None else [f"{a} ({b})" for a, b in zip(labels, variants, strict=True)]
    values = "; ".join(f"{name} {interval_text(row)}" for name, row in zip(names, rows, strict=True))
    height = intervals_height(rows, labels)
    with page_axes(WIDTH, height + 24, (_LEFT, 2, _RIGHT, height + 2)) as axes:
        draw_intervals(axes, rows, labels, zero=zero)
        return Chart(metric_label(metric), svg(axes, f"{metric_label(metric)}: {values}"))


def scored(history: Sequence[Mapping[str, Any]], field: str) -> list[Mapping[str, Any]]:
    """The rows of a history with a number in this field."""
    return [row for row in history if isinstance(row.get(field), int | float)]
