"""Runs and previews as child processes, and the money that they may spend."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from optimsyn.agents.ledger import Ledger, bought_in
from optimsyn.base.errors import BudgetError, StageError
from optimsyn.batch.child_process import ChildProcess, watch
from optimsyn.runs.folder import Run

LOG = "mcp.log"
_LOOK_S = 0.5
_END_S = 20.0


class Job:
    """A child process at work on a run; its output goes redacted into the run's `mcp.log`."""

    def __init__(self, command: Sequence[str], run: Run, reserved: float) -> None:
        self.run = run
        self.bought_before = bought_in(run.folder)
        self.reserved = reserved
        self.code: int | None = None
        self._child = ChildProcess(command, run.path(LOG), secret_names=run.secret_names, folder=str(run.folder.parent))
        self._ended = threading.Event()
        # Without a reader the child would wait as soon as its pipe is full.
        threading.Thread(target=self._watch, daemon=True, name=f"log of {run.name}").start()

    def _watch(self) -> None:
        while (code := self._child.ended()) is None:
            watch([self._child], _LOOK_S)
        self.code = code
        self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Waits until it has ended; False if it still works."""
        return self._ended.wait(seconds)

    def stop(self) -> None:
        """Interrupts it: the run keeps what is done, and can be continued."""
        if self.code is None:
            self._child.stop()

    def kill(self) -> None:
        """Kills what does not end."""
        if self.code is None:
            self._child.kill()


@dataclass(frozen=True)
class Money:
    """US dollars: the budget, what was spent, what is reserved for work in progress, and what is left."""

    budget: float
    spent: float
    reserved: float

    @property
    def left(self) -> float:
        """What further work may cost."""
        return max(0.0, self.budget - self.spent - self.reserved)


@dataclass(frozen=True)
class TooDear:
    """What was refused for its price.

    Attributes:
        what: Its name.
        needs: The most that it may cost in US dollars; None if that is unknown.
        left: What is left of the budget.
    """

    what: str
    needs: float | None
    left: float


class Jobs:
    """All work of one server, or of one notebook.

    Args:
        budget: US dollars that all runs and previews may cost together over the life of the server, or of the ledger.
        ledger: What was spent; without one, that is forgotten at the end.

    Attributes:
        refused: What was refused last for its price.
    """

    def __init__(self, budget: float = 0.0, ledger: Ledger | None = None) -> None:
        self._budget = budget
        self.ledger = ledger or Ledger()
        self.refused: TooDear | None = None
        self._jobs: list[Job] = []
        self._lock = threading.Lock()

    def of(self, run: Run) -> Job | None:
        """The latest job of a run in this server's life."""
        return next((job for job in reversed(self._jobs) if job.run.folder == run.folder), None)

    def money(self) -> Money:
        """What is spent, from the runs' own ledgers, and what is left."""
        reserved = sum(
            max(0.0, job.reserved - (bought_in(job.run.folder) - job.bought_before))
            for job in self._jobs
            if job.code is None
        )
        return Money(self._budget, self.ledger.spent(), reserved)

    def start(self, command: Sequence[str], run: Run, needs: float | None, what: str) -> Job:
        """Starts a child on a run.

        Args:
            command: Its command line.
            run: The run whose folder it works in.
            needs: The most that it is expected to cost in US dollars; None if a price is unknown.
            what: Its name in messages.

        Raises:
            BudgetError: It needs more than is left; names both figures.
            StageError: Something is at work on the run already.
        """
        with self._lock:
            busy = run.busy()
            job = self.of(run)
            if busy is not None or (job is not None and job.code is None):
                raise StageError(busy or f"{run.name}: is already at work; see its status")
            self.refuse_too_dear(needs, what)
            self.ledger.begin(run.folder)
            job = Job(command, run, needs or 0.0)
            self._jobs.append(job)
            return job

    def refuse_too_dear(self, needs: float | None, what: str) -> None:
        """Refuses what costs more than is left.

        Raises:
            BudgetError: It does; names both figures.
        """
        money = self.money()
        if needs is None or needs > money.left:
            self.refused = TooDear(what, needs, money.left)
        if needs is None:
            raise BudgetError(
                f"{what}: its price is unknown, and {money.left:.4f} US dollars are left of {money.budget:g}; give "
                "models.*.prices"
            )
        if needs > money.left:
            raise BudgetError(
                f"{what}: may cost up to {needs:.4f} US dollars, and {money.left:.4f} are left of the budget of "
                f"{money.budget:g} ({money.spent:.4f} spent, {money.reserved:.4f} reserved); make it smaller, "
                "or ask the person who started this server for a larger --budget"
            )

    def end(self) -> None:
        """Interrupts all children and waits for them to end."""
        for job in self._jobs:
            job.stop()
        for job in self._jobs:
            if not job.wait(_END_S):
                job.kill()
        self.ledger.keep()
