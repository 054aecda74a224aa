"""Gathers requests into batches, records on disk which were sent, and waits for them, even after a kill.

A file in the run's folder `batches/` lists the requests of each batch before it is sent, and the service's id as soon
as it is known. A continued run sends the same requests, finds them in such a file and waits for the same batch. After a
kill between sending and receiving the id, the service's list of batches is searched before anything is sent. The files
hold digests of requests and ids of batches, never a text or a key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from optimsyn.base.errors import DataError
from optimsyn.base.files import write_json
from optimsyn.llm.hosted.batch_apis import Answer, RefusedError, State, Target
from optimsyn.llm.hosted.failures import Failure, refused

_log = logging.getLogger(__name__)

# A batch is sent when no further request has arrived for this long.
IDLE_S = 2.0
# Seconds between polls of a batch: at first, and at most.
FIRST_LOOK_S = 5.0
LAST_LOOK_S = 60.0


@dataclass
class Record:
    """One batch on disk.

    Attributes:
        name: Our name of it and of its file.
        sent: When it was sent, in seconds since 1970.
        batch: The service's id; None while it is unknown whether the service has it.
    """

    name: str
    url: str
    sent: float
    requests: dict[str, str]
    batch: str | None = None
    collected: bool = False


@dataclass
class Line:
    """One request that waits for its answer."""

    id: str
    key: str
    body: dict[str, Any]
    answer: asyncio.Future[Answer] = field(repr=False)


class BatchError(Exception):
    """A batch cannot be sent or waited for; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.what)
        self.failure = failure


class Batches:
    """The batches of one run and one model. Used on one event loop."""

    def __init__(self, folder: Path, *, hours: float = 25.0, report: Callable[[int, int], None] | None = None) -> None:
        self.folder = folder
        self.hours = hours
        self._report = report
        self._records: list[Record] | None = None
        self._gathered: dict[Target, list[Line]] = {}
        self._bytes: dict[Target, int] = {}
        self._timers: dict[Target, asyncio.TimerHandle] = {}
        self._waiting: dict[str, dict[str, Line]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._states: dict[str, tuple[int, int]] = {}
        self._sending = asyncio.Lock()

    async def ask(self, target: Target, request: str, key: str, body: dict[str, Any]) -> Answer:
        """Has one request answered by a batch: the one it was already sent in, else the next.

        Raises:
            BatchError: The batch cannot be sent or waited for.
            httpx.TransportError: The service does not answer.
        """
        line = Line(request, key, body, asyncio.get_running_loop().create_future())
        record = self._record_of(request)
        if record is not None and record.batch is not None:
            self._wait_for(record, target, [line])
        else:
            self._gather(target, line)
        return await line.answer

    def has(self, request: str) -> bool:
        """Whether a request is in a batch that this or an earlier process sent."""
        return self._record_of(request) is not None

    def forget(self, keys: Iterable[str]) -> None:
        """Forgets unusable replies, so that their calls are sent again."""
        unusable = set(keys)
        for record in self._load_records():
            usable = {request: key for request, key in record.requests.items() if key not in unusable}
            if record.collected and len(usable) < len(record.requests):
                record.requests = usable
                self._save(record)

    def _load_records(self) -> list[Record]:
        if self._records is None:
            self._records = []
            for path in sorted(self.folder.glob("*.json")):
                try:
                    self._records.append(Record(**json.loads(path.read_text(encoding="utf-8"))))
                except (ValueError, TypeError) as error:
                    raise DataError(
                        f"{path}: is not a record of a batch ({error}); remove it, and what it asked for is sent again"
                    ) from error
        return self._records

    def _record_of(self, request: str) -> Record | None:
        return next((record for record in self._load_records() if request in record.requests), None)

    def _save(self, record: Record) -> None:
        write_json(self.folder / f"{record.name}.json", asdict(record))

    def _drop(self, record: Record) -> None:
        self._load_records().remove(record)
        (self.folder / f"{record.name}.json").unlink(missing_ok=True)

    def _gather(self, target: Target, line: Line) -> None:
        size = len(json.dumps(line.body)) + 200
        service = target.service
        lines = self._gathered.setdefault(target, [])
        if len(lines) >= service.most_lines or self._bytes.get(target, 0) + size > service.most_bytes:
            self._send_gathered(target)
            lines = self._gathered.setdefault(target, [])
        lines.append(line)
        self._bytes[target] = self._bytes.get(target, 0) + size
        if (timer := self._timers.pop(target, None)) is not None:
            timer.cancel()
        self._timers[target] = asyncio.get_running_loop().call_later(IDLE_S, self._send_gathered, target)

    def _send_gathered(self, target: Target) -> None:
        if (timer := self._timers.pop(target, None)) is not None:
            timer.cancel()
        self._bytes.pop(target, None)
        lines = self._gathered.pop(target, [])
        if lines:
            name = uuid.uuid4().hex
            self._tasks[name] = asyncio.ensure_future(self._send(target, lines))
            self._tasks[name].add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _send(self, target: Target, lines: list[Line]) -> None:
        try:
            async with self._sending:
                await self._settle(target)
                new = []
                for line in lines:
                    record = self._record_of(line.id)
                    if record is not None:
                        self._wait_for(record, target, [line])
                    else:
                        new.append(line)
                if not new:
                    return
                record = await self._submit(target, new)
            self._wait_for(record, target, new)
        except BaseException as error:
            _fail(lines, error)
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _settle(self, target: Target) -> None:
        """Finds out whether the service has batches that were sent without receiving an id."""
        for record in [record for record in self._load_records() if record.batch is None and record.url == target.url]:
            others = [other.batch for other in self._load_records() if other.batch is not None]
            try:
                record.batch = await target.service.find(record.name, len(record.requests), record.sent, others)
            except RefusedError as refusal:
                raise BatchError(self._refused(target, refusal)) from None
            if record.batch is None:
                self._drop(record)
            else:
                self._save(record)

    async def _submit(self, target: Target, lines: list[Line]) -> Record:
        record = Record(uuid.uuid4().hex, target.url, time.time(), {line.id: line.key for line in lines})
        self._load_records().append(record)
        self._save(record)
        try:
            record.batch = await target.service.submit(record.name, {line.id: line.body for line in lines})
        except RefusedError as refusal:
            # A server error may follow the creation of the batch; the next batch searches for this one first.
            if refusal.status < 500 and refusal.status != 408:
                self._drop(record)
            raise BatchError(self._refused(target, refusal)) from None
        self._save(record)
        _log.info("%d requests were sent as batch %s", len(lines), record.batch)
        return record

    def _wait_for(self, record: Record, target: Target, lines: Iterable[Line]) -> None:
        waiting = self._waiting.setdefault(record.name, {})
        waiting.update({line.id: line for line in lines})
        if record.name not in self._tasks:
            self._tasks[record.name] = asyncio.ensure_future(self._answer(record, target))

    async def _answer(self, record: Record, target: Target) -> None:
        """Waits for a batch and distributes its answers; requests may join meanwhile."""
        try:
            state = await self._ended(record, target)
            if state.too_much and await self._split(record, target):
                return
            answers = await self._results(record, target, state)
        except BaseException as error:
            _fail(self._take_waiting(record).values(), error)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        if state.failure:
            self._drop(record)
        elif not record.collected:
            # Failed requests are removed, so that a continued run sends them again.
            answered = {key for key, answer in answers.items() if answer.status == 200}
            record.requests = {request: key for request, key in record.requests.items() if request in answered}
            record.collected = True
            self._save(record)
        for line in self._take_waiting(record).values():
            if not line.answer.done():
                line.answer.set_result(answers.get(line.id, Answer()))

    def _take_waiting(self, record: Record) -> dict[str, Line]:
        """Removes and returns the waiting lines; later requests poll the batch again."""
        self._tasks.pop(record.name, None)
        self._states.pop(record.name, None)
        return self._waiting.pop(record.name, {})

    async def _ended(self, record: Record, target: Target) -> State:
        assert record.batch is not None
        pause = FIRST_LOOK_S
        while True:
            try:
                state = await target.service.look(record.batch)
            except RefusedError as refusal:
                if refusal.status < 500 and refusal.status not in (408, 429):
                    raise BatchError(self._lost(record, target, refusal)) from None
                _log.info("batch %s: %s; it is polled again", record.batch, refusal)
            except httpx.TransportError as error:
                _log.info("batch %s: %s; it is polled again", record.batch, type(error).__name__)
            else:
                self._report_progress(record, state)
                if state.ended:
                    return state
            if not record.collected and time.time() > record.sent + 3600 * self.hours:
                raise BatchError(
                    Failure(
                        f"batch {record.batch} has not ended within {self.hours:g} hours",
                        "raise the model's batch_hours; run again to go on waiting for the same batch",
                        retry=False,
                    )
                )
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, LAST_LOOK_S)

    async def _results(self, record: Record, target: Target, state: State) -> dict[str, Answer]:
        if state.failure:
            return dict.fromkeys(record.requests, Answer(400, state.failure))
        assert record.batch is not None
        try:
            return await target.service.results(record.batch, state)
        except RefusedError as refusal:
            if record.collected and refusal.status == 404:
                return {}  # services delete results after some weeks
            raise BatchError(self._refused(target, refusal)) from None

    async def _split(self, record: Record, target: Target) -> bool:
        """Splits a batch that is too large for the service into two, one after the other; False if it cannot."""
        lines = list(self._waiting.get(record.name, {}).values())
        if len(lines) < 2:
            return False
        self._take_waiting(record)
        self._drop(record)
        middle = len(lines) // 2
        _log.warning("%d requests are more than the service takes at once; they are sent in two batches", len(lines))
        for half in (lines[:middle], lines[middle:]):
            try:
                async with self._sending:
                    sent = await self._submit(target, half)
            except BaseException as error:
                _fail(lines, error)
                raise
            self._wait_for(sent, target, half)
            await asyncio.wait([line.answer for line in half])
        return True

    def _report_progress(self, record: Record, state: State) -> None:
        self._states[record.name] = (state.done, state.total or len(record.requests))
        if self._report is not None:
            done, total = (sum(numbers) for numbers in zip(*self._states.values(), strict=True))
            self._report(done, total)

    def _lost(self, record: Record, target: Target, refusal: RefusedError) -> Failure:
        if refusal.status != 404:
            return self._refused(target, refusal)
        return Failure(
            f"the service does not know batch {record.batch} (HTTP 404)",
            "use the account that it was sent from; or remove the folder "
            f"{self.folder.name} of the run, and its requests are sent again",
            retry=False,
        )

    @staticmethod
    def _refused(target: Target, refusal: RefusedError) -> Failure:
        if refusal.status in (404, 405, 501):
            return Failure(
                f"it has no batch API ({refusal})", "remove `batch: true`, which few servers support", retry=False
            )
        keys = [
            value.removeprefix("Bearer ") for name, value in target.headers if name in ("authorization", "x-api-key")
        ]
        return refused(refusal.status, refusal.body, {}, keys[0] if keys else None)


def _fail(lines: Iterable[Line], error: BaseException) -> None:
    for line in lines:
        if not line.answer.done():
            line.answer.set_exception(error if isinstance(error, Exception) else BatchError(_STOPPED))


_STOPPED = Failure("the run was stopped while it waited for a batch", "run again to go on waiting", retry=False)
