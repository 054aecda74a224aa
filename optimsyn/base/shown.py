"""What shows itself as a table at the end of a notebook cell and in a terminal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from optimsyn.base.table import Table


class Shown(ABC):
    """Base of such classes: give `_table`, import what it needs inside."""

    @abstractmethod
    def _table(self) -> Table:
        """The table."""

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table()
