"""A purse, the budget that several runs share: caps on money, requests and tokens over all their processes.

`optimsyn batch` creates one and names it in the environment; every process that buys replies checks it before each
request. The purse records what each run has bought and what requests under way may still use. Both are read and changed
in one transaction, so that two processes never spend the same budget.

A run's reply cache knows what it has bought, so a purse can be rebuilt at any time. It is an SQLite file with a
rollback journal, which also works on a network file system with working locks.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from optimsyn.base.counting import plural
from optimsyn.base.disk import cannot_write
from optimsyn.base.environment import PURSE, variable
from optimsyn.base.errors import BudgetError, DataError
from optimsyn.llm.reply import Usage

_BUSY_S = 60.0
# Prices are sums of many small floats.
_ROUNDING_USD = 1e-9
_SCHEMA = """
CREATE TABLE IF NOT EXISTS caps (
    one INTEGER PRIMARY KEY CHECK (one = 1), cost_usd REAL, requests INTEGER, tokens INTEGER
);
CREATE TABLE IF NOT EXISTS bought (
    run TEXT PRIMARY KEY,
    replies INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_usd REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS under_way (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL, machine TEXT NOT NULL, pid INTEGER NOT NULL, born REAL NOT NULL,
    replies INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_usd REAL NOT NULL
);
"""
# The summed columns of both tables.
_AMOUNTS = ("replies", "input_tokens", "output_tokens", "cost_usd")


@dataclass(frozen=True)
class Caps:
    """Caps over several runs; None is no cap."""

    cost_usd: float | None = None
    requests: int | None = None
    tokens: int | None = None

    def __bool__(self) -> bool:
        return any(cap is not None for cap in (self.cost_usd, self.requests, self.tokens))


class Purse:
    """The shared caps of a batch. Safe across threads and processes.

    Args:
        path: A purse that `Purse.create` made.

    Raises:
        BudgetError: The purse is gone: the batch that capped this process has ended.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        if not self.path.is_file():
            raise BudgetError(
                f"{self.path}: the batch whose caps hold here has ended; run `optimsyn batch` again, or unset {PURSE}"
            )
        self._db = self._connect()

    @classmethod
    def create(cls, path: Path, caps: Caps) -> Purse:
        """An empty purse, in place of an old one.

        Args:
            path: The file to write; no process may be using it.
            caps: The caps of all runs together.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(path)
        path.touch()
        purse = cls(path)
        with purse._transaction() as db:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO caps VALUES (1, ?, ?, ?)", (caps.cost_usd, caps.requests, caps.tokens))
        return purse

    @classmethod
    def from_environment(cls) -> Purse | None:
        """The purse that this process pays from, or None outside a batch with caps.

        Raises:
            BudgetError: The purse in the environment is gone.
        """
        path = variable(PURSE)
        return cls(path) if path else None

    @contextmanager
    def reserved(self, run: str, most: Usage, totals: Callable[[], Usage]) -> Iterator[None]:
        """Reserves budget for one request while it is under way, and counts what it bought.

        Args:
            run: The run that buys; its reply cache's path.
            most: The most the request may use and cost; `unpriced` where its price is unknown.
            totals: Returns what the run has bought, including this request once its reply is kept.

        Raises:
            BudgetError: The request could pass a cap of the batch; nothing has been sent.
        """
        reservation = self._reserve(run, most)
        try:
            yield
        finally:
            with self._transaction() as db:
                db.execute("DELETE FROM under_way WHERE id = ?", (reservation,))
                # Read inside the transaction, so that an older sum never replaces a newer one.
                self._set_bought(db, run, totals())

    def count(self, run: str, usage: Usage) -> None:
        """Records what a run has bought; no process may be working on it."""
        with self._transaction() as db:
            db.execute("DELETE FROM under_way WHERE run = ?", (run,))
            self._set_bought(db, run, usage)

    def bought(self) -> Usage:
        """What all runs have bought."""
        with self._transaction() as db:
            return self._sum(db, "bought")

    def under_way(self) -> Usage:
        """What requests under way may still use."""
        with self._transaction() as db:
            return self._sum(db, "under_way")

    def close(self) -> None:
        """Closes and removes the file."""
        with self._lock:
            self._db.close()
        _remove(self.path)

    def _reserve(self, run: str, most: Usage) -> int:
        pid = os.getpid()
        with self._transaction() as db:
            refusal = self._refusal(db, most)
            if refusal is not None and self._release_dead(db):
                refusal = self._refusal(db, most)
            if refusal is not None:
                raise refusal
            row = db.execute(
                "INSERT INTO under_way (run, machine, pid, born, replies, input_tokens, output_tokens, cost_usd) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (run, _machine(), pid, _born(pid), *_amounts(most)),
            )
            assert row.lastrowid is not None
            return row.lastrowid

    def _refusal(self, db: sqlite3.Connection, most: Usage) -> BudgetError | None:
        most_usd, most_requests, most_tokens = db.execute("SELECT cost_usd, requests, tokens FROM caps").fetchone()
        bought = self._sum(db, "bought")
        reserved = self._sum(db, "under_way")
        if most_usd is not None and not _affordable(most_usd - bought.cost_usd - reserved.cost_usd, most):
            return _spent("--cost-usd", f"{most_usd:g} US dollars", f"{bought.cost_usd:.4g} are spent")
        if most_requests is not None and (bought + reserved + most).replies > most_requests:
            return _spent("--requests", plural(most_requests, "request"), f"{bought.replies} were answered")
        if most_tokens is not None and (bought + reserved + most).tokens > most_tokens:
            return _spent("--tokens", plural(most_tokens, "token"), f"{bought.tokens} are used")
        return None

    def _release_dead(self, db: sqlite3.Connection) -> bool:
        """Releases reservations of this machine's processes that ended without doing so."""
        holders = db.execute("SELECT DISTINCT pid, born FROM under_way WHERE machine = ?", (_machine(),)).fetchall()
        dead = [(_machine(), pid, born) for pid, born in holders if not _lives(pid, born)]
        db.executemany("DELETE FROM under_way WHERE machine = ? AND pid = ? AND born = ?", dead)
        return bool(dead)

    @staticmethod
    def _set_bought(db: sqlite3.Connection, run: str, usage: Usage) -> None:
        db.execute("INSERT OR REPLACE INTO bought VALUES (?, ?, ?, ?, ?)", (run, *_amounts(usage)))

    @staticmethod
    def _sum(db: sqlite3.Connection, table: Literal["bought", "under_way"]) -> Usage:
        sums = ", ".join(f"SUM({name})" for name in _AMOUNTS)
        row = db.execute(f"SELECT {sums} FROM {table}").fetchone()  # noqa: S608
        return Usage(**{name: value or 0 for name, value in zip(_AMOUNTS, row, strict=True)})

    def _connect(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
            db.execute("PRAGMA journal_mode=TRUNCATE")
            # A killed process still leaves a valid file; only a power cut may not, and that ends the batch too.
            db.execute("PRAGMA synchronous=OFF")
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: cannot be opened as the purse of a batch ({error})") from error
        return db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One exclusive transaction."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise cannot_write(self.path, "what the batch has spent", error) from error


def _remove(path: Path) -> None:
    for file in (path, path.with_name(path.name + "-journal")):
        file.unlink(missing_ok=True)


def _amounts(usage: Usage) -> tuple[float, ...]:
    return tuple(getattr(usage, name) for name in _AMOUNTS)


def _affordable(left: float, most: Usage) -> bool:
    """Whether the remaining money allows a request; without a known price, any remainder does."""
    if most.unpriced:
        return left > 0
    return most.cost_usd == 0 or most.cost_usd <= left + _ROUNDING_USD


def _spent(flag: str, cap: str, used: str) -> BudgetError:
    return BudgetError(
        f"{flag}: the batch's cap of {cap} is reached ({used} by all its runs, and the next request could pass it). "
        f"Everything paid for is kept: raise {flag} and run the same batch again to continue"
    )


@cache
def _machine() -> str:
    """Where a process id is unique: this boot of this machine, this container."""
    parts = [platform.node()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.is_file():
        parts += [boot.read_text(encoding="ascii").strip(), str(Path("/proc/self/ns/pid").readlink())]
    return "/".join(parts)


@cache
def _born(pid: int) -> float:
    """When a process started; with its id, this identifies it uniquely."""
    import psutil

    return float(psutil.Process(pid).create_time())


def _lives(pid: int, born: float) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - born) < 1.0 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
