"""Tables that look alike in a terminal (rich) and in a notebook (HTML), without pandas."""

from __future__ import annotations

import html
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


DASH = "–"
# Least width of a column of text.
_LEAST_TEXT = 14
# More decimals than this are hard to read.
_MOST_DECIMALS = 7


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: One line above it.
        columns: Headings.
        rows: Cells, one for each heading; line breaks in a cell are kept.
        right: Indices of the columns that are aligned to the right: numbers.
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

        table = RichTable(
            title=Text(self.title, style="bold") if self.title else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for place, name in enumerate(self.columns):
            # In a narrow terminal headings and long texts wrap, numbers never.
            right = place in self.right
            lines = [len(line) for row in self.rows for line in row[place].split("\n")]
            least = max(lines, default=1) if right else min(max(lines, default=1), _LEAST_TEXT)
            least = max(least, *(len(word) for word in name.split()), 1)
            table.add_column(Text(name), justify="right" if right else "left", overflow="fold", min_width=least)
        for row in self.rows:
            table.add_row(*(Text(text) for text in row))
        yield table
        if self.note:
            yield Text(self.note, style="dim")

    def __str__(self) -> str:
        """The table as plain text."""
        from rich.console import Console

        console = Console(width=120, no_color=True, force_terminal=False, highlight=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number with so many significant digits; a dash for None."""
    if value is None:
        return DASH
    text = f"{value:{'+' if sign else ''}.{digits}g}"
    # A typographic minus is as wide as the plus, so that columns of differences line up.
    return text.replace("-", "−") if "e" not in text else text


def decimals_for(values: Iterable[float], digits: int = 3) -> int:
    """The number of decimals that gives the largest of these numbers so many significant digits."""
    largest = max((abs(value) for value in values), default=0.0)
    return min(max(0, digits - 1 - math.floor(math.log10(largest))), 99) if largest > 0 else digits


def fixed(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """A number with so many decimals, or with an exponent if these are too many to read; a dash for None."""
    if value is None:
        return DASH
    form = f".{decimals}f" if decimals <= _MOST_DECIMALS else ".2e"
    return f"{value:{'+' if sign else ''}{form}}".replace("-", "−")


class Shown(ABC):
    """Base of classes that display as a table: implement `_table`, with lazy imports."""

    @abstractmethod
    def _table(self) -> Table:
        """The table."""

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table()


def duration(seconds: float) -> str:
    """Seconds for people: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
