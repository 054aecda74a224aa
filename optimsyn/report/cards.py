"""A pair as a card, in a terminal and in a notebook: passage, rubric, question, answer, checks and cost."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

# A wider card is hard to read.
_WIDEST = 100
# Parts of one line stand together, with a blank line around longer ones.
_LINE = 66
_STYLE = "border:1px solid rgba(128,128,128,.5);border-radius:6px;padding:.5em .9em;margin:.6em 0;max-width:56em"


@dataclass(frozen=True)
class PairCard:
    """A card.

    Attributes:
        title: What it is about, on its upper edge.
        outcome: What became of it, on its lower edge.
        parts: Label and text of each part; line breaks are kept.
    """

    title: str
    outcome: str
    parts: tuple[tuple[str, str], ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold", ratio=1)
        before = 0
        for label, text in self.parts:
            lines = max(text.count("\n"), len(text) // _LINE)
            if grid.row_count and (lines or before):
                grid.add_row()
            grid.add_row(Text(label, style="bold"), Text(text))
            before = lines
        yield Panel(
            grid,
            title=Text(self.title, style="bold"),
            title_align="left",
            subtitle=Text(self.outcome),
            subtitle_align="right",
            # In a file or pipe a card has no sides, so that its text can be copied.
            box=box.ROUNDED if console.is_terminal else box.HORIZONTALS,
            width=min(options.max_width, _WIDEST),
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<div style="margin:.35em 0"><b>{html.escape(label)}</b><br>'
            f'<span style="white-space:pre-wrap">{html.escape(text)}</span></div>'
            for label, text in self.parts
        )
        head = f"<div>{html.escape(self.title)} · <b>{html.escape(self.outcome)}</b></div>"
        return f'<div style="{_STYLE}">{head}{rows}</div>'
