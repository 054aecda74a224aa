"""Reads cells of a question file: an answer or a list of answers."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from optimsyn.base.errors import DataError
from optimsyn.base.values import kind_of

_T = TypeVar("_T")


class Faults:
    """Collects all faults of one row."""

    def __init__(self) -> None:
        self.found: list[DataError] = []

    def part(self, read: Callable[[], _T]) -> _T | None:
        """Calls `read`; None if it raises a DataError, which is collected."""
        try:
            return read()
        except DataError as error:
            self.found.append(error)
        return None

    def raise_all(self) -> None:
        """Raises all collected faults, if any; a single one as it is."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise DataError("; and ".join(dict.fromkeys(map(str, self.found))))


def written(value: Any) -> str:
    """A single answer or option as text; "" for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(value)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"an answer or option is {kind_of(value)}, it must be text")
    return value.strip()


def list_cell(value: Any, field: str) -> list[Any]:
    """A list cell; in CSV it is JSON, or what Python prints for a list."""
    if isinstance(value, str) and value.strip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                raise DataError(f'`{field}` is not valid JSON; write a list as ["first", "second"]') from None
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if not isinstance(value, list | tuple):
        raise DataError(f'`{field}` is {kind_of(value)}, it must be a list (in CSV: ["first", "second"])')
    return [item.get("text") if isinstance(item, dict) else item for item in value]


def accepted_answers(values: Mapping[str, Any]) -> list[str]:
    """All accepted answers of a row, the gold one first."""
    cells: list[Any] = []
    for field in ("answer", "answers"):
        value = values.get(field)
        if isinstance(value, list | tuple | dict) or (field == "answers" and isinstance(value, str)):
            plain = isinstance(value, str) and not value.strip().startswith(("[", "{"))
            cells += [value] if plain else list_cell(value, field)
        else:
            cells.append(value)
    return [text for text in map(written, cells) if text]
