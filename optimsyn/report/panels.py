"""The panels of a run's pictures, in the report and in notebooks.

Each function draws on given axes; some return a note on how to read the panel. Panels with a row for each variant
label it above the row, to stay readable on a phone.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimsyn.base.counting import plural
from optimsyn.base.terminal.labels import variant_color, variant_label
from optimsyn.base.terminal.table import decimals_for, fixed, number
from optimsyn.report.drawing import DASHED, GRID, GROUND, INK, SOFT, dots, pointed, round_ticks, span
from optimsyn.report.tables import interval
from optimsyn.training.intervals import MetricRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Most dots per variant; the numbers beside them cover all values.
_MOST_DOTS = 180
_MOST_MARKERS = 60
# With more, dots of rejected texts have no number of passages beside them.
_MOST_NUMBERED = 20
# Places within axes: of the texts compared on all passages, and of the rejected ones.
_ABOVE, _BELOW = (0.0, 0.45, 1.0, 0.55), (0.0, 0.0, 1.0, 0.27)
# Heights of rows, in units of a drawing in a page.
INFLUENCE_ROW, VALUE_ROW, GROUP_ROW, NEXT_ROW = 54.0, 40.0, 38.0, 15.0
Lane = tuple[float, float]


def draw_influence(
    axes: Axes, influence: Mapping[str, Sequence[float]], zero_gradient: float | None = None, *, narrow: bool = False
) -> str:
    """Influence of each variant's valid pairs: a dot for each pair, the middle half as a box, the median.

    No variant may be without pairs; `zero_gradient` is that of a pair without any gradient.
    """
    every = [value for values in influence.values() for value in values]
    decimals = decimals_for(every)
    lanes = [(row * INFLUENCE_ROW + 19, row * INFLUENCE_ROW + 47) for row in range(len(influence))]
    _rows(axes, lanes, [*every, 0.0, zero_gradient or 0.0], INFLUENCE_ROW * len(influence))
    if zero_gradient != 0:
        _upright(axes, 0.0, lanes, color=SOFT, linewidth=1)
    if zero_gradient is not None:
        gid = pointed("a pair without any gradient")
        _upright(axes, zero_gradient, lanes, color=SOFT, linewidth=1.3, linestyle=DASHED, gid=gid)
    generator = random.Random(0)
    for row, (variant, values) in enumerate(influence.items()):
        top, color = row * INFLUENCE_ROW, variant_color(variant)
        middle, median = top + 33, statistics.median(values)
        drawn = list(values) if len(values) <= _MOST_DOTS else generator.sample(list(values), _MOST_DOTS)
        pairs = f"{len(values):,} pair{'' if len(values) == 1 else 's'}{',' if narrow else ', median'}"
        _name(axes, top + 14, variant_label(variant), f"{pairs} {fixed(median, decimals)}")
        if len(values) >= 4:
            _box(axes, values, middle, color)
        dots(axes, [(v, middle + generator.uniform(-9, 9)) for v in drawn], color=color, linewidth=5, alpha=0.62)
        ends, gid = [middle - 14, middle + 14], pointed(f"median {number(median)}")
        axes.plot([median, median], ends, color=INK, linewidth=2.6, zorder=4, clip_on=False, gid=gid)
    note = "A dot is a pair, the box holds the middle half, the bar is the median."
    if zero_gradient is not None:
        note += f" Dashed: what a pair without any gradient would score ({number(zero_gradient)})."
    return note


def _box(axes: Axes, values: Sequence[float], middle: float, color: str) -> None:
    from matplotlib.patches import Rectangle

    low, _, high = statistics.quantiles(sorted(values), n=4, method="inclusive")
    gid = pointed(f"middle half: {number(low)} to {number(high)}")
    ends = axes.get_xlim()
    # A thin line if all values are equal.
    width = max(high - low, (ends[1] - ends[0]) / 700)
    box = Rectangle((low, middle - 11), width, 22, facecolor=color, alpha=0.2, linewidth=0, gid=gid, clip_on=False)
    axes.add_patch(box)


def draw_prompt(axes: Axes, candidates: Sequence[Mapping[str, Any]]) -> str:
    """Reward of every guiding text that was tried (the history's rows with a score), and of the best so far.

    Texts that were rejected after a few passages have axes of their own below, because a mean of a few passages is not
    comparable with one of all; a line above each panel has its number of passages.
    """
    compared, rejected = compared_and_rejected(candidates)
    ends = [0.0, *(x for x, _ in _places(candidates))]
    above = below = axes
    if compared and rejected:
        # Within these axes, so that a layout leaves room for both.
        above, below = axes.inset_axes(_ABOVE), axes.inset_axes(_BELOW)
        axes.spines[:].set_visible(False)
        axes.set_xticks([])
        axes.set_yticks([])
    if compared:
        _draw_compared(above, compared, ends)
    if rejected:
        _draw_rejected(below, rejected, ends)
    above.tick_params(axis="x", labelbottom=above is below)
    below.set_xlabel("pairs judged")
    notes = ["Dot: compared on all passages of the search. Line: the best so far."] if compared else []
    if rejected:
        notes.append(
            "Hollow: rejected after a few passages, on a scale of its own, comparable only with its parent on the same "
            "passages."
        )
    return " ".join(notes)


def _draw_compared(axes: Axes, compared: Sequence[Mapping[str, Any]], ends: Sequence[float]) -> None:
    color, places = variant_color("optimized"), _places(compared)
    _frame(axes, ends, [y for _, y in places], 0.12)
    best = list(itertools.accumulate((score for _, score in places), max))
    x_best, y_best = [*(x for x, _ in places), max(ends)], [*best, best[-1]]
    axes.plot(x_best, y_best, drawstyle="steps-post", color=color, linewidth=2, clip_on=False)
    for place in places:
        dots(axes, [place], color=color, linewidth=9, gid=pointed(f"compared on all passages: {number(place[1])}"))
    _panel_name(axes, f"● compared{_count_of(compared)}, line: best", color)
    axes.set_ylabel("reward")


def _draw_rejected(axes: Axes, rejected: Sequence[Mapping[str, Any]], ends: Sequence[float]) -> None:
    places = _places(rejected)
    _frame(axes, ends, [y for _, y in places], 0.25)
    counts = [row.get("passages") for row in rejected]
    several = len(set(counts)) > 1 and len(rejected) <= _MOST_NUMBERED
    for place, count in zip(places, counts, strict=True):
        # A dot within a dot, since markers would need ids in a page.
        gid = pointed(f"rejected: {number(place[1])}{'' if count is None else ' on ' + plural(count, 'passage')}")
        dots(axes, [place], color=SOFT, linewidth=9.3, zorder=2, gid=gid)
        dots(axes, [place], color=GROUND, linewidth=6.7, zorder=2, gid=gid)
        if several and count is not None:
            axes.annotate(f"{count}", place, (6, 0), textcoords="offset points", va="center", color=SOFT)
    _panel_name(axes, f"○ rejected early{_count_of(rejected)}", SOFT)
    axes.yaxis.set_major_locator(round_ticks(most=2))
    axes.set_ylabel("reward")


def compared_and_rejected(
    candidates: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The rows of texts that were compared on all passages of the search, and of those that were not."""
    compared = [row for row in candidates if row.get("status") != "rejected"]
    return compared, [row for row in candidates if row.get("status") == "rejected"]


def _places(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [(float(row.get("judged", place)), float(row["score"])) for place, row in enumerate(rows)]


def _count_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many passages the scores are means of; "" where an older version has not recorded it."""
    counts = [row["passages"] for row in rows if isinstance(row.get("passages"), int)]
    start = next((row for row in rows if row.get("status") == "start"), None)
    if not counts and start is not None and "judged" in start:
        # The first text is compared before anything else is judged.
        counts = [start["judged"]]
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f" (n = {low if low == high else f'{low} to {high}'} passages)"


def _panel_name(axes: Axes, text: str, color: str) -> None:
    """A line above axes that says what they show."""
    from matplotlib import rcParams

    where: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(text, (0, 1), (0, 5), va="bottom", color=color, fontsize=rcParams["xtick.labelsize"], **where)


def draw_policy(axes: Axes, trained: Sequence[Mapping[str, Any]]) -> str:
    """Mean and spread of the reward by training step, with the share of valid pairs; rows as in the history."""
    color = variant_color("policy")
    steps = [float(row.get("step", place + 1)) for place, row in enumerate(trained)]
    means = [float(row["reward"]) for row in trained]
    under, over = (
        [mean + sign * float(row.get("reward_std") or 0.0) for mean, row in zip(means, trained, strict=True)]
        for sign in (-1, 1)
    )
    _frame(axes, steps, [*under, *over], 0.08)
    axes.fill(
        [*steps, *reversed(steps)],
        [*under, *reversed(over)],
        color=color,
        alpha=0.18,
        linewidth=0,
        label="± 1 std",
        clip_on=False,
    )
    axes.plot(steps, means, color=color, linewidth=2, label="mean", clip_on=False)
    few = len(steps) <= _MOST_MARKERS
    if few:
        dots(axes, list(zip(steps, means, strict=True)), color=color, linewidth=9)
    note = "Line: mean reward of a step. Band: ± one standard deviation within it."
    valid = [float(row["valid"]) for row in trained if isinstance(row.get("valid"), int | float)]
    if len(valid) == len(steps):
        style: dict[str, Any] = {"color": SOFT, "linewidth": 1.5, "linestyle": (0, (2, 2.5))}
        other = axes.twinx()
        other.set_ylim(0, 1.04)
        other.set_xlim(axes.get_xlim())
        other.plot(steps, valid, clip_on=False, **style)
        if few:
            dots(other, list(zip(steps, valid, strict=True)), color=SOFT, linewidth=5)
        other.set_yticks([0, 0.5, 1], ["0", "50%", "100%"])
        other.tick_params(axis="y", length=0)
        other.spines[:].set_visible(False)
        axes.plot([], [], label="valid share (right)", **style)
        note += " Dotted, on the right: the share of pairs that passed every check."
    axes.set_xlabel("training step")
    axes.set_ylabel("reward")
    return note


def draw_curves(axes: Axes, curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], across: str) -> None:
    """Rewards of several runs over what `across` names: colour, places and rewards of each, a line a run."""
    _frame(axes, [x for _, xs, _ in curves for x in xs], [y for _, _, ys in curves for y in ys], 0.1)
    for color, xs, ys in curves:
        axes.plot(xs, ys, color=color, linewidth=1.6, alpha=0.8, clip_on=False)
        if len(xs) <= _MOST_MARKERS:
            dots(axes, list(zip(xs, ys, strict=True)), color=color, linewidth=6)
    axes.set_xlabel(across)
    axes.set_ylabel("reward")


def draw_intervals(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str] | None = None,
    *,
    zero: bool = False,
    value_text: Callable[[Any], str] | None = None,
) -> None:
    """A metric of several variants with intervals, one line each.

    Args:
        axes: Axes to draw on.
        rows: Rows of `evaluation.json` of this metric; a row may have a `color`.
        labels: Labels in place of variant names; consecutive rows with one label are grouped.
        zero: Draw a line at 0.
        value_text: Text at the end of a row; None: value and interval.
    """
    names = list(labels) if labels is not None else [variant_label(row["variant"]) for row in rows]
    tops = _tops(names, grouped=labels is not None)
    lanes: list[Lane] = []
    for place, top in enumerate(tops):
        start = top + 17 if _fresh(names, place) else lanes.pop()[0]
        lanes.append((start, top + 33))
    every = [row[key] for row in rows for key in ("value", "low", "high") if row[key] is not None]
    _rows(axes, lanes, [*every, 0.0] if zero or not every else every, intervals_height(rows, labels))
    if zero:
        _upright(axes, 0.0, lanes, color=SOFT, linewidth=1)
    first = None if labels is not None else next((row for row in rows if row["difference"] is None), None)
    if first is not None:
        gid = pointed(f"{names[0]}: {first['value']:.3f}")
        _upright(axes, first["value"], lanes, color=SOFT, linewidth=1.3, linestyle=DASHED, gid=gid)
    for place, (row, top) in enumerate(zip(rows, tops, strict=True)):
        middle, color, text = top + 25, row.get("color") or variant_color(row["variant"]), interval(row)
        who = names[place] if labels is None else f"{names[place]}, {variant_label(row['variant'])}"
        if labels is None or _fresh(names, place):
            _name(axes, top + 13, names[place], "" if labels is not None else (value_text or interval)(row))
        gid = pointed(f"{who}: {text}")
        if row["low"] is not None and row["high"] is not None:
            ends = [row["low"], row["high"]]
            axes.plot(ends, [middle, middle], color=color, linewidth=3, clip_on=False, zorder=2.5, gid=gid)
        dots(axes, [(row["value"], middle)], color=color, linewidth=9, gid=gid)


def scored(history: Sequence[Mapping[str, Any]], field: str) -> list[Mapping[str, Any]]:
    """The rows of a history with a number in this field."""
    return [row for row in history if isinstance(row.get(field), int | float)]


def influence_words(influence: Mapping[str, Sequence[float]]) -> str:
    """What `draw_influence` shows, for those who cannot see it."""
    medians = (f"{variant_label(name)} {number(statistics.median(values))}" for name, values in influence.items())
    return f"Median influence of the valid pairs: {', '.join(medians)}."


def prompt_words(candidates: Sequence[Mapping[str, Any]]) -> str:
    """What `draw_prompt` shows."""
    compared, rejected = compared_and_rejected(candidates)
    if not compared:
        return f"{len(candidates)} guiding texts were tried{_count_of(rejected)}, none on all passages of the search."
    scores = [row["score"] for row in compared]
    ends = f"reward {number(scores[0])} at the start, best {number(max(scores))}{_count_of(compared)}"
    dropped = f", {len(rejected)} of them rejected early{_count_of(rejected)}" if rejected else ""
    return f"{len(candidates)} guiding texts{dropped}: {ends}."


def policy_words(trained: Sequence[Mapping[str, Any]]) -> str:
    """What `draw_policy` shows."""
    ends = ((trained[0], 1), (trained[-1], len(trained)))
    rewards = (f"{number(row['reward'])} in step {row.get('step', place):g}" for row, place in ends)
    return f"Mean reward {', '.join(rewards)}."


def evaluation_words(rows: Sequence[MetricRow]) -> str:
    """The values of every metric and variant."""
    by_metric: dict[str, list[str]] = {}
    for row in rows:
        by_metric.setdefault(row["metric"], []).append(f"{variant_label(row['variant'])} {row['value']:.2f}")
    return " ".join(f"{metric.replace('_', ' ')}: {', '.join(values)}." for metric, values in by_metric.items())


def intervals_height(rows: Sequence[Mapping[str, Any]], labels: Sequence[str] | None = None) -> float:
    """Height of the rows of `draw_intervals`."""
    names = list(labels) if labels is not None else [str(row["variant"]) for row in rows]
    return (_tops(names, grouped=labels is not None) or [0.0])[-1] + VALUE_ROW


def _fresh(names: Sequence[str], place: int) -> bool:
    return place == 0 or names[place] != names[place - 1]


def _tops(names: Sequence[str], *, grouped: bool) -> list[float]:
    tops: list[float] = []
    for place in range(len(names)):
        step = VALUE_ROW if not grouped else GROUP_ROW if _fresh(names, place) else NEXT_ROW
        tops.append(tops[-1] + step if tops else 0.0)
    return tops


def _rows(axes: Axes, lanes: Sequence[Lane], values: Sequence[float], height: float) -> None:
    """Sets up rows; draws tick lines only within their lanes, so that none crosses a text."""
    low, high = span(values)
    axes.set_xlim(low, high)
    axes.set_ylim(height, 0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    ticks = [tick for tick in round_ticks(most=4).tick_values(low, high) if low <= tick <= high]
    axes.set_xticks(ticks)
    axes.tick_params(axis="x", length=0)
    for tick in ticks:
        _upright(axes, tick, lanes, color=GRID, linewidth=1)


def _frame(axes: Axes, across: Sequence[float], up: Sequence[float], room: float) -> None:
    """Two axes with lines at the ticks of the upright one."""
    axes.set_xlim(*span(across))
    axes.set_ylim(*span(up, room))
    low, high = axes.get_xlim()
    # Also for one step, where there is no room for several ticks.
    whole = [tick for tick in round_ticks(integer=True).tick_values(low, high) if tick == round(tick)]
    axes.set_xticks([tick for tick in whole if low <= tick <= high])
    axes.yaxis.set_major_locator(round_ticks(most=4))
    axes.tick_params(axis="both", length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", clip_on=False)


def _upright(axes: Axes, x: float, lanes: Sequence[Lane], **how: Any) -> None:
    axes.plot(
        [x, x, float("nan")] * len(lanes),
        [end for low, high in lanes for end in (low, high, float("nan"))],
        **{"zorder": 1, "clip_on": False, **how},
    )


def _name(axes: Axes, y: float, name: str, value: str) -> None:
    """Label and value above a row."""
    across = axes.get_yaxis_transform()
    axes.text(0, y, name, transform=across, va="baseline")
    if value:
        axes.text(1, y, value, transform=across, va="baseline", ha="right", color=SOFT)
