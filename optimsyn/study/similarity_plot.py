"""Plots similarity against influence, and a map of both kinds of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimsyn.report.drawing import BLUE, SOFT, Picture, drawing, finish, picture, round_ticks

if TYPE_CHECKING:
    from optimsyn.study.compared import ComparedSample

_KINDS = (("synthetic pair", "o", BLUE, 34), ("expert question", "^", "#D55E00", 40))


def similarity_figure(samples: Sequence[ComparedSample], *, note: str = "") -> Picture:
    """Left: similarity to the questions against influence on them. Right: the embeddings, coloured by influence.

    Args:
        samples: Synthetic pairs and real questions.
        note: Text below the left part, such as the rank correlation.
    """
    with drawing(4.1, width=10.2) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.12))
        for kind, marker, color, size in _KINDS:
            of_kind = [sample for sample in samples if sample.kind == kind]
            left.scatter(
                [sample.similarity for sample in of_kind],
                [sample.influence for sample in of_kind],
                s=size,
                marker=marker,
                color=color,
                alpha=0.75,
                linewidths=0,
                label=f"{kind} ({len(of_kind)})",
            )
        left.axhline(0, color=SOFT, linewidth=0.8, zorder=0)
        below = "similarity to the questions (cosine of embeddings)" + (f"\n{note}" if note else "")
        finish(left, "Alike is not the same as helpful", below, "influence on the questions", grid="both")
        left.xaxis.set_major_locator(round_ticks())
        left.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
        _draw_map(figure, right, samples)
        return picture(figure, _alt(samples, note))


def _draw_map(figure: Any, axes: Any, samples: Sequence[ComparedSample]) -> None:
    most = max((abs(sample.influence) for sample in samples), default=1.0) or 1.0
    drawn = None
    for kind, marker, _, size in _KINDS:
        of_kind = [sample for sample in samples if sample.kind == kind]
        drawn = axes.scatter(
            [sample.x for sample in of_kind],
            [sample.y for sample in of_kind],
            c=[sample.influence for sample in of_kind],
            cmap="RdBu",
            vmin=-most,
            vmax=most,
            s=size * 1.5,
            marker=marker,
            edgecolors=SOFT,
            linewidths=0.6,
        )
    axes.set_title("The embeddings, coloured by influence")
    axes.set_xlabel("first principal component (circles: synthetic, triangles: experts)")
    axes.set_ylabel("second")
    axes.set_xticks([])
    axes.set_yticks([])
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=axes, shrink=0.85, pad=0.02)
        bar.set_label("influence (blue helps)")
        bar.outline.set_visible(False)


def _alt(samples: Sequence[ComparedSample], note: str) -> str:
    parts = []
    for kind, *_ in _KINDS:
        of_kind = [sample for sample in samples if sample.kind == kind]
        if of_kind:
            cosines = [sample.similarity for sample in of_kind]
            influences = [sample.influence for sample in of_kind]
            parts.append(
                f"{len(of_kind)} {kind}s: similarity {min(cosines):.2f} to {max(cosines):.2f}, influence "
                f"{min(influences):.3g} to {max(influences):.3g}."
            )
    return " ".join([*parts, note]).strip()
