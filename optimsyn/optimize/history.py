"""The history of an optimiser: a JSON-lines file that can be plotted while the optimiser runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimsyn.base.files import append_jsonl, iter_json, write_jsonl


class History:
    """Rows of an optimiser's progress, kept in memory and on disk.

    Args:
        path: The file; its folder is created if needed.
        keep: Rows of an earlier, killed process to keep; the others are dropped, because their work is repeated.
    """

    def __init__(self, path: Path, keep: Callable[[dict[str, Any]], bool] = lambda row: False) -> None:
        self.path = path
        kept = list(filter(keep, iter_json(path, tolerate_torn=True))) if path.is_file() else []
        self.rows: list[dict[str, Any]] = kept
        write_jsonl(path, kept)

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row durably."""
        self.rows.append(row)
        append_jsonl(self.path, [row])

    def replace(self, rows: list[dict[str, Any]]) -> None:
        """Writes other rows in place of all, atomically."""
        self.rows = rows
        write_jsonl(self.path, rows)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a history, even while it is being written; empty if there is none yet."""
    return list(iter_json(path, tolerate_torn=True)) if path.is_file() else []
