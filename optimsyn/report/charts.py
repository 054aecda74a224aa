"""Drawings for the pages: small SVGs in the page's colours.

Each fits on a phone; on a wide screen several are side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimsyn.base.terminal.labels import method_label, metric_label, variant_label
from optimsyn.report import panels
from optimsyn.report.drawing import Drawing, page_axes, svg
from optimsyn.report.tables import interval

_WIDTH, _LEFT, _RIGHT = 380.0, 6.0, 374.0
_FRAMED_HEIGHT = 208.0


@dataclass
class Chart:
    """A drawing in a page, with a title above it and a note on how to read it."""

    title: str
    svg: Drawing
    note: str = ""


def influence_chart(influence: Mapping[str, Sequence[float]], *, zero_gradient: float | None = None) -> Chart:
    """`draw_influence` for a page; `zero_gradient` is drawn only when it is not 0."""
    height = panels.INFLUENCE_ROW * len(influence)
    with page_axes(_WIDTH, height + 26, (_LEFT, 2, _RIGHT, height + 2)) as axes:
        note = panels.draw_influence(axes, influence, zero_gradient or None)
        return Chart("Influence of the valid pairs", svg(axes, panels.influence_words(influence)), note)


def prompt_chart(
    history: Sequence[Mapping[str, Any]], method: str = "gepa", what: str = "Guiding text"
) -> Chart | None:
    """Reward of every guiding text that was tried, and of the best so far; None without any."""
    candidates = panels.scored(history, "score")
    if not candidates:
        return None
    # Two panels, one below the other, where texts were rejected after a few passages.
    below = 118 if all(panels.compared_and_rejected(candidates)) else 0
    with page_axes(_WIDTH, _FRAMED_HEIGHT + 12 + below, (54, 24, _RIGHT - 6, 178 + below)) as axes:
        note = panels.draw_prompt(axes, candidates)
        return Chart(f"{what} ({method_label(method)})", svg(axes, panels.prompt_words(candidates)), note)


def policy_chart(history: Sequence[Mapping[str, Any]], method: str = "grpo") -> Chart | None:
    """Mean reward and share of valid pairs by training step of the method; None before the first step."""
    trained = panels.scored(history, "reward")
    if not trained:
        return None
    with page_axes(_WIDTH, _FRAMED_HEIGHT, (54, 10, _RIGHT - 40, 166)) as axes:
        note = panels.draw_policy(axes, trained)
        return Chart(f"Rubric policy ({method_label(method)})", svg(axes, panels.policy_words(trained)), note)


def interval_chart(
    metric: str, rows: Sequence[Mapping[str, Any]], labels: Sequence[str] | None = None, *, zero: bool = False
) -> Chart:
    """`draw_intervals` of the rows of a metric, for a page."""
    variants = [variant_label(row["variant"]) for row in rows]
    names = variants if labels is None else [f"{a} ({b})" for a, b in zip(labels, variants, strict=True)]
    values = "; ".join(f"{name} {interval(row)}" for name, row in zip(names, rows, strict=True))
    height = panels.intervals_height(rows, labels)
    with page_axes(_WIDTH, height + 24, (_LEFT, 2, _RIGHT, height + 2)) as axes:
        panels.draw_intervals(axes, rows, labels, zero=zero)
        return Chart(metric_label(metric), svg(axes, f"{metric_label(metric)}: {values}"))
