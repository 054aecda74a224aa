"""The index of a ledger: finds a judgement without reading the whole file.

The ledger is the source of truth, a file of JSON lines. The index beside it is an SQLite file (`rewards.index`) with
the position of every row by key and by content. It can be deleted at any time, and is rebuilt from the ledger in one
pass and in flat memory, also for a ledger of an older version. It stores a checksum of what it has read, so that an
edited ledger is read again from the start.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from optimsyn.base.disk import cannot_write
from optimsyn.base.errors import DataError

_VERSION = 1
_BUSY_S = 60.0
_SCHEMA = """
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, rows INTEGER NOT NULL DEFAULT 0);
CREATE TABLE judged (
    key TEXT PRIMARY KEY, identity INTEGER NOT NULL, place INTEGER NOT NULL, length INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE contents (
    content TEXT NOT NULL, scorer INTEGER NOT NULL, place INTEGER NOT NULL, length INTEGER NOT NULL,
    PRIMARY KEY (content, scorer)
) WITHOUT ROWID;
CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER, lines INTEGER, crc INTEGER, mtime INTEGER,
    contents_to INTEGER);
INSERT INTO state VALUES (1, 0, 0, 0, 0, 0);
"""
# How our lines begin and end. Quotation marks inside texts are escaped, so these cannot occur in one.
_KEY = b'{"key": "'
_IDENTITY = b'"identity": "'
_END = re.compile(rb', "batch_row": (\d+), "batch_rows": (\d+)\}\n\Z')
_PIECE = 1 << 20
_ROWS = 1000


class Row(NamedTuple):
    """One line of a ledger.

    Attributes:
        place: Offset of its first byte.
        length: Its bytes, with the line's end.
        number: Its index in the batch, from 0.
        of: The size of the batch.
    """

    place: int
    length: int
    key: str
    identity: str
    number: int
    of: int


@dataclass
class State:
    """How far a ledger was read: bytes of complete batches, their lines and checksum, and the file's mtime."""

    size: int
    lines: int
    crc: int
    mtime: int
    contents_to: int


class LedgerIndex:
    """The index of one ledger. Not thread-safe; its owner holds a lock.

    Args:
        ledger: `rewards.jsonl`.
        check: Raises ValueError for a line's JSON value that is no judgement.
        content: Returns scorer and content key of a row whose score can be reused for equal content, else None.

    Attributes:
        torn: The ledger ends with an incomplete batch of a killed writer.

    Raises:
        DataError: A line of the ledger is no judgement, or the index cannot be written.
    """

    def __init__(
        self,
        ledger: Path,
        check: Callable[[dict[str, Any]], object],
        content: Callable[[dict[str, Any]], tuple[str, str] | None],
    ) -> None:
        self.ledger = ledger
        self.path = ledger.with_suffix(".index")
        self.torn = False
        self._check = check
        self._content = content
        try:
            self._db = self._open()
            self._names: dict[str, int] = {
                name: number for number, name in self._db.execute("SELECT id, name FROM names")
            }
            self.state = State(*self._db.execute("SELECT size, lines, crc, mtime, contents_to FROM state").fetchone())
            self.catch_up()
        except sqlite3.Error as error:
            raise cannot_write(self.path, "the index of judgements", error) from error

    def place_of(self, key: str, identity: str) -> tuple[int, int] | None:
        """Place and length of the judgement with a key."""
        place: tuple[int, int] | None = self._db.execute(
            "SELECT place, length FROM judged WHERE key = ? AND identity = ?", (key, self._names.get(identity, -1))
        ).fetchone()
        return place

    def place_of_content(self, content: str, scorer: str) -> tuple[int, int] | None:
        """Place and length of the last valid judgement of equal content by the same scorer."""
        self._read_contents()
        place: tuple[int, int] | None = self._db.execute(
            "SELECT place, length FROM contents WHERE content = ? AND scorer = ?",
            (content, self._names.get(scorer, -1)),
        ).fetchone()
        return place

    def count(self, identity: str | None = None) -> int:
        """The number of rows, of all or of one identity."""
        if identity is None:
            return int(self._db.execute("SELECT TOTAL(rows) FROM names").fetchone()[0])
        row = self._db.execute("SELECT rows FROM names WHERE name = ?", (identity,)).fetchone()
        return 0 if row is None else int(row[0])

    def places(self, identity: str) -> Iterator[tuple[int, int]]:
        """Places and lengths of the judgements of an identity, the last one first."""
        yield from self._db.execute(
            "SELECT place, length FROM judged WHERE identity = ? ORDER BY place DESC", (self._names.get(identity, -1),)
        )

    def catch_up(self) -> None:
        """Indexes new rows of the ledger.

        Raises:
            DataError: A line is no judgement.
            sqlite3.Error: The index cannot be written.
        """
        status = self.ledger.stat() if self.ledger.is_file() else None
        size, mtime = (0, 0) if status is None else (status.st_size, status.st_mtime_ns)
        if (size, mtime) == (self.state.size, self.state.mtime):
            self.torn = False
            return
        if size < self.state.size or _crc(self.ledger, self.state.size) != self.state.crc:
            self._forget()
        with self._transaction():
            for batch in self._batches():
                self._add(batch)
            self.state.crc = _crc(self.ledger, self.state.size) if size else 0
            self.torn = self.state.size < size
            # Look at a torn end again next time.
            self.state.mtime = 0 if self.torn else mtime

    def added(self, rows: list[Row], written: bytes, contents: list[tuple[str, str] | None]) -> None:
        """Indexes rows that were just appended as one batch.

        Args:
            rows: With their places.
            written: The bytes of all of them.
            contents: Scorer and content of each row whose score can be reused, else None.

        Raises:
            sqlite3.Error: The index cannot be written.
        """
        contents_read = self.state.contents_to == self.state.size
        with self._transaction():
            self._add(rows)
            self.state.crc = zlib.crc32(written, self.state.crc)
            self.state.mtime = self.ledger.stat().st_mtime_ns
            if contents_read:
                self._add_contents(zip(rows, contents, strict=True))
                self.state.contents_to = self.state.size

    def _open(self) -> sqlite3.Connection:
        try:
            db = self._connect()
            if db.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
                return db
            db.close()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            pass  # damaged; rebuild it
        for file in (self.path, *(self.path.with_name(self.path.name + end) for end in ("-wal", "-shm"))):
            file.unlink(missing_ok=True)
        db = self._connect()
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        return db

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        # After a power cut, lost entries are read again from the ledger.
        db.execute("PRAGMA synchronous=NORMAL")
        return db

    def _transaction(self) -> _Transaction:
        return _Transaction(self)

    def _forget(self) -> None:
        with self._transaction():
            for table in ("judged", "contents", "names"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 (our own three names)
            self._names.clear()
            self.state = State(0, 0, 0, 0, 0)

    def _number(self, name: str) -> int:
        if name not in self._names:
            number = self._db.execute("INSERT INTO names (name) VALUES (?)", (name,)).lastrowid
            assert number is not None
            self._names[name] = number
        return self._names[name]

    def _add(self, rows: list[Row]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO judged VALUES (?, ?, ?, ?)",
            [(row.key, self._number(row.identity), row.place, row.length) for row in rows],
        )
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.identity] = counts.get(row.identity, 0) + 1
        self._db.executemany(
            "UPDATE names SET rows = rows + ? WHERE name = ?", [(count, name) for name, count in counts.items()]
        )
        self.state.size = rows[-1].place + rows[-1].length
        self.state.lines += len(rows)

    def _batches(self) -> Iterator[list[Row]]:
        """The unread rows of complete batches, about a thousand at once.

        Only the last batch can be torn, since it is cut off before the next append; a batch is still valid when a
        person removes some of its rows by hand.
        """
        complete: list[Row] = []
        batch: list[Row] = []
        for row in self._rows():
            if row.number == 0:
                complete += batch
                batch = []
            batch.append(row)
            if row.number + 1 == row.of:
                complete += batch
                batch = []
            if len(complete) >= _ROWS:
                yield complete
                complete = []
        if complete:
            yield complete

    def _rows(self) -> Iterator[Row]:
        place, number = self.state.size, self.state.lines
        if not self.ledger.is_file():
            return
        with self.ledger.open("rb") as file:
            file.seek(place)
            for line in file:
                number += 1
                if not line.endswith(b"\n"):
                    return
                yield _own_line(place, line) or self._other_line(place, line, number)
                place += len(line)

    def _other_line(self, place: int, line: bytes, number: int) -> Row:
        """Parses a line that is not exactly as we write them."""
        try:
            raw = json.loads(line)
            self._check(raw)
        except ValueError as error:
            raise DataError(
                f"{self.ledger}:{number}: not a judgement ({type(error).__name__}); remove the line, "
                "its pair is then judged again"
            ) from error
        return Row(place, len(line), raw["key"], raw.get("identity", ""), raw["batch_row"], raw["batch_rows"])

    def _read_contents(self) -> None:
        """Indexes the contents of rows that an older version or a killed run wrote."""
        if self.state.contents_to >= self.state.size:
            return
        with self._transaction(), self.ledger.open("rb") as file:
            file.seek(self.state.contents_to)
            rows: list[tuple[Row, tuple[str, str] | None]] = []
            while self.state.contents_to < self.state.size:
                line = file.readline()
                if not line:
                    break
                row = Row(self.state.contents_to, len(line), "", "", 0, 1)
                # A damaged row is reported when it is looked up.
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    rows.append((row, self._content(json.loads(line))))
                self.state.contents_to += len(line)
                if len(rows) >= _ROWS or self.state.contents_to >= self.state.size:
                    self._add_contents(rows)
                    rows = []

    def _add_contents(self, rows: Any) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)",
            [
                (content[1], self._number(content[0]), row.place, row.length)
                for row, content in rows
                if content is not None
            ],
        )


class _Transaction:
    """One transaction of an index; a failure also restores the index's state."""

    def __init__(self, index: LedgerIndex) -> None:
        self._index = index

    def __enter__(self) -> None:
        index = self._index
        self._before = (State(**vars(index.state)), dict(index._names))
        index._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        index = self._index
        try:
            if kind is None:
                now = index.state
                index._db.execute(
                    "UPDATE state SET size = ?, lines = ?, crc = ?, mtime = ?, contents_to = ?",
                    (now.size, now.lines, now.crc, now.mtime, now.contents_to),
                )
                index._db.execute("COMMIT")
        finally:
            if index._db.in_transaction:
                index._db.execute("ROLLBACK")
                index.state, index._names = self._before


def _own_line(place: int, line: bytes) -> Row | None:
    """Reads a line as we write them by its first and last fields alone; None for any other."""
    end = _END.search(line, max(0, len(line) - 80))
    at = line.rfind(_IDENTITY)
    if end is None or at < 0 or not line.startswith(_KEY):
        return None
    key = line[len(_KEY) : line.index(b'"', len(_KEY))]
    start = at + len(_IDENTITY)
    identity = line[start : line.index(b'"', start)]
    if b"\\" in key or b"\\" in identity or not key:
        return None
    return Row(place, len(line), key.decode(), identity.decode(), int(end[1]), int(end[2]))


def _crc(path: Path, size: int) -> int:
    """Checksum of the first bytes of a file."""
    checksum = 0
    if size:
        with path.open("rb") as file:
            while size > 0 and (piece := file.read(min(_PIECE, size))):
                checksum = zlib.crc32(piece, checksum)
                size -= len(piece)
    return checksum
