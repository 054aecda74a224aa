"""Replies of language models: what one is, the cache that keeps every one of a run, and the cap on what they cost."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from optimsyn.data.records import Record
from optimsyn.errors import BudgetError, DataError
from optimsyn.models.outcomes import OutcomeLog
from optimsyn.redaction import kept

if TYPE_CHECKING:
    from optimsyn.models.purse import Purse
    from optimsyn.recipe import Limits

_log = logging.getLogger(__name__)

_SCHEMA = """
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
# Sums are asked for before every request of a run with caps; from the index they need not read the replies' texts.
_INDEX = "CREATE INDEX IF NOT EXISTS used ON replies (input_tokens, output_tokens, cost_usd)"
# How long a process waits for another one's write.
_BUSY_S = 60.0


class Reply(Record):
    """What a language model answered to one call.

    Attributes:
        text: The reply, as it came; nothing is repaired here.
        input_tokens: Tokens of the prompt, as the service counts them (0 when it does not say).
        output_tokens: Tokens of the reply, with those that were thought before it.
        reasoning_tokens: Those that were thought, among them, where the service says.
        cost_usd: Price in US dollars, 0 for local models; None where nobody says what the model costs.
        model: The model as the service names it.
        finish_reason: `stop`, `length` (cut at `max_tokens`), `content_filter` or `tool_calls`.
        seconds: Time from request to reply, without waiting for a free place.
        reasoning: What the model thought, where the service tells that apart and the text is empty.
        refusal: What the service says when it refuses.
        tool_call: Arguments of the tool that the model called in place of an answer.
    """

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = 0.0
    model: str = ""
    finish_reason: str = "stop"
    seconds: float = 0.0
    reasoning: str = ""
    refusal: str = ""
    tool_call: str = ""


class Usage(Record):
    """What a run has bought so far."""

    replies: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens


class ReplyCache:
    """Every reply of a run in one SQLite file, so that none is bought twice.

    Safe to use from several threads and processes. A reply is on the disk when `put` returns; the first reply to a
    request is the one that stays.

    Attributes:
        path: The file.
        outcomes: What came of the requests, in the same file.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens the file, and makes it and its folder when absent.

        Raises:
            DataError: The file is no reply cache or cannot be opened.
        """
        self.path = Path(path)
        self.outcomes = OutcomeLog(self.path)
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
            with self._lock:
                self._db.execute("PRAGMA journal_mode=WAL")
                # FULL: a commit survives a power cut too; the fsync is nothing beside the request it protects.
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute(_SCHEMA)
                self._db.execute(_INDEX)
        except sqlite3.Error as error:
            raise DataError(
                f"{self.path}: cannot be opened as a reply cache ({error}); move the file away to start a new one"
            ) from error

    def get(self, key: str) -> Reply | None:
        """The reply kept under `key`, or None.

        A row that cannot be read any more is told and set aside: its reply is then asked for again.

        Raises:
            DataError: The file cannot be read.
        """
        # As bytes: what is no text would otherwise fail in a way that tells nothing about the row.
        row = self._one("SELECT CAST(reply AS BLOB) FROM replies WHERE key = ?", (key,))
        if row is None:
            return None
        try:
            return Reply.model_validate_json(row[0])
        except ValidationError:
            _log.warning("%s: the reply with key %s is damaged; it is set aside and asked for again", self.path, key)
            self.set_aside([key])
            return None

    def put(self, key: str, reply: Reply, request: dict[str, Any]) -> None:
        """Keeps a reply; when another process kept one under the same key first, that one stays.

        Args:
            key: Key of the call.
            reply: The reply to keep.
            request: Prompt, model and parameters, for a person who wants to know; never secrets.

        Raises:
            DataError: The file cannot be written (a full disk, for example).
        """
        values = (
            key,
            kept(reply.model_dump_json()),
            kept(json.dumps(request, sort_keys=True, default=str)),
            kept(reply.model),
            reply.input_tokens,
            reply.output_tokens,
            reply.cost_usd or 0.0,
            time.time(),
        )
        try:
            with self._lock:
                self._db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: cannot keep a reply ({error})") from error

    def set_aside(self, keys: Sequence[str]) -> None:
        """Keeps replies from being found again; they stay on record with what they cost.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            with self._lock:
                self._db.executemany(
                    "UPDATE replies SET key = key || ' set aside ' || rowid WHERE key = ?", [(key,) for key in keys]
                )
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: cannot set replies aside ({error})") from error

    def totals(self) -> Usage:
        """What all kept replies used, by every process that shares the file."""
        row = self._one("SELECT COUNT(*), SUM(input_tokens), SUM(output_tokens), SUM(cost_usd) FROM replies", ())
        assert row is not None
        return Usage(replies=row[0], input_tokens=row[1] or 0, output_tokens=row[2] or 0, cost_usd=row[3] or 0.0)

    def close(self) -> None:
        """Closes the file; the object cannot be used afterwards."""
        self.outcomes.close()
        with self._lock:
            self._db.close()

    def _one(self, query: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        try:
            with self._lock:
                row: tuple[Any, ...] | None = self._db.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: cannot be read ({error})") from error
        return row


class Budget:
    """A cap on what a whole run buys, over all its models and processes; replies from the cache cost nothing.

    The caps on requests and tokens hold exactly: what requests under way may still use is counted as used. A price is
    only known afterwards, so spending can pass `cost_usd` by what was under way when it was reached.

    In a batch, the caps that all its runs share hold beside these: see `optimsyn.models.purse`.
    """

    def __init__(
        self,
        cache: ReplyCache,
        *,
        cost_usd: float | None = None,
        requests: int | None = None,
        tokens: int | None = None,
        purse: Purse | None = None,
    ) -> None:
        """A cap of None is no cap, a purse of None no batch."""
        self.cache = cache
        self.cost_usd = cost_usd
        self.requests = requests
        self.tokens = tokens
        self.purse = purse
        self._lock = threading.Lock()
        self._requests_under_way = 0
        self._tokens_under_way = 0

    @classmethod
    def of(cls, limits: Limits, cache: ReplyCache, *, purse: Purse | None = None) -> Budget:
        """The budget that a recipe's `limits` describe."""
        return cls(cache, cost_usd=limits.cost_usd, requests=limits.requests, tokens=limits.tokens, purse=purse)

    @contextmanager
    def reserved(self, tokens: int, cost_usd: float | None = None) -> Iterator[None]:
        """Sets room aside for one request while it is under way.

        Args:
            tokens: The most that prompt and reply may use.
            cost_usd: The most that they may cost: 0 for free models, None when that is not known before.

        Raises:
            BudgetError: The request could pass a cap; nothing has been sent.
        """
        with self._lock:
            self._check(tokens)
            self._requests_under_way += 1
            self._tokens_under_way += tokens
        try:
            with self._paid_by_the_batch(tokens, cost_usd):
                yield
        finally:
            with self._lock:
                self._requests_under_way -= 1
                self._tokens_under_way -= tokens

    def _paid_by_the_batch(self, tokens: int, cost_usd: float | None) -> AbstractContextManager[None]:
        if self.purse is None:
            return nullcontext()
        return self.purse.reserved(str(self.cache.path), tokens, cost_usd, self.cache.totals)

    def _check(self, tokens: int) -> None:
        if self.cost_usd is None and self.requests is None and self.tokens is None:
            return
        used = self.cache.totals()
        if self.cost_usd is not None and used.cost_usd >= self.cost_usd:
            raise _spent("limits.cost_usd", f"{self.cost_usd:g} US dollars", f"{used.cost_usd:.4g} are spent")
        if self.requests is not None and used.replies + self._requests_under_way + 1 > self.requests:
            raise _spent("limits.requests", f"{self.requests} requests", f"{used.replies} were answered")
        if self.tokens is not None and used.tokens + self._tokens_under_way + tokens > self.tokens:
            raise _spent("limits.tokens", f"{self.tokens} tokens", f"{used.tokens} are used")


def _spent(field: str, cap: str, used: str) -> BudgetError:
    return BudgetError(
        f"{field}: the cap of {cap} is reached ({used}, and the next request could pass it). Everything paid for is "
        f"kept: raise the cap in the recipe and run again to continue"
    )
