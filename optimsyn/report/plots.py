"""The picture of a run: influence of the pairs, reward over optimisation, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimsyn.base.terminal.labels import metric_label
from optimsyn.report.drawing import SOFT, Picture, drawing, legend_below, picture
from optimsyn.report.panels import (
    draw_influence,
    draw_intervals,
    draw_policy,
    draw_prompt,
    evaluation_words,
    influence_words,
    policy_words,
    prompt_words,
    scored,
)
from optimsyn.training.intervals import differs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optimsyn.training.intervals import MetricRow

_WIDTH_INCHES = 10.5
# Height of a row in panels with a row for each variant.
_ROW_INCHES, _METRIC_ROW_INCHES = 0.56, 0.46


@dataclass(frozen=True)
class RunNumbers:
    """Numbers for the picture of a run; missing ones are empty.

    Attributes:
        influence: For each variant, the influence of its valid pairs.
        prompt: Rows of the prompt optimiser's history: `judged`, `status`, `score`, `best`.
        policy: Rows of the policy's history: `step`, `reward`, `reward_std`, `valid`.
        evaluation: Rows of `evaluation.json`.
        zero_gradient: Influence of a sample without any gradient.
        confidence: Coverage of the intervals in `evaluation`.
    """

    influence: Mapping[str, Sequence[float]] = field(default_factory=dict)
    prompt: Sequence[Mapping[str, Any]] = ()
    policy: Sequence[Mapping[str, Any]] = ()
    evaluation: Sequence[MetricRow] = ()
    zero_gradient: float | None = None
    confidence: float = 0.95


def run_figure(numbers: RunNumbers, title: str = "") -> Picture:
    """Draws a run: influence and reward above, evaluation below; leaves out missing parts."""
    influence = {variant: list(values) for variant, values in numbers.influence.items() if len(values)}
    candidates, trained = scored(numbers.prompt, "score"), scored(numbers.policy, "reward")
    panels: list[tuple[float, Callable[[Axes], None]]] = []
    words = []
    if influence:
        panels.append((1.25, lambda axes: influence_panel(axes, influence, numbers.zero_gradient)))
        words.append(influence_words(influence))
    if candidates:
        panels.append((1.0, lambda axes: prompt_panel(axes, candidates)))
        words.append(prompt_words(candidates))
    if trained:
        panels.append((1.0, lambda axes: policy_panel(axes, trained)))
        words.append(policy_words(trained))
    heights = [max(3.0, _ROW_INCHES * len(influence) + 1.0)] if panels else []
    heights += [evaluation_height(numbers.evaluation)] if numbers.evaluation else []
    with drawing(sum(heights, 0.45 if title else 0.1) if heights else 1.0, width=_WIDTH_INCHES) as figure:
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=12)
        if not heights:
            figure.text(0.5, 0.4, "nothing to draw yet", ha="center")
            return picture(figure, "An empty picture.")
        rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if panels:
            grid = rows[0].subplots(1, len(panels), width_ratios=[width for width, _ in panels], squeeze=False)
            for axes, (_, draw) in zip(grid[0], panels, strict=True):
                draw(axes)
        if numbers.evaluation:
            evaluation_panels(rows[-1], numbers.evaluation, numbers.confidence)
            words.append(evaluation_words(numbers.evaluation))
        return picture(figure, " ".join(words))


def influence_panel(axes: Axes, influence: Mapping[str, Sequence[float]], zero_gradient: float | None) -> None:
    """The influence of each variant's pairs, for a notebook."""
    draw_influence(axes, influence, zero_gradient, narrow=True)
    axes.set_title("Influence of the valid pairs")
    dashed = "; dashed: zero gradient" if zero_gradient is not None else ""
    axes.set_xlabel(f"influence (box: middle half;\nbar: median{dashed})")


def prompt_panel(axes: Axes, candidates: Sequence[Mapping[str, Any]]) -> None:
    """The search for a guiding text, for a notebook."""
    draw_prompt(axes, candidates)
    axes.set_title("Guiding text (prompt search)")
    legend_below(axes)


def policy_panel(axes: Axes, trained: Sequence[Mapping[str, Any]]) -> None:
    """The training of the policy, for a notebook."""
    draw_policy(axes, trained)
    axes.set_title("Rubric policy")
    legend_below(axes)


def evaluation_height(evaluation: Sequence[MetricRow]) -> float:
    """Height of `evaluation_panels`, in inches."""
    return _METRIC_ROW_INCHES * len({row["variant"] for row in evaluation}) + 1.2


def evaluation_panels(figure: Figure | Any, evaluation: Sequence[MetricRow], confidence: float) -> None:
    """Every metric of every variant with its interval, one panel for each metric."""
    metrics = list(dict.fromkeys(row["metric"] for row in evaluation))
    note = f"bars: {confidence:.0%} bootstrap intervals over questions"
    if any(differs(row) for row in evaluation):
        note += ";  *: the paired difference to the target as it came excludes 0"
    figure.supxlabel(note, fontsize=8.5, color=SOFT)
    grid = figure.subplots(1, len(metrics), squeeze=False)
    for axes, metric in zip(grid[0], metrics, strict=True):
        rows = [row for row in evaluation if row["metric"] == metric]
        draw_intervals(axes, rows, value_text=lambda row: f"{row['value']:.2f}{'*' if differs(row) else ''}")
        axes.set_title(metric_label(metric))
        axes.set_xlabel(f"{rows[0]['n']} test questions")
