"""What the work of an analyst has spent and written so far, kept over all its kernels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from optimsyn.base.errors import DataError
from optimsyn.base.files import write_json
from optimsyn.llm.replies import ReplyCache

_FILE = "spent.json"
REPLIES = "replies.sqlite"
"""The analyst's own replies, in the ledger's folder; what they cost counts."""


class Ledger:
    """Runs that were worked on, what each had bought before, and recipes that were written.

    Args:
        folder: Where it is kept; None: in memory, for one server's life.

    Raises:
        DataError: Its file cannot be read.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._before: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self._written: dict[str, str] = {}
        file = self._file
        if file is not None and file.is_file():
            try:
                kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
                self._before, self._spent, self._written = kept["before"], kept["spent"], kept["written"]
            except (ValueError, KeyError) as error:
                raise DataError(
                    f"{file}: cannot be read ({error}), so what was spent is unknown; put a copy of it back, or begin "
                    "another notebook"
                ) from error

    @property
    def _file(self) -> Path | None:
        return self.folder / _FILE if self.folder is not None else None

    @property
    def runs(self) -> list[Path]:
        """The folders of the runs that were worked on, in order."""
        return [Path(name) for name in self._before]

    def begin(self, run: Path) -> None:
        """Notes what a run had bought before the work on it began; only the first time counts."""
        if str(run) not in self._before:
            self._before[str(run)] = bought_in(run)
            self._keep()

    def spent(self) -> float:
        """US dollars that the runs have bought since, and the analyst's own replies."""
        for name, before in self._before.items():
            # A run folder that somebody has removed was paid for all the same.
            self._spent[name] = max(self._spent.get(name, 0.0), bought_in(Path(name)) - before)
        own = bought_in(self.folder) if self.folder is not None else 0.0
        return sum(self._spent.values()) + own

    def wrote(self, file: Path) -> None:
        """Notes a recipe that was written."""
        self._written[str(file)] = _digest(file)
        self._keep()

    def may_replace(self, file: Path) -> bool:
        """Whether a file was written here and nobody has changed it: a notebook that runs again writes it again."""
        return self.folder is not None and self._written.get(str(file)) == _digest(file)

    def keep(self) -> None:
        """Writes what was spent so far."""
        self.spent()
        self._keep()

    def _keep(self) -> None:
        file = self._file
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"before": self._before, "spent": self._spent, "written": self._written})


def bought_in(folder: Path) -> float:
    """What the replies in a folder have cost so far, in US dollars."""
    file = folder / REPLIES
    if not file.is_file():
        return 0.0
    # Opened anew, since another process may write it.
    cache = ReplyCache(file)
    try:
        return cache.totals().cost_usd
    finally:
        cache.release()
        cache.close()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
