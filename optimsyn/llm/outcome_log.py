"""What came of every request of a run, by role: counted once a request, however often and by whom it is read."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optimsyn.base.disk import cannot_write
from optimsyn.base.errors import DataError, Outcome

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (
    key TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    outcome TEXT NOT NULL,
    asked_again INTEGER NOT NULL
)
"""
# An outcome that is known already writes nothing.
_NOTE = """
INSERT INTO outcomes VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    outcome = excluded.outcome, asked_again = excluded.asked_again
    WHERE outcome <> excluded.outcome OR asked_again <> excluded.asked_again
"""
# What besides may befall a request, however often: by kind, with the number of times.
_BESIDES = """
CREATE TABLE IF NOT EXISTS besides (key TEXT, kind TEXT, times INTEGER NOT NULL, PRIMARY KEY (key, kind))
"""
_COUNT = "INSERT INTO besides VALUES (?, ?, 1) ON CONFLICT (key, kind) DO UPDATE SET times = times + 1"
_COUNTED = """
SELECT COALESCE(outcomes.role, ?), besides.kind, SUM(besides.times)
    FROM besides LEFT JOIN outcomes ON outcomes.key = besides.key GROUP BY 1, 2
"""
ASKED_AGAIN = "asked_again"
# Its kept reply could not be read any more, so that it was bought again; its tokens were counted from the texts.
DAMAGED, ESTIMATED = "damaged", "estimated"
# A request of nobody's in particular: a first look at a service, a second try with more room.
OTHER = "other"
_BUSY_S = 60.0
# A model is given up when this share of so many requests in a row could not be judged.
_LATEST = 24
_ENOUGH = 20
_HOPELESS = 0.75


class OutcomeLog:
    """The outcomes of a run, in the file of its replies.

    Safe to use from several threads and processes.
    """

    def __init__(self, path: Path) -> None:
        """A log in this file; it is opened when it is first needed."""
        self.path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def note(self, key: str, role: str, outcome: Outcome, *, asked_again: bool = False) -> None:
        """Keeps what came of a request; the last word on it counts.

        Args:
            key: Of the request.
            role: Who was asked: `generator`, `rubric`, `policy`, `reflection`.
            outcome: What came of it.
            asked_again: Its first reply was cut, and it was sent once more with more room.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            with self._lock:
                self._open().execute(_NOTE, (key, role, outcome.value, int(asked_again)))
        except sqlite3.Error as error:
            raise cannot_write(self.path, "what came of a reply", error) from error

    def count(self, key: str, kind: str) -> None:
        """Counts what besides befell a request.

        Args:
            key: Of the request.
            kind: `DAMAGED` or `ESTIMATED`.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            with self._lock:
                self._open().execute(_COUNT, (key, kind))
        except sqlite3.Error as error:
            raise cannot_write(self.path, "what came of a reply", error) from error

    def counts(self) -> dict[str, dict[str, int]]:
        """For each role its requests by outcome, and how many were `asked_again`, `damaged` or `estimated`.

        What befell requests of no role in particular is under `other`.
        """
        if not self.path.is_file():
            return {}
        query = "SELECT role, outcome, COUNT(*), SUM(asked_again) FROM outcomes GROUP BY role, outcome"
        try:
            with self._lock:
                rows = self._open().execute(query).fetchall()
                besides = self._open().execute(_COUNTED, (OTHER,)).fetchall()
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: cannot be read ({error})") from error
        order = {outcome.value: place for place, outcome in enumerate(Outcome)}
        by_role: dict[str, dict[str, int]] = {}
        for role, outcome, count, again in sorted(rows, key=lambda row: (row[0], order.get(row[1], len(order)))):
            of_role = by_role.setdefault(role, {})
            of_role[outcome] = count
            if again:
                of_role[ASKED_AGAIN] = of_role.pop(ASKED_AGAIN, 0) + again
        by_role = {
            role: dict(sorted(of.items(), key=lambda item: item[0] == ASKED_AGAIN)) for role, of in by_role.items()
        }
        for role, kind, times in sorted(besides):
            by_role.setdefault(role, {})[kind] = times
        return by_role

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
            # A count that a power cut takes is found again when its reply is read again, so nothing waits for the disk.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_SCHEMA)
            self._db.execute(_BESIDES)
        return self._db


@dataclass(frozen=True)
class Hopeless:
    """Why a model is given up.

    Attributes:
        asked: Requests that were looked at.
        unjudged: Those of them that brought nothing that could be judged.
        counts: The same by outcome, the most frequent first.
        keys: Of their replies.
    """

    asked: int
    unjudged: int
    counts: dict[Outcome, int]
    keys: list[str]

    @property
    def worst(self) -> Outcome:
        """The most frequent outcome."""
        return next(iter(self.counts))


class Lately:
    """The latest outcomes of one model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: deque[tuple[Outcome, tuple[str, ...]]] = deque(maxlen=_LATEST)

    def add(self, outcome: Outcome, keys: Sequence[str]) -> Hopeless | None:
        """Adds an outcome; says when hardly any of the latest could be judged, and begins again then."""
        with self._lock:
            self._latest.append((outcome, tuple(keys)))
            bad = [(kind, of) for kind, of in self._latest if kind.unjudged]
            asked = len(self._latest)
            if not outcome.unjudged or asked < _ENOUGH or len(bad) < _HOPELESS * asked:
                return None
            self._latest.clear()
        counts = dict(Counter(kind for kind, _ in bad).most_common())
        return Hopeless(asked, len(bad), counts, [key for _, of in bad for key in of])
