"""Result of a stage: typed facts, the table that shows them, and the file with both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from optimsyn.base.errors import DataError
from optimsyn.base.files import write_json
from optimsyn.recipe.problems import in_a_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from optimsyn.base.terminal.table import Table
    from optimsyn.runs.protocol import RunLike

RESULT_FILE = "result.json"
NOT_RECORDED = "not recorded"
"""Shown for facts that an older version has not recorded."""


class Cells(NamedTuple):
    """The table of a result.

    Attributes:
        title: One line above it.
        columns: Headings.
        rows: Cells; numbers are shown with four significant digits, None as a dash.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class StageResult(BaseModel):
    """Result of a stage. Each built-in stage has its own subclass; a custom stage may have one.

    A subclass adds facts as fields; without its own `cells` it is shown as names and values.

    Example:
        >>> class Dropped(StageResult):
        ...     stage: str = "drop_short"
        ...     dropped: int = Field(description="Pairs that were left out.")
        >>> Dropped(dropped=3).rows
        (('dropped', 3),)
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    stage: str = Field("", description="Name of the stage; filled in for custom stages.")
    notes: tuple[str, ...] = Field((), description="Sentences below the table.")
    _kept: Cells | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        """Whether facts and notes are equal, however the result was created."""
        return isinstance(other, StageResult) and type(self) is type(other) and self.__dict__ == other.__dict__

    def cells(self) -> Cells:
        """The table built from the facts."""
        facts = self.facts()
        return Cells(self.stage, ("what", "value"), tuple((name.replace("_", " "), facts[name]) for name in facts))

    def facts(self) -> dict[str, Any]:
        """The facts by name, as JSON values."""
        return self.model_dump(mode="json", exclude={"stage", "notes"})

    @property
    def shown(self) -> Cells:
        """The table; for a result read from a file, the one shown when the stage ended."""
        return self.cells() if self._kept is None else self._kept

    @property
    def title(self) -> str:
        """One line above the table."""
        return self.shown.title

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the table."""
        return self.shown.columns

    @property
    def rows(self) -> tuple[tuple[Any, ...], ...]:
        """Cells of the table."""
        return self.shown.rows

    def save(self, run: RunLike) -> Self:
        """Writes `<stage>/result.json`, so that a finished stage can be shown again without running."""
        table = self.shown
        content = {"stage": self.stage, "title": table.title, "columns": table.columns, "rows": table.rows}
        write_json(run.folder / self.stage / RESULT_FILE, {**content, "numbers": self.facts(), "notes": self.notes})
        return self

    @classmethod
    def load(cls, run: RunLike, stage: str | None = None) -> Self:
        """Reads the saved result of a stage.

        Args:
            run: The run.
            stage: Its name; by default that of this class.

        Raises:
            DataError: There is none, or it is damaged; names the file.
        """
        name = stage or cls.model_fields["stage"].get_default()
        path = run.folder / str(name) / RESULT_FILE
        return cls.read(json_of(path, str(name)), path)

    @classmethod
    def read(cls, raw: Mapping[str, Any], path: Path) -> Self:
        """Parses the content of a `result.json`, including those of older versions.

        Facts that version did not record are None; unknown facts are ignored.

        Args:
            raw: The content.
            path: The file, for messages.

        Raises:
            DataError: A fact has the wrong type; names file and fact.
        """
        facts = cls.recorded(raw)
        missing = {name: None for name in cls.model_fields if name not in facts and name not in ("stage", "notes")}
        try:
            result = cls.model_validate({**missing, **facts, "stage": raw["stage"], "notes": raw.get("notes", ())})
        except ValidationError as error:
            raise DataError(f"{path}: numbers.{in_a_line(error)}; the file was edited or damaged") from error
        result._kept = Cells(raw["title"], tuple(raw["columns"]), tuple(tuple(row) for row in raw["rows"]))
        return result

    @classmethod
    def recorded(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The facts in a file's content, converted to this version's format."""
        return dict(raw.get("numbers", {}))

    def table(self) -> Table:
        """The result as a table for people."""
        from optimsyn.base.terminal.table import Table

        title, columns, rows = self.shown
        numeric = {
            place
            for place in range(len(columns))
            if rows and all(isinstance(row[place], int | float | None) for row in rows)
        }
        body = tuple(tuple(show(cell) for cell in row) for row in rows)
        return Table(title, columns, body, frozenset(numeric), " ".join(self.notes))

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()


class TableResult(StageResult):
    """A generic result: a table, and numbers by name.

    Attributes:
        numbers: JSON values by name.
    """

    heading: str = Field("", description="One line above the table.")
    head: tuple[str, ...] = Field(("what", "value"), description="Headings of the table.")
    body: tuple[tuple[Any, ...], ...] = Field((), description="Cells of the table.")
    numbers: dict[str, Any] = Field(default_factory=dict, description="JSON values by name.")

    def cells(self) -> Cells:
        """The given table, else the numbers."""
        body = self.body or tuple(self.numbers.items())
        return Cells(self.heading or self.stage, self.head, body)

    def facts(self) -> dict[str, Any]:
        """The numbers."""
        return dict(self.numbers)

    @classmethod
    def recorded(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The numbers and the saved table."""
        table = {"heading": raw["title"], "head": raw["columns"], "body": raw["rows"]}
        return {**table, "numbers": raw.get("numbers", {})}


def json_of(path: Path, stage: str) -> dict[str, Any]:
    """The content of a stage's `result.json`.

    Raises:
        DataError: There is none, or it is damaged.
    """
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; the stage {stage} writes it when it has finished") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); run the stage {stage} again") from error
    return raw


def show(cell: Any) -> str:
    """A cell as text: floats with four significant digits, None as a dash."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    if isinstance(cell, dict):
        return ", ".join(f"{name} {show(value)}" for name, value in cell.items())
    return ", ".join(map(show, cell)) if isinstance(cell, list | tuple) else str(cell)


def listed(counts: Mapping[str, int], *, most: int | None = None, more: str = "") -> str:
    """Names and counts in a line: `years 6, dates 4`."""
    names = list(counts)
    text = ", ".join(f"{name} {counts[name]}" for name in names[:most])
    return text if most is None or len(names) <= most else f"{text} and {len(names) - most} {more}"


def named(names: Iterable[str], count: int | None, most: int) -> str:
    """Some names in a line, and how many more there are."""
    few = list(names)[:most]
    rest = (count or 0) - len(few)
    return ", ".join(few) + (f" and {rest} more" if rest > 0 else "")
