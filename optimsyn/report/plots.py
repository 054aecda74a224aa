"""The one picture of a run: where the influence of the pairs lies, how the reward grew, what it was worth.

Drawn with matplotlib's objects and never with pyplot, so that nothing is shown twice in a notebook and no figure stays
open in a long process.
"""

from __future__ import annotations

import base64
import html
import io
import os
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.labels import metric_label, variant_color, variant_label
from optimsyn.training.intervals import differs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optimsyn.training.intervals import MetricRow

_WIDTH_INCHES = 10.5
_DPI = 130
GRID = "#DDDDDD"
INK = "#333333"
# Dots drawn per variant; the box beside them is of all values.
_MOST_DOTS = 250
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Picture:
    """A drawn picture, shown by itself at the end of a notebook cell.

    Attributes:
        png: The file's bytes.
        alt: What it shows, for those who cannot see it.
    """

    png: bytes = field(repr=False)
    alt: str = ""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        # The words go with the picture into the saved notebook, where pages made of it find them.
        return {"image/png": self.png, "text/plain": self.alt}, {"alt": self.alt}

    def html(self) -> str:
        """An `img` element that holds the picture itself."""
        data = base64.b64encode(self.png).decode()
        return f'<img alt="{html.escape(self.alt)}" style="max-width:100%" src="data:image/png;base64,{data}">'

    def save(self, path: Path) -> Path:
        """Writes the PNG file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_bytes(self.png)
        partial.replace(path)
        return path


def influence_and_reward_figure(
    influence: Mapping[str, Sequence[float]],
    prompt_history: Sequence[Mapping[str, Any]] = (),
    policy_history: Sequence[Mapping[str, Any]] = (),
    evaluation: Sequence[MetricRow] = (),
    *,
    zero_gradient: float | None = None,
    confidence: float = 0.95,
    title: str = "",
) -> Picture:
    """Draws a run: influence and reward above, evaluation below. What a run does not have is left out.

    Args:
        influence: For each variant, the influence of its valid pairs.
        prompt_history: Rows of the prompt optimiser's history: `judged`, `status`, `score`, `best`.
        policy_history: Rows of the policy's history: `step`, `reward`, `reward_std`, `valid`.
        evaluation: Rows of `evaluation.json`.
        zero_gradient: Influence that this estimator gives a sample without any gradient.
        confidence: Coverage of the intervals in `evaluation`.
        title: Line above everything, such as the run's name.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    tried = [row for row in prompt_history if isinstance(row.get("score"), int | float)]
    trained = [row for row in policy_history if isinstance(row.get("reward"), int | float)]
    shown = {variant: list(values) for variant, values in influence.items() if len(values)}
    top: list[tuple[float, Callable[[Axes], None]]] = []
    if shown:
        top.append((1.25, lambda axes: draw_influence(axes, shown, zero_gradient)))
    if tried:
        top.append((1.0, lambda axes: draw_prompt(axes, tried)))
    if trained:
        top.append((1.0, lambda axes: draw_policy(axes, trained)))
    metrics = list(dict.fromkeys(row["metric"] for row in evaluation))
    variants = list(dict.fromkeys(row["variant"] for row in evaluation))
    tall = max(3.0, 0.42 * len(shown) + 1.2)
    low = 0.42 * len(variants) + 1.3
    heights = ([tall] if top else []) + ([low] if metrics else [])
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are one long Literal
        figure = Figure(
            figsize=(_WIDTH_INCHES, sum(heights, 0.45 if title else 0.1) if heights else 1.0),
            layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, wspace=0.03, hspace=0.05),
        )
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=12, color=INK)
        if not heights:
            figure.text(0.5, 0.4, "nothing to draw yet", ha="center", color=INK)
            return picture(figure, "An empty picture.")
        rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if top:
            grid = rows[0].subplots(1, len(top), width_ratios=[width for width, _ in top], squeeze=False)
            for axes, (_, draw) in zip(grid[0], top, strict=True):
                draw(axes)
        if metrics:
            note = f"bars: {confidence:.0%} bootstrap intervals over questions"
            if any(differs(row) for row in evaluation):
                note += ";  *: the paired difference to the target as it came excludes 0"
            rows[-1].supxlabel(note, fontsize=8.5, color=INK)
            grid = rows[-1].subplots(1, len(metrics), sharey=True, squeeze=False)
            for place, (axes, metric) in enumerate(zip(grid[0], metrics, strict=True)):
                draw_metric(axes, metric, [row for row in evaluation if row["metric"] == metric], variants, place == 0)
        return picture(figure, _alt(shown, tried, trained, evaluation))


def picture(figure: Figure, alt: str) -> Picture:
    """Renders a figure; equal figures give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    # No software name and date inside: the same run draws the same bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return Picture(buffer.getvalue(), alt)


def draw_influence(axes: Axes, shown: Mapping[str, list[float]], zero_gradient: float | None) -> None:
    """Dots and the median of each variant's influence, a line a variant."""
    generator = random.Random(0)
    for place, (variant, values) in enumerate(shown.items()):
        dots = values if len(values) <= _MOST_DOTS else generator.sample(values, _MOST_DOTS)
        height = [place - 0.06 + generator.uniform(-0.22, 0.22) for _ in dots]
        size, alpha = (13, 0.55) if len(dots) > 40 else (30, 0.8)
        axes.scatter(dots, height, s=size, color=variant_color(variant), alpha=alpha, linewidths=0, zorder=2)
        middle = statistics.median(values)
        axes.plot([middle, middle], [place - 0.36, place + 0.3], color=INK, linewidth=2.2, zorder=3)
    names = [f"{variant_label(variant)} ({len(values)})" for variant, values in shown.items()]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.45, -0.65)
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color="#AAAAAA", linewidth=0.8, zorder=1)
    note = "black bar: median"
    if zero_gradient is not None:
        axes.axvline(zero_gradient, color=INK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        note += "; dashed: zero gradient"
    axes.set_title("Influence of the valid pairs")
    axes.set_xlabel(f"influence\n({note})")
    axes.xaxis.set_major_locator(round_ticks())
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def draw_prompt(axes: Axes, tried: Sequence[Mapping[str, Any]]) -> None:
    """Every guiding text that was tried, and the best so far."""
    color = variant_color("optimized")
    whole = [row for row in tried if row.get("status") != "rejected"]
    rejected = [row for row in tried if row.get("status") == "rejected"]
    if rejected:
        axes.scatter(
            [row.get("judged", place) for place, row in enumerate(tried) if row.get("status") == "rejected"],
            [row["score"] for row in rejected],
            s=24,
            facecolors="white",
            edgecolors="#888888",
            linewidths=1.1,
            zorder=2,
            label="rejected",
        )
    x = [row.get("judged", place) for place, row in enumerate(tried) if row.get("status") != "rejected"]
    axes.scatter(x, [row["score"] for row in whole], s=30, color=color, zorder=3, label="compared")
    best, line = float("-inf"), []
    for row in whole:
        best = max(best, row["score"])
        line.append(best)
    if whole:
        end = max(row.get("judged", place) for place, row in enumerate(tried))
        axes.step(
            [*x, max(end, x[-1])], [*line, line[-1]], where="post", color=color, linewidth=1.6, label="best so far"
        )
    axes.set_title("Guiding text (prompt search)")
    _finish_reward(axes, "pairs judged")
    _legend_below(axes)


def draw_policy(axes: Axes, trained: Sequence[Mapping[str, Any]]) -> None:
    """Mean and spread of the reward over the steps of a training, with the valid share."""
    color = variant_color("policy")
    steps = [row.get("step", place + 1) for place, row in enumerate(trained)]
    means = [row["reward"] for row in trained]
    spread = [row.get("reward_std") or 0.0 for row in trained]
    lower = [mean - std for mean, std in zip(means, spread, strict=True)]
    upper = [mean + std for mean, std in zip(means, spread, strict=True)]
    axes.fill_between(steps, lower, upper, color=color, alpha=0.15, linewidth=0, label="± 1 std")
    marker = "o" if len(steps) <= 40 else ""
    axes.plot(steps, means, color=color, linewidth=1.8, marker=marker, markersize=4.5, label="mean")
    valid = [float(row["valid"]) for row in trained if isinstance(row.get("valid"), int | float)]
    if len(valid) == len(steps):
        other = axes.twinx()
        other.plot(steps, valid, color="#888888", linewidth=1.2, linestyle=(0, (2, 2)))
        other.set_ylim(0, 1.04)
        other.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
        other.tick_params(axis="y", colors="#888888", length=2)
        axes.plot([], [], color="#888888", linewidth=1.2, linestyle=(0, (2, 2)), label="valid share (right)")
    axes.set_title("Rubric policy")
    _finish_reward(axes, "step")
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    """Puts the legend under the x label, where it can never hide a point."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.21),
        ncols=3,
        columnspacing=0.9,
        handlelength=1.3,
        handletextpad=0.4,
        borderaxespad=0.0,
    )


def _finish_reward(axes: Axes, label: str) -> None:
    axes.xaxis.set_major_locator(round_ticks(integer=True))
    axes.yaxis.set_major_locator(round_ticks())
    axes.set_xlabel(label)
    axes.set_ylabel("reward")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def round_ticks(*, integer: bool = False) -> Any:
    """At most six ticks at round numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=integer)


def draw_metric(axes: Axes, metric: str, rows: Sequence[MetricRow], variants: Sequence[str], names: bool) -> None:
    """A line a variant: value and interval of one metric."""
    for row in rows:
        place, color = variants.index(row["variant"]), variant_color(row["variant"])
        if row["low"] is not None and row["high"] is not None:
            axes.plot([row["low"], row["high"]], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
        axes.scatter([row["value"]], [place], s=34, color=color, zorder=3)
        axes.annotate(
            f"{row['value']:.2f}{'*' if differs(row) else ''}",
            (row["value"], place),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            zorder=2.5,
        )
    if rows and rows[0]["difference"] is None:
        axes.axvline(rows[0]["value"], color="#AAAAAA", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axes.set_yticks(range(len(variants)), [variant_label(variant) for variant in variants])
    axes.tick_params(axis="y", length=0, labelleft=names)
    axes.set_ylim(len(variants) - 0.5, -0.75)
    axes.xaxis.set_major_locator(round_ticks())
    axes.set_title(metric_label(metric))
    axes.set_xlabel(f"{rows[0]['n']} test questions" if rows else "")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _alt(
    shown: Mapping[str, list[float]],
    tried: Sequence[Mapping[str, Any]],
    trained: Sequence[Mapping[str, Any]],
    evaluation: Sequence[MetricRow],
) -> str:
    parts = []
    if shown:
        medians = ", ".join(f"{variant_label(key)} {statistics.median(values):.3g}" for key, values in shown.items())
        parts.append(f"Median influence of the valid pairs: {medians}.")
    whole = [row["score"] for row in tried if row.get("status") != "rejected"]
    if whole:
        parts.append(f"Prompt search: reward {whole[0]:.3g} at the start, best {max(whole):.3g}.")
    if trained:
        parts.append(
            f"Policy training: mean reward {trained[0]['reward']:.3g} first, {trained[-1]['reward']:.3g} last."
        )
    for metric in dict.fromkeys(row["metric"] for row in evaluation):
        values = [f"{variant_label(r['variant'])} {r['value']:.3g}" for r in evaluation if r["metric"] == metric]
        parts.append(f"{metric.replace('_', ' ')}: {', '.join(values)}.")
    return " ".join(parts)
