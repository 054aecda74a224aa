"""The SQLite file of a run's replies: its tables and running totals."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY,
    reply TEXT NOT NULL,
    request TEXT NOT NULL,
    model TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost_usd REAL NOT NULL,
    created REAL NOT NULL
)
"""
# The usage of all replies in one row, because a run with caps reads it before every request. Triggers keep it up to
# date; a reply and the totals are one transaction.
_TOTALS = """
CREATE TABLE totals (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    replies INTEGER NOT NULL, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cost_usd REAL NOT NULL
);
INSERT INTO totals SELECT 1, COUNT(*), TOTAL(input_tokens), TOTAL(output_tokens), TOTAL(cost_usd) FROM replies;
CREATE TRIGGER counted AFTER INSERT ON replies BEGIN
    UPDATE totals SET replies = replies + 1, input_tokens = input_tokens + new.input_tokens,
        output_tokens = output_tokens + new.output_tokens, cost_usd = cost_usd + new.cost_usd;
END;
CREATE TRIGGER uncounted AFTER DELETE ON replies BEGIN
    UPDATE totals SET replies = replies - 1, input_tokens = input_tokens - old.input_tokens,
        output_tokens = output_tokens - old.output_tokens, cost_usd = cost_usd - old.cost_usd;
END;
DROP INDEX IF EXISTS used;
"""
# How long a process waits for another one's write.
BUSY_S = 60.0
INSERT = "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
# The columns of `replies`.
Row = tuple[str, str, str, str, int, int, float, float]


def connect(path: Path) -> sqlite3.Connection:
    """A connection for any thread, which waits a minute for another process's write.

    Raises:
        sqlite3.Error: The file cannot be opened.
    """
    db = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
    # FULL: a commit survives a power cut too; the fsync is nothing beside the request it protects.
    db.execute("PRAGMA synchronous=FULL")
    return db


def prepare(db: sqlite3.Connection) -> None:
    """Creates missing tables and triggers, also in a file of an earlier version.

    Raises:
        sqlite3.Error: The file is no database, or cannot be written.
    """
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(SCHEMA)
    is_current = "SELECT 1 FROM sqlite_master WHERE name = 'uncounted'"
    if db.execute(is_current).fetchone() is not None:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have been first.
        if db.execute(is_current).fetchone() is None:
            for statement in _statements(_TOTALS):
                db.execute(statement)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; a trigger is one statement."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
