"""What a stage shows: one table, some numbers for the report, and a picture where there is one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.files import write_json

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from optimsyn.base.table import Table
    from optimsyn.runs.folder import Run


@dataclass(frozen=True)
class StageResult:
    """The outcome of one stage, shown as a table in a notebook and in a terminal.

    Attributes:
        stage: Name of the stage.
        title: One line above the table.
        columns: Headings of the table.
        rows: Cells; numbers are shown with four significant digits.
        numbers: The same facts by name, for `summary.json`.
        notes: Sentences below the table.
    """

    stage: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    numbers: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def save(self, run: Run) -> StageResult:
        """Writes `<stage>/result.json`, so that a finished stage shows itself again without being repeated."""
        write_json(self._file(run, self.stage), asdict(self))
        return self

    @staticmethod
    def _file(run: Run, stage: str) -> Path:
        return run.path(stage, "result.json")

    @classmethod
    def load(cls, run: Run, stage: str) -> StageResult:
        """The result of a finished stage."""
        raw = json.loads(cls._file(run, stage).read_text(encoding="utf-8"))
        raw["columns"] = tuple(raw["columns"])
        raw["rows"] = [tuple(row) for row in raw["rows"]]
        return cls(**raw)

    def table(self) -> Table:
        """The result as a table for people."""
        from optimsyn.base.table import Table

        numeric = {
            place
            for place in range(len(self.columns))
            if self.rows and all(isinstance(row[place], int | float | None) for row in self.rows)
        }
        rows = tuple(tuple(show(cell) for cell in row) for row in self.rows)
        return Table(self.title, self.columns, rows, frozenset(numeric), " ".join(self.notes))

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()


def show(cell: Any) -> str:
    """A cell as text: floats with four significant digits, None as a dash."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)
