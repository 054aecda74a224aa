"""The main loop of a batch: starts runs when resources are free, watches them, and keeps `batch.json` up to date."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from optimsyn.base.counting import plural
from optimsyn.base.environment import CUDA_VISIBLE_DEVICES, PURSE
from optimsyn.base.errors import OptimsynError, StageError
from optimsyn.base.secrets.redaction import redact
from optimsyn.batch.engines import Engine, Started
from optimsyn.batch.memory import Place, Room
from optimsyn.batch.outcome import Before, conclude, report_of
from optimsyn.batch.plan import Job
from optimsyn.batch.progress import Progress, Watch, bought_by
from optimsyn.batch.state import BatchState
from optimsyn.batch.table import View
from optimsyn.execution.signals import handled_signals
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
class Supervisor:
    """Starts runs, watches them, shows their progress, and keeps `batch.json` and the logs in `root` up to date."""

    jobs: list[Job]
    state: BatchState
    root: Path
    engine: Engine
    room: Room
    purse: Purse | None
    view: View
    _running: list[_Running] = field(default_factory=list, init=False)
    _blocked_since: dict[str, float] = field(default_factory=dict, init=False)
    _messages: set[str] = field(default_factory=set, init=False)
    # The first one asks to end the batch in order, the second to end it at once.
    _signals: list[int] = field(default_factory=list, init=False)
    _begun: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self._watch = Watch(live=self.engine.here)

    def run(self) -> None:
        """Runs all waiting jobs; returns when none is running."""
        for job in self.jobs:
            self._prepare(job)
        self._write()
        self.view.show({})

        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)

        # A signal that `nohup` or a shell ignores stays ignored.
        with handled_signals(note, "SIGINT", "SIGTERM", "SIGHUP", where=lambda now: now is not signal.SIG_IGN):
            try:
                with self.view:
                    try:
                        self._until_done()
                    finally:
                        self._end_all()
            finally:
                self.engine.close()
                self._finish()

    def _prepare(self, job: Job) -> None:
        """Records what a run has already bought, and refuses it if it can never fit into memory."""
        state = job.state
        if job.run is None:
            return
        state.cost = bought_by(job.run)
        if state.state == "finished":
            state.report = report_of(job.run)
        elif (refusal := self.room.refusal(job.need)) is not None:
            state.state, state.kind, state.reason = "refused", "GpuMemory", refusal

    def _until_done(self) -> None:
        last_look = float("-inf")
        while (self._waiting() or self._running) and not self._signals:
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
            if len(self._running) >= self.state.options.jobs:
                break
            busy = job.opened.busy()
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
        run = job.opened
        log = self.root / LOGS / f"{run.name}.log"
        variables: dict[str, str] = {}
        if place.gpu is not None:
            variables[CUDA_VISIBLE_DEVICES] = place.gpu.uuid
        if self.purse is not None:
            variables[PURSE] = str(self.purse.path)
            # A process of a killed batch may have bought something since this batch began.
            self.purse.count(account(run), bought_by(run))
        before = Before.of(run, log)
        started = self.engine.start(job, log, variables)
        job.state.state, job.state.log = "running", str(log)
        self._running.append(_Running(job, started, place, before, log, time.monotonic()))

    def _reap(self, *, stopped: bool) -> bool:
        """Removes the ended runs and records how each ended."""
        ended = [(item, code) for item in self._running if (code := item.started.ended()) is not None]
        for item, code in ended:
            self._running.remove(item)
            self.room.leave(item.place)
            run, state = item.job.opened, item.job.state
            state.seconds = round(time.monotonic() - item.since, 2)
            try:
                conclude(item.job, code, item.log, item.before, stopped=stopped)
            except OptimsynError as error:
                _failed(item.job, error)
            state.cost = bought_by(run)
            if self.purse is not None:
                self.purse.count(account(run), state.cost)
        return bool(ended)

    def _look(self, changed: bool) -> None:
        """Reads and shows the progress of the runs, and writes `batch.json` when a state or a stage has changed."""
        progress: dict[str, Progress] = {}
        for item in self._running:
            now_of_run, state = self._watch.look(item.job), item.job.state
            state.seconds = round(time.monotonic() - item.since, 2)
            if now_of_run is not None and state.folder is not None:
                progress[state.folder] = now_of_run
                changed = changed or state.stage != now_of_run.stage
                state.stage, state.cost = now_of_run.stage, now_of_run.cost
        if changed:
            self._write()
        self.state.add_up()
        self.state.seconds = round(time.monotonic() - self._begun, 2)
        self.view.show(progress)

    def _end_all(self) -> None:
        """Ends the running runs: asks, waits, and kills them after a while or at a second signal."""
        if not self._running:
            return
        self.view.say(f"Stopping {plural(len(self._running), 'run')}; everything so far is kept …")
        for item in self._running:
            item.started.stop()
        deadline = time.monotonic() + _STOP_S
        while self._running:
            self.engine.wait(_TICK_S)
            if len(self._signals) > 1 or time.monotonic() > deadline:
                for item in self._running:
                    item.started.kill()
            if self._reap(stopped=True):
                self._look(changed=True)

    def _finish(self) -> None:
        done = all(run.state == "finished" for run in self.state.runs)
        self.state.state = "finished" if done else "interrupted" if self._signals else "failed"
        self.state.ended = now()
        self._write()
        if self.purse is not None:
            self.purse.close()

    def _write(self) -> None:
        self.state.seconds = round(time.monotonic() - self._begun, 2)
        self.state.write(self.root / BATCH_JSON)


def account(run: Run) -> str:
    """A run's name in the purse: the path of its reply cache, which its processes know too."""
    return str(run.folder / "replies.sqlite")


def _failed(job: Job, error: OptimsynError | OSError) -> None:
    """Records that the batch could not start or read a run."""
    job.state.state, job.state.kind, job.state.reason = "failed", type(error).__name__, redact(str(error))
