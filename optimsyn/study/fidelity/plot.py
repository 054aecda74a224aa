"""The picture of the fidelity benchmark, drawn with matplotlib's objects and never with pyplot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimsyn.study.fidelity.report import FidelityReport

_INFLUENCE, _BASELINE, _INK, _GRID = "#2F6DA8", "#9A6A2F", "#333333", "#DDDDDD"


def draw(report: FidelityReport, file: Path) -> None:
    """A forest plot: a panel a truth, a line a score, dots with their 95 % intervals; scores in the report's order.

    Args:
        report: What to draw.
        file: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from optimsyn.influence.estimators import ESTIMATORS
    from optimsyn.study.fidelity.report import TITLES

    panels = max(1, len(report.truths))
    figure = Figure(figsize=(3.0 + 2.9 * panels, 1.3 + 0.26 * len(report.rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    names = [row.score for row in report.rows]
    for axis, truth in zip(axes, report.truths, strict=False):
        for place, row in enumerate(report.rows):
            found = row.spearman[truth]
            if found.value is None or found.low is None or found.high is None:
                continue
            color = _INFLUENCE if row.score.split(" ")[0] in ESTIMATORS else _BASELINE
            axis.plot([found.low, found.high], [place, place], color=color, linewidth=1.6, alpha=0.65)
            axis.plot(found.value, place, "o", color=color, markersize=4.5)
        axis.axvline(0, color=_INK, linewidth=0.8)
        axis.grid(axis="x", color=_GRID, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_title(TITLES.get(truth, truth), fontsize=10.5, loc="left", fontweight="bold")
        axis.set_xlabel("Spearman with the truth", fontsize=9)
        axis.tick_params(labelsize=8.5)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
