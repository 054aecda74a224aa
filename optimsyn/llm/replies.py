"""The cache of a run's replies, and the budget that caps their cost."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from optimsyn.base.counting import plural
from optimsyn.base.disk import cannot_write, is_disk_trouble
from optimsyn.base.errors import BudgetError, DataError
from optimsyn.base.secrets.redaction import kept
from optimsyn.llm.disk_reserve import Reserve
from optimsyn.llm.outcome_log import DAMAGED, OutcomeLog
from optimsyn.llm.reply import Reply, Usage
from optimsyn.llm.reply_file import INSERT, Row, connect, prepare

if TYPE_CHECKING:
    from optimsyn.llm.shared_budget import Purse
    from optimsyn.recipe.sections.limits import Limits

__all__ = ["Budget", "Reply", "ReplyCache", "Usage"]

_log = logging.getLogger(__name__)

# How long writing a reply is retried when neither file takes it.
PATIENCE_S = 20.0

_STOPPED = "Nothing more is bought; replies to requests under way are still kept while there is space."


class ReplyCache:
    """Every reply of a run in one SQLite file, so that none is bought twice.

    Safe across threads and processes. A reply is on disk when `put` returns; the first reply to a request stays. Once a
    reply could not be written, nothing more is bought (`ready` raises), in any process that shares the file; replies
    that still arrive go into a reserve beside the file (see `optimsyn.llm.disk_reserve`) and are read back when the
    cache is opened again.

    Attributes:
        path: The file.
        outcomes: Outcomes of the requests, in the same file.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens the file; creates it and its folder if absent.

        Raises:
            DataError: The file is no reply cache or cannot be opened.
        """
        self.path = Path(path)
        self.outcomes = OutcomeLog(self.path)
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._trouble: DataError | None = None
        self._halted: DataError | None = None
        self._patient_until = 0.0
        self._aside: dict[str, Reply] = {}
        on_disk = str(path) != ":memory:"
        self._reserve = Reserve(self.path.with_name(self.path.stem + ".reserve")) if on_disk else None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.db = connect(self.path)
            prepare(self.db)
            # A reader of its own, so that reads never wait for a write.
            self._reader = connect(self.path) if on_disk else self.db
        except sqlite3.Error as error:
            if is_disk_trouble(error) or "unable to open" in str(error) or "locked" in str(error):
                raise cannot_write(self.path, "replies", error) from error
            raise DataError(
                f"{self.path}: cannot be opened as a reply cache ({error}); move the file away to start a new one"
            ) from error
        self._bring_back()
        if self._reserve is not None:
            weakref.finalize(self, self._reserve.release)

    def get(self, key: str) -> Reply | None:
        """The cached reply, or None.

        A damaged row is counted, reported and set aside, so that its reply is bought again.

        Raises:
            DataError: The file cannot be read.
        """
        # As bytes, so that invalid text does not fail before the key can be reported.
        row = self._fetch_row("SELECT CAST(reply AS BLOB) FROM replies WHERE key = ?", (key,))
        if row is None:
            return self._aside.get(key)
        try:
            return Reply.model_validate_json(row[0])
        except ValidationError:
            _log.warning("%s: the reply with key %s is damaged; it is set aside and asked for again", self.path, key)
            self.set_aside([key])
            self.outcomes.count(key, DAMAGED)
            return None

    def ready(self) -> None:
        """Makes sure that the next reply can be written; called before every request.

        Raises:
            DataError: An earlier reply could not be written, here or by another process, or the disk is full.
        """
        if (stopped := self._trouble or self._halted) is not None:
            raise stopped
        if self._reserve is None:
            return
        self._reserve.ours = True
        if self._reserve.waits():
            return
        try:
            self._reserve.prepare()
        except OSError as error:
            raise self._stop(cannot_write(self._reserve.path, "the space set aside for replies", error)) from error
        if not self._reserve.waits():
            raise self._stop(
                cannot_write(
                    self.path,
                    "replies",
                    OSError(None, "an earlier one could not be written and lies in " + self._reserve.path.name),
                )
            )

    def put(self, key: str, reply: Reply, request: dict[str, Any]) -> None:
        """Writes a reply, unless another process has written one under the same key.

        Args:
            key: Key of the call.
            reply: The reply.
            request: Prompt, model and parameters, for inspection; never secrets.

        Raises:
            DataError: The file cannot be written (a full disk, for example). The message says whether the reply is
                lost.
        """
        values: Row = (
            key,
            kept(reply.model_dump_json()),
            kept(json.dumps(request, sort_keys=True, default=str)),
            kept(reply.model),
            reply.input_tokens,
            reply.output_tokens,
            reply.cost_usd or 0.0,
            time.time(),
        )
        if self._trouble is not None and self._put_aside(values):
            # The file has failed before, and a retry may wait for a minute.
            self._aside[key] = reply
            raise self._trouble
        try:
            self._insert(values)
        except sqlite3.Error as error:
            failure = self._stop(cannot_write(self.path, "a reply that was bought", error, more=_STOPPED))
            if self._put_aside(values) or self._retry_insert(values):
                self._aside[key] = reply
                raise failure from error
            self._trouble = cannot_write(
                self.path,
                "a reply that was bought",
                error,
                more=f"{_STOPPED} There was no space for it anywhere: it is lost.",
            )
            raise self._trouble from error
        if self._trouble is not None:
            raise self._trouble

    def halt(self, why: str | None) -> None:
        """Stops buying for a reason, until it is called with None; replies under way are kept."""
        self._halted = None if why is None else DataError(f"{self.path}: nothing more is bought, because {why}")

    def mended(self) -> None:
        """Resumes after an error or a halt: reads back the reserve and allows buying."""
        self._trouble = self._halted = None
        self._bring_back()

    def release(self) -> None:
        """Frees the reserve, except for replies in it."""
        if self._reserve is not None:
            self._reserve.release()

    def set_aside(self, keys: Sequence[str]) -> None:
        """Keeps replies from being used again; they stay in the file with their cost.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            with self._lock:
                self.db.executemany(
                    "UPDATE replies SET key = key || ' set aside ' || rowid WHERE key = ?", [(key,) for key in keys]
                )
        except sqlite3.Error as error:
            raise cannot_write(self.path, "which replies are set aside", error) from error

    def totals(self) -> Usage:
        """Usage of all replies, by every process that shares the file."""
        row = self._fetch_row("SELECT replies, input_tokens, output_tokens, cost_usd FROM totals", ())
        assert row is not None
        aside = list(self._aside.values())
        return Usage(
            replies=row[0] + len(aside),
            input_tokens=row[1] + sum(reply.input_tokens for reply in aside),
            output_tokens=row[2] + sum(reply.output_tokens for reply in aside),
            cost_usd=max(0.0, row[3] + sum(reply.cost_usd or 0.0 for reply in aside)),
        )

    def close(self) -> None:
        """Closes the file; the object cannot be used afterwards."""
        self.outcomes.close()
        with self._lock, self._reading:
            self._reader.close()
            self.db.close()

    def _insert(self, values: Row) -> None:
        with self._lock:
            self.db.execute(INSERT, values)

    def _stop(self, trouble: DataError) -> DataError:
        """Stops buying; the first reason is the one reported."""
        if self._trouble is None:
            self._trouble = trouble
            self._patient_until = time.monotonic() + PATIENCE_S
        return self._trouble

    def _put_aside(self, values: Row) -> bool:
        return self._reserve is not None and self._reserve.keep(json.dumps(values).encode())

    def _retry_insert(self, values: Row) -> bool:
        """Retries for a while: somebody may be freeing space just now."""
        while time.monotonic() < self._patient_until:
            time.sleep(min(1.0, PATIENCE_S / 4))
            try:
                self._insert(values)
            except sqlite3.Error:
                continue
            return True
        return False

    def _bring_back(self) -> None:
        """Moves replies from the reserve into the file; if that fails, they are served from memory."""
        if self._reserve is None or not self._reserve.path.is_file() or self._reserve.waits():
            return
        rows: list[Row] = []
        try:
            with self._reserve.taken() as lines, self._lock:
                rows = [tuple(json.loads(line)) for line in lines]
                self.db.execute("BEGIN IMMEDIATE")
                try:
                    self.db.executemany(INSERT, rows)
                    self.db.execute("COMMIT")
                except BaseException:
                    if self.db.in_transaction:
                        self.db.execute("ROLLBACK")
                    raise
        except (sqlite3.Error, OSError) as error:
            self._aside = {row[0]: Reply.model_validate_json(row[1]) for row in rows}
            self._stop(cannot_write(self.path, f"{len(rows)} replies that wait in {self._reserve.path.name}", error))
        else:
            self._aside = {}

    def _fetch_row(self, query: str, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        try:
            with self._reading:
                row: tuple[Any, ...] | None = self._reader.execute(query, values).fetchone()
        except sqlite3.Error as error:
            raise DataError(
                f"{self.path}: cannot be read ({error}); put a copy of it back, or move it away, and what it held is "
                "bought again"
            ) from error
        return row


class Budget:
    """A cap on what a run buys, over all its models and processes; cached replies cost nothing.

    The caps on requests and tokens are exact: what requests under way may still use counts as used. Prices are only
    known afterwards, so spending can exceed `cost_usd` by the requests under way when it is reached.

    In a batch, the shared caps hold as well: see `optimsyn.llm.shared_budget`.
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
        """A cap of None is no cap; a purse of None means no batch."""
        self.cache = cache
        self.cost_usd = cost_usd
        self.requests = requests
        self.tokens = tokens
        self.purse = purse
        self._lock = threading.Lock()
        self._under_way: list[Usage] = []

    @classmethod
    def of(cls, limits: Limits, cache: ReplyCache, *, purse: Purse | None = None) -> Budget:
        """The budget that a recipe's `limits` describe."""
        return cls(cache, cost_usd=limits.cost_usd, requests=limits.requests, tokens=limits.tokens, purse=purse)

    @contextmanager
    def reserved(self, most: Usage) -> Iterator[None]:
        """Reserves budget for one request while it is under way.

        Args:
            most: The most it may use and cost; `unpriced` where its price is unknown.

        Raises:
            BudgetError: The request could pass a cap; nothing has been sent.
        """
        with self._lock:
            self._check(most)
            self._under_way.append(most)
        try:
            with self._reserved_in_batch(most):
                yield
        finally:
            with self._lock:
                self._under_way.remove(most)

    def _reserved_in_batch(self, most: Usage) -> AbstractContextManager[None]:
        if self.purse is None:
            return nullcontext()
        return self.purse.reserved(str(self.cache.path), most, self.cache.totals)

    def _check(self, most: Usage) -> None:
        if self.cost_usd is None and self.requests is None and self.tokens is None:
            return
        used = self.cache.totals()
        worst = sum(self._under_way, used) + most
        if self.cost_usd is not None and used.cost_usd >= self.cost_usd:
            raise _spent("limits.cost_usd", f"{self.cost_usd:g} US dollars", f"{used.cost_usd:.4g} are spent")
        if self.requests is not None and worst.replies > self.requests:
            raise _spent("limits.requests", plural(self.requests, "request"), f"{used.replies} were answered")
        if self.tokens is not None and worst.tokens > self.tokens:
            raise _spent("limits.tokens", plural(self.tokens, "token"), f"{used.tokens} are used")


def _spent(field: str, cap: str, used: str) -> BudgetError:
    return BudgetError(
        f"{field}: the cap of {cap} is reached ({used}, and the next request could pass it). Everything paid for is "
        f"kept: raise the cap in the recipe and run again to continue"
    )
