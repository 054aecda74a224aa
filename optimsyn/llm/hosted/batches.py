"""Gathers requests into batches, keeps on disk which were sent, and waits for them, also after a kill.

A file in the run's folder `batches/` names the requests of each batch before it is sent, and the service's id as soon
as it is known. A run that continues asks for the same requests, finds them in such a file and waits for the same batch.
Where a kill came between sending and hearing the id, the service's list of batches is searched before anything is sent.
The files hold digests of requests and ids of batches, never a text or a key.
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

# A batch is sent when no further request has come for so long.
IDLE_S = 2.0
# Seconds between two looks at a batch: at first, and at most.
FIRST_LOOK_S = 5.0
LAST_LOOK_S = 60.0


@dataclass
class Record:
    """One batch on disk.

    Attributes:
        name: Our name of it, and of its file.
        url: Address that its requests are for.
        sent: When it was sent, in seconds since 1970.
        requests: Id of each request and key of the call behind it.
        batch: The service's id; None while it is not known whether the service has it.
        collected: Its results have been read.
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
    """A batch cannot be waited for or sent; why is said by `failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.what)
        self.failure = failure


class Batches:
    """The batches of one run and one model. Used on one event loop.

    Args:
        folder: Where the files about them are kept.
        hours: How long to wait for one.
        report: Told how many requests of the batches under way are answered, and how many there are.
    """

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
        """Has one request answered by a batch: one that it was sent in before, else the next one.

        Args:
            target: Where it would go alone.
            request: Its id, the same in every process.
            key: Key of the call behind it.
            body: Its body.

        Raises:
            BatchError: The batch cannot be sent or waited for.
            httpx.TransportError: Nobody answers at the service.
        """
        line = Line(request, key, body, asyncio.get_running_loop().create_future())
        record = self._record_of(request)
        if record is not None and record.batch is not None:
            self._wait_for(record, target, [line])
        else:
            self._gather(target, line)
        return await line.answer

    def has(self, request: str) -> bool:
        """Whether a request is in a batch that was sent, in this process or before."""
        return self._record_of(request) is not None

    def forget(self, keys: Iterable[str]) -> None:
        """Lets calls be sent again whose replies are of no use."""
        gone = set(keys)
        for record in self._known():
            left = {request: key for request, key in record.requests.items() if key not in gone}
            if record.collected and len(left) < len(record.requests):
                record.requests = left
                self._keep(record)

    def _known(self) -> list[Record]:
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
        return next((record for record in self._known() if request in record.requests), None)

    def _keep(self, record: Record) -> None:
        write_json(self.folder / f"{record.name}.json", asdict(record))

    def _drop(self, record: Record) -> None:
        self._known().remove(record)
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
        """Finds out whether batches that were sent without an answer have arrived."""
        for record in [record for record in self._known() if record.batch is None and record.url == target.url]:
            known = [other.batch for other in self._known() if other.batch is not None]
            try:
                record.batch = await target.service.find(record.name, len(record.requests), record.sent, known)
            except RefusedError as refusal:
                raise BatchError(self._refused(target, refusal)) from None
            if record.batch is None:
                self._drop(record)
            else:
                self._keep(record)

    async def _submit(self, target: Target, lines: list[Line]) -> Record:
        record = Record(uuid.uuid4().hex, target.url, time.time(), {line.id: line.key for line in lines})
        self._known().append(record)
        self._keep(record)
        try:
            record.batch = await target.service.submit(record.name, {line.id: line.body for line in lines})
        except RefusedError as refusal:
            # A server error may come after the batch was made; the next batch looks for this one first.
            if refusal.status < 500 and refusal.status != 408:
                self._drop(record)
            raise BatchError(self._refused(target, refusal)) from None
        self._keep(record)
        _log.info("%d requests were sent as batch %s", len(lines), record.batch)
        return record

    def _wait_for(self, record: Record, target: Target, lines: Iterable[Line]) -> None:
        waiting = self._waiting.setdefault(record.name, {})
        waiting.update({line.id: line for line in lines})
        if record.name not in self._tasks:
            self._tasks[record.name] = asyncio.ensure_future(self._answer(record, target))

    async def _answer(self, record: Record, target: Target) -> None:
        """Waits for a batch and hands out its answers; requests may join while it does."""
        try:
            state = await self._ended(record, target)
            if state.too_much and await self._in_halves(record, target):
                return
            answers = await self._results(record, target, state)
        except BaseException as error:
            _fail(self._left(record).values(), error)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        if state.failure:
            self._drop(record)
        elif not record.collected:
            # What failed is not asked for here again, also by a run that continues once the cause has been cured.
            good = {key for key, answer in answers.items() if answer.status == 200}
            record.requests = {request: key for request, key in record.requests.items() if request in good}
            record.collected = True
            self._keep(record)
        for line in self._left(record).values():
            if not line.answer.done():
                line.answer.set_result(answers.get(line.id, Answer()))

    def _left(self, record: Record) -> dict[str, Line]:
        """The lines that still wait, handed over to the caller; whoever asks later has the batch looked at again."""
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
                _log.info("batch %s: %s; it is asked for again", record.batch, refusal)
            except httpx.TransportError as error:
                _log.info("batch %s: %s; it is asked for again", record.batch, type(error).__name__)
            else:
                self._tell(record, state)
                if state.ended:
                    return state
            if not record.collected and time.time() > record.sent + 3600 * self.hours:
                raise BatchError(
                    Failure(
                        f"batch {record.batch} has not ended within {self.hours:g} hours",
                        "raise the model's batch_hours; running again goes on waiting for the same batch",
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
                return {}  # results are kept by a service for some weeks only
            raise BatchError(self._refused(target, refusal)) from None

    async def _in_halves(self, record: Record, target: Target) -> bool:
        """Sends a batch that was too much for the service in two, one after the other; False where it cannot."""
        lines = list(self._waiting.get(record.name, {}).values())
        if len(lines) < 2:
            return False
        self._left(record)
        self._drop(record)
        middle = len(lines) // 2
        _log.warning("%d requests are more than the service takes at once; they go in two batches", len(lines))
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

    def _tell(self, record: Record, state: State) -> None:
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
                f"it has no batch API ({refusal})", "remove `batch: true`, which few servers honour", retry=False
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
