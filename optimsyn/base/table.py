"""Tables that look alike in a terminal (rich) and in a notebook (HTML), without pandas."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimsyn.base.labels import metric_label, variant_label

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from optimsyn.data.losses import Loss
    from optimsyn.data.records import Pair
    from optimsyn.training.intervals import MetricRow

_DASH = "–"
# A column of text keeps at least so many characters.
_LEAST_TEXT = 14
# More zeros than this behind the point cannot be counted at a glance.
_MOST_DECIMALS = 7


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: One line above it.
        columns: Headings.
        rows: Cells, as many a row as there are headings; a line break in a cell stays one.
        right: Places of the columns that are aligned to the right: numbers.
        note: One or two sentences below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: a row of {len(row)} cells under {len(self.columns)} headings")

    def _repr_html_(self) -> str:
        def cell(tag: str, place: int, text: str) -> str:
            side = "right" if place in self.right else "left"
            style = f"text-align:{side};vertical-align:top;max-width:36em;white-space:pre-wrap"
            return f'<{tag} style="{style}">{html.escape(text)}</{tag}>'

        head = "".join(cell("th", place, name) for place, name in enumerate(self.columns))
        body = "".join(
            "<tr>" + "".join(cell("td", place, text) for place, text in enumerate(row)) + "</tr>" for row in self.rows
        )
        title = f"<p><b>{html.escape(self.title)}</b></p>" if self.title else ""
        note = f"<p><small>{html.escape(self.note)}</small></p>" if self.note else ""
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        shown = RichTable(
            title=Text(self.title, style="bold") if self.title else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for place, name in enumerate(self.columns):
            # In a narrow terminal headings and long texts are folded, numbers never.
            right = place in self.right
            lines = [len(line) for row in self.rows for line in row[place].split("\n")]
            least = max(lines, default=1) if right else min(max(lines, default=1), _LEAST_TEXT)
            least = max(least, *(len(word) for word in name.split()), 1)
            shown.add_column(Text(name), justify="right" if right else "left", overflow="fold", min_width=least)
        for row in self.rows:
            shown.add_row(*(Text(text) for text in row))
        yield shown
        if self.note:
            yield Text(self.note, style="dim")

    def __str__(self) -> str:
        """The table as plain text, as for a log."""
        from rich.console import Console

        console = Console(width=120, no_color=True, force_terminal=False, highlight=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number with so many significant digits and no exponent where it can be helped; a dash for None."""
    if value is None:
        return _DASH
    text = f"{value:{'+' if sign else ''}.{digits}g}"
    # A typographic minus is as wide as the plus, so that columns of differences line up.
    return text.replace("-", "−") if "e" not in text else text


def decimals_for(values: Iterable[float], digits: int = 3) -> int:
    """Decimals that give the largest of these numbers so many significant digits, so that all line up."""
    largest = max((abs(value) for value in values), default=0.0)
    return min(max(0, digits - 1 - math.floor(math.log10(largest))), 99) if largest > 0 else digits


def fixed(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """A number with so many decimals, or with an exponent where they would be too many to read; a dash for None."""
    if value is None:
        return _DASH
    form = f".{decimals}f" if decimals <= _MOST_DECIMALS else ".2e"
    return f"{value:{'+' if sign else ''}{form}}".replace("-", "−")


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
            difference = _DASH
            if row["difference"] is not None:
                difference = _interval(row["difference"], row["difference_low"], row["difference_high"], sign=True)
            value = _interval(row["value"], row["low"], row["high"])
            body.append((f"  {variant_label(row['variant'])}", value, difference))
    note = f"Brackets: {confidence:.0%} percentile bootstrap over questions."
    if any(row["difference"] is not None for row in rows):
        note += (
            " Differences are to the target as it came, paired by question; where their interval leaves out 0 the "
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
            cells = [number(value) for value in (ordered * 5)] if ordered else [_DASH] * 5
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
        frequent = sorted(counts.get(stage, {}).items(), key=lambda item: (-item[1], item[0])) or [(_DASH, 0)]
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
        shown = number(value, 4) if isinstance(value, float) else _DASH if value is None else str(value)
        body.append((name.replace("_", " "), shown))
    return Table(title, ("what", "value"), tuple(body))
