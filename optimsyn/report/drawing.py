"""Renders all pictures with matplotlib in one style: PNG for notebooks, SVG for pages.

Uses matplotlib's objects and never pyplot, so that notebooks show nothing twice and no figure stays open.
"""

from __future__ import annotations

import html
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.terminal.labels import VARIANT_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The report's colours in light mode; drawings in a page use the page's CSS variables.
INK, SOFT, GRID, GROUND = "#1b1f24", "#56606b", "#d9dde3", "#fefefe"
BLUE, RED, BROWN = "#2f6da8", "#b4462f", "#9a6a2f"
_OF_PAGE = {INK: "--ink", SOFT: "--soft", GRID: "--line", GROUND: "--ground"} | {
    color.lower(): f"--v-{variant}" for variant, color in VARIANT_COLORS.items()
}
DASHED = (0, (4, 3))
_WIDTH = 9.2
_DPI = 130
_UNITS_PER_INCH = 72
STYLE: dict[str, Any] = {
    "font.size": 10,
    "text.color": INK,
    # A dollar sign in a name is no math.
    "text.parse_math": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelsize": 9.5,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "optimsyn",
}
# Text in the size of the page.
_IN_PAGE: dict[str, Any] = {
    "font.size": 13,
    "axes.labelsize": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "lines.solid_capstyle": "butt",
}


@dataclass(frozen=True)
class Picture:
    """A picture for notebooks: a PNG file and its alternative text."""

    png: bytes = field(repr=False)
    alt: str = ""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        # The saved notebook keeps the alternative text, for pages made from it.
        return {"image/png": self.png, "text/plain": self.alt}, {"alt": self.alt}

    def save(self, path: Path) -> Path:
        """Writes the PNG file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_bytes(self.png)
        partial.replace(path)
        return path


class Drawing(str):
    """An `svg` element for a page; `optimsyn.report.rendering` redacts its texts."""

    __slots__ = ()


@contextmanager
def drawing(height: float, *, width: float = _WIDTH) -> Iterator[Figure]:
    """A figure for a notebook, with automatic layout; sizes in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are one long Literal
        layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, wspace=0.04, hspace=0.05)
        yield Figure(figsize=(width, height), layout=layout)


@contextmanager
def page_axes(width: float, height: float, edges: tuple[float, float, float, float]) -> Iterator[Axes]:
    """Axes for a page; sizes in pixels when not scaled, `edges` are left, top, right and bottom from the upper left."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    left, top, right, bottom = edges
    with mpl.rc_context(STYLE | _IN_PAGE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH))
        figure.patch.set_visible(False)
        axes = figure.add_axes((left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height))
        axes.patch.set_visible(False)
        yield axes


def picture(figure: Figure, alt: str) -> Picture:
    """Renders a figure; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # Without software name and date, equal runs give equal bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return Picture(buffer.getvalue(), alt)


def svg(axes: Axes, alt: str) -> Drawing:
    """The figure of these axes as a small SVG element with text as text and the page's colours.

    Elements with a `gid` of `pointed(...)` show that text as a tooltip.
    """
    from matplotlib.figure import Figure

    figure = axes.figure
    assert isinstance(figure, Figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Drawing(_small(buffer.getvalue(), alt))


_TITLE = "title:"
# Depth of nested groups in matplotlib's SVG.
_DEEPEST = 4
_NOT_NEEDED = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
_AS_IN_PAGE = ("text-anchor:start", f"fill:{INK}", "font-size:13px", "stroke-linejoin:miter", "stroke-linejoin:round")


def pointed(text: str) -> str:
    """The `gid` of an element with a tooltip."""
    return _TITLE + text


def _small(text: str, alt: str) -> str:
    opening, _, body = text[text.index("<svg") :].partition(">")
    box = re.search(r'viewBox="([^"]*)"', opening)
    assert box is not None
    sizes = " ".join(f"{float(number):.0f}" for number in box[1].split())
    body = _NOT_NEEDED.sub("", body)
    body = re.sub(rf'<g id="{_TITLE}([^"]*)">', r"<g><title>\1</title>", body)
    used = set(re.findall(r"""#([\w-]+)["')]""", body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r' (d|x|y|transform|width|height)="([^"]*)"', _rounded, body)
    body = re.sub(r' style="([^"]*)"', _styled, body)
    body = re.sub(r">\s+<", "><", body)
    # Drop empty groups and unwrap the others.
    body = body.replace("<g/>", "").replace('<path d="" style="fill:none"/>', "")
    for _ in range(_DEEPEST):
        body = re.sub(r"<g>((?:<path [^>]*/>|<text [^>]*>[^<]*</text>)*)</g>", r"\1", body)
    return f'<svg viewBox="{sizes}" role="img" aria-label="{html.escape(alt)}">{body.strip()}'


def _styled(attribute: re.Match[str]) -> str:
    """A style without the page's defaults, and with its colours."""
    font = re.sub(r"font: (?:bold )?([\d.]+)px [^;]*", r"font-size: \1px", attribute[1])
    parts = [part.strip().replace(": ", ":") for part in font.split(";")]
    style = ";".join(part for part in parts if part and part not in _AS_IN_PAGE and not part.startswith("font-family"))
    style = style.replace("font-size:12px", "font-size:var(--tick)")
    style = re.sub("|".join(_OF_PAGE), lambda match: f"var({_OF_PAGE[match[0]]})", style)
    return f' style="{style}"' if style else ""


def _rounded(attribute: re.Match[str]) -> str:
    name, value = attribute[1], attribute[2]
    if name == "transform" and value.startswith("rotate(-0 "):
        return ""
    value = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), value)
    # Lines of no length, from `dots`.
    value = re.sub(r"M (\S+ \S+) ?\s*L \1(?=\s|$)", r"M\1h0", value)
    if name == "d":
        value = re.sub(r"\s*([MLz])\s*", r"\1", value)
    return f' {name}="{value.strip()}"'


def dots(axes: Axes, places: Sequence[tuple[float, float]], **how: Any) -> None:
    """Round dots in one path, a tenth of the size of as many markers; `linewidth` is their size.

    The axes' limits must be set.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    if not places:
        return
    low, high = axes.get_xlim()
    # Some engines do not paint a line of no length.
    little = 1e-6 * (high - low)
    points = [point for x, y in places for point in ((x, y), (x + little, y))]
    codes = [Outline.MOVETO, Outline.LINETO] * len(places)
    style = {"fill": False, "capstyle": "round", "clip_on": False, "snap": False, "zorder": 3, **how}
    axes.add_patch(PathPatch(Outline(points, codes), **style))


def round_ticks(*, integer: bool = False, most: int = 5) -> Any:
    """A few ticks at round numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=most, steps=[1, 2, 5, 10], integer=integer)


def span(values: Sequence[float], room: float = 0.05) -> tuple[float, float]:
    """The limits of an axis for at least one value, with a margin at each end, as a share of the range."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        spread = abs(high) * 0.1 or 1.0
        low, high = low - spread, high + spread
    pad = room * (high - low)
    return low - pad, high + pad


def finish(axes: Axes, title: str, x: str, y: str, *, whole: str = "", grid: str = "y") -> None:
    """Title, labels and grid lines of a panel; `whole` names the axes (`x`, `y`, `xy`) with whole-number ticks."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for name in whole:
        getattr(axes, f"{name}axis").set_major_locator(round_ticks(integer=True))
    axes.grid(axis=grid)  # type: ignore[arg-type]


def say(axes: Axes, text: str) -> None:
    """Shows a sentence in place of a drawing."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()


def legend_below(axes: Axes) -> None:
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
