"""Outcomes of all requests of a run, by role; each request counts once, however often its reply is read."""

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
# Writes only when the outcome changes.
_NOTE = """
INSERT INTO outcomes VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    outcome = excluded.outcome, asked_again = excluded.asked_again
    WHERE outcome <> excluded.outcome OR asked_again <> excluded.asked_again
"""
# Further events of a request: how often each kind happened.
_BESIDES = """
CREATE TABLE IF NOT EXISTS besides (key TEXT, kind TEXT, times INTEGER NOT NULL, PRIMARY KEY (key, kind))
"""
_COUNT = "INSERT INTO besides VALUES (?, ?, 1) ON CONFLICT (key, kind) DO UPDATE SET times = times + 1"
_COUNTED = """
SELECT COALESCE(outcomes.role, ?), besides.kind, SUM(besides.times)
    FROM besides LEFT JOIN outcomes ON outcomes.key = besides.key GROUP BY 1, 2
"""
ASKED_AGAIN = "asked_again"
# The cached reply was damaged and bought again; the tokens were counted from the texts.
DAMAGED, ESTIMATED = "damaged", "estimated"
# A request without a role: a probe of a service, a retry with a larger cap.
OTHER = "other"
_BUSY_S = 60.0
# A model is given up when this share of its latest requests could not be judged.
_LATEST = 24
_ENOUGH = 20
_HOPELESS = 0.75


class OutcomeLog:
    """The outcomes of a run, in the file of its replies. Safe across threads and processes."""

    def __init__(self, path: Path) -> None:
        """A log in this file, which is opened on first use."""
        self.path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def note(self, key: str, role: str, outcome: Outcome, *, asked_again: bool = False) -> None:
        """Records the outcome of a request; the last record counts.

        Args:
            key: The request's key.
            role: Who was asked: `generator`, `rubric`, `policy`, `reflection`.
            outcome: The outcome.
            asked_again: Its first reply was cut, and it was sent again with a larger cap.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            with self._lock:
                self._open().execute(_NOTE, (key, role, outcome.value, int(asked_again)))
        except sqlite3.Error as error:
            raise cannot_write(self.path, "what came of a reply", error) from error

    def count(self, key: str, kind: str) -> None:
        """Counts a further event of a request.

        Args:
            key: The request's key.
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

        Events of requests without a role are under `other`.
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
            # A count lost in a power cut returns when its reply is read again, so nothing waits for the disk.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_SCHEMA)
            self._db.execute(_BESIDES)
        return self._db


@dataclass(frozen=True)
class Hopeless:
    """Why a model is given up.

    Attributes:
        asked: The latest requests.
        unjudged: Those without anything to judge.
        counts: `unjudged` by outcome, the most frequent first.
        keys: The keys of their replies.
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
        """Adds an outcome; when hardly any of the latest could be judged, returns why and starts over."""
        with self._lock:
            self._latest.append((outcome, tuple(keys)))
            bad = [(kind, of) for kind, of in self._latest if kind.unjudged]
            asked = len(self._latest)
            if not outcome.unjudged or asked < _ENOUGH or len(bad) < _HOPELESS * asked:
                return None
            self._latest.clear()
        counts = dict(Counter(kind for kind, _ in bad).most_common())
        return Hopeless(asked, len(bad), counts, [key for _, of in bad for key in of])
