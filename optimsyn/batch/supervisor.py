"""The main loop of a batch: starts runs when resources are free, watches them, and keeps `batch.json` up to date."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from optimsyn.base.environment import CUDA_VISIBLE_DEVICES, PURSE
from optimsyn.base.errors import OptimsynError, StageError
from optimsyn.base.secrets.redaction import redact
from optimsyn.batch.engines import Engine, Started
from optimsyn.batch.memory import Place, Room
from optimsyn.batch.outcome import Before, conclude
from optimsyn.batch.plan import Job
from optimsyn.batch.progress import Progress, Watch, bought_by
from optimsyn.batch.state import BatchState
from optimsyn.batch.table import View
from optimsyn.llm.shared_budget import Purse
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import now

BATCH_JSON, LOGS = "batch.json", "batch-logs"
# How often to check whether runs have ended, and how often to read their folders.
_TICK_S = 0.25
_LOOK_S = 1.0
# How long a run may take to close kernel and server, and how long a run of a killed batch may hold its folder.
_STOP_S = 60.0
HELD_S = 90.0


@dataclass
class _Running:
    job: Job
    started: Started
    place: Place
    before: Before
    log: Path
    since: float


@dataclass
class _Signals:
    """Signals received: the first asks to stop, the second to stop at once."""

    count: int = 0


@dataclass(frozen=True)
class Resources:
    """What the runs share.

    Attributes:
        engine: Where they work.
        room: Their memory.
        jobs: How many run at once.
        purse: Their caps; None: no caps.
    """

    engine: Engine
    room: Room
    jobs: int
    purse: Purse | None = None


class Supervisor:
    """Starts runs, watches them and writes `batch.json`.

    Args:
        jobs: The runs.
        state: The content of `batch.json`, which is kept up to date.
        root: The folder of `batch.json` and the logs.
        resources: What the runs share.
        view: Shows progress to the user.
    """

    def __init__(self, jobs: list[Job], state: BatchState, root: Path, resources: Resources, view: View) -> None:
        self.jobs = jobs
        self.state = state
        self.root = root
        self.engine = resources.engine
        self.room = resources.room
        self.most = resources.jobs
        self.purse = resources.purse
        self.view = view
        self._running: list[_Running] = []
        self._blocked_since: dict[str, float] = {}
        self._messages: set[str] = set()
        self._watch = Watch(live=self.engine.here)
        self._begun = time.monotonic()

    def run(self) -> None:
        """Runs all waiting jobs; returns when none is running."""
        for job in self.jobs:
            self._prepare(job)
        self._write()
        self.view.show({})
        with _handled_signals() as signals:
            try:
                with self.view:
                    try:
                        self._until_done(signals)
                    finally:
                        self._end_all(signals)
            finally:
                self.engine.close()
                self._finish(interrupted=signals.count > 0)

    def _prepare(self, job: Job) -> None:
        """Records what a run has already bought, and refuses it if it can never fit into memory."""
        state = job.state
        if job.run is None:
            return
        state.cost = bought_by(job.run)
        if state.state == "finished":
            state.report = _report(job.run)
            return
        refusal = self.room.refusal(job.need)
        if refusal is not None:
            state.state, state.kind, state.reason = "refused", "GpuMemory", refusal

    def _until_done(self, signals: _Signals) -> None:
        last_look = float("-inf")
        while self._waiting() or self._running:
            if signals.count:
                return
            changed = self._start()
            self.engine.wait(_TICK_S)
            changed = self._reap(stopped=False) or changed
            if changed or time.monotonic() - last_look >= _LOOK_S:
                last_look = time.monotonic()
                self._look(changed)

    def _waiting(self) -> list[Job]:
        return [job for job in self.jobs if job.state.state == "waiting"]

    def _start(self) -> bool:
        """Starts the runs that fit; a large run that must wait lets smaller ones pass."""
        changed = False
        for job in self._waiting():
            if len(self._running) >= self.most:
                break
            assert job.run is not None
            busy = job.run.busy()
            if busy is not None:
                changed = self._hold(job, busy) or changed
                continue
            place = self.room.place(job.need)
            if place is None:
                self._say_once(f"{job.name} waits until its models fit into memory beside those of the running runs.")
                continue
            changed = True
            try:
                self._start_one(job, place)
            except (OptimsynError, OSError) as error:
                self.room.leave(place)
                _failed(job, error)
        return changed

    def _hold(self, job: Job, busy: str) -> bool:
        """Waits for a folder in use, since a run of a killed batch ends soon; fails the job after a while."""
        self._say_once(f"{busy}; the batch waits {HELD_S:.0f} seconds for that to end.")
        since = self._blocked_since.setdefault(job.name, time.monotonic())
        if time.monotonic() - since < HELD_S:
            return False
        _failed(job, StageError(f"{busy}; wait for it or stop it"))
        return True

    def _say_once(self, text: str) -> None:
        if text not in self._messages:
            self._messages.add(text)
            self.view.say(text)

    def _start_one(self, job: Job, place: Place) -> None:
        assert job.run is not None
        log = self.root / LOGS / f"{job.run.name}.log"
        variables: dict[str, str] = {}
        if place.gpu is not None:
            variables[CUDA_VISIBLE_DEVICES] = place.gpu.uuid
        if self.purse is not None:
            variables[PURSE] = str(self.purse.path)
            # A process of a killed batch may have bought something since this batch began.
            self.purse.count(account(job.run), bought_by(job.run))
        before = Before.of(job.run, log)
        started = self.engine.start(job, log, variables)
        job.state.state, job.state.log = "running", str(log)
        self._running.append(_Running(job, started, place, before, log, time.monotonic()))

    def _reap(self, *, stopped: bool) -> bool:
        """Removes the ended runs and records how each ended."""
        ended = [(item, code) for item in self._running if (code := item.started.ended()) is not None]
        for item, code in ended:
            self._running.remove(item)
            self.room.leave(item.place)
            run = item.job.run
            assert run is not None
            item.job.state.seconds = round(time.monotonic() - item.since, 2)
            try:
                conclude(item.job, code, item.log, item.before, stopped=stopped)
            except OptimsynError as error:
                _failed(item.job, error)
            usage = bought_by(run)
            item.job.state.cost = usage
            if self.purse is not None:
                self.purse.count(account(run), usage)
        return bool(ended)

    def _look(self, changed: bool) -> None:
        """Reads and shows the progress of the runs, and writes `batch.json` when a state or a stage has changed."""
        progress: dict[str, Progress] = {}
        for item in self._running:
            progress_of_run = self._watch.look(item.job)
            state = item.job.state
            state.seconds = round(time.monotonic() - item.since, 2)
            if progress_of_run is None or state.folder is None:
                continue
            progress[state.folder] = progress_of_run
            changed = changed or state.stage != progress_of_run.stage
            state.stage, state.cost = progress_of_run.stage, progress_of_run.cost
        if changed:
            self._write()
        self.state.add_up()
        self.state.seconds = round(time.monotonic() - self._begun, 2)
        self.view.show(progress)

    def _end_all(self, signals: _Signals) -> None:
        """Ends the running runs: asks, waits, and kills them after a while or at a second signal."""
        if not self._running:
            return
        self.view.say(f"Stopping {len(self._running)} runs; everything so far is kept …")
        for item in self._running:
            item.started.stop()
        deadline = time.monotonic() + _STOP_S
        while self._running:
            self.engine.wait(_TICK_S)
            if signals.count > 1 or time.monotonic() > deadline:
                for item in self._running:
                    item.started.kill()
            if self._reap(stopped=True):
                self._look(changed=True)

    def _finish(self, *, interrupted: bool) -> None:
        state = self.state
        if all(run.state == "finished" for run in state.runs):
            state.state = "finished"
        else:
            state.state = "interrupted" if interrupted else "failed"
        state.ended = now()
        self._write()
        if self.purse is not None:
            self.purse.close()

    def _write(self) -> None:
        self.state.seconds = round(time.monotonic() - self._begun, 2)
        self.state.write(self.root / BATCH_JSON)


@contextmanager
def _handled_signals() -> Iterator[_Signals]:
    """Counts Ctrl-C and SIGTERM, so that the loop can end the batch in order."""
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        signals.count += 1

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # A signal that `nohup` or a shell ignores stays ignored.
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def account(run: Run) -> str:
    """A run's name in the purse: the path of its reply cache, which its processes know too."""
    return str(run.folder / "replies.sqlite")


def _failed(job: Job, error: OptimsynError | OSError) -> None:
    """Records that the batch could not start or read a run."""
    job.state.state, job.state.kind, job.state.reason = "failed", type(error).__name__, redact(str(error))


def _report(run: Run) -> str | None:
    path = run.folder / "report.html"
    return str(path) if path.is_file() else None
