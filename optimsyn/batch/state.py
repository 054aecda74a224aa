"""`batch.json`: the state of every run of a batch, up to date at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from optimsyn.base.files import write_text
from optimsyn.base.terminal.json_document import Result
from optimsyn.llm.reply import Usage

State = Literal["waiting", "running", "finished", "failed", "interrupted", "refused"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class RunState(_Part):
    """One run of a batch.

    Attributes:
        recipe: The recipe as named on the command line.
        also: Further recipes that are the same run.
        folder: None when the recipe was refused before it was made.
        state: `waiting`, `running`, `finished`, `failed`, `interrupted`, or `refused`: it could not be started.
        earlier: It had finished before this start of the batch, so nothing was done.
        stage: The stage that is running or did not finish.
        cell: Number of the notebook's code cell in which it failed (1 is the first).
        source: First line of that cell.
        kind: Name of the error, or `KernelDied`, `TimeLimit`, `Interrupted`, `Killed` and the like.
        reason: What went wrong, without secrets.
        seconds: Time that this start of the batch spent on it.
        cost: What the run has bought, in this start and earlier ones.
    """

    recipe: str
    also: list[str] = Field(default_factory=list)
    folder: str | None = None
    state: State = "waiting"
    earlier: bool = False
    stage: str | None = None
    cell: int | None = None
    source: str = ""
    kind: str | None = None
    reason: str | None = None
    seconds: float = 0.0
    cost: Usage = Usage()
    report: str | None = None
    log: str | None = None


class Options(_Part):
    """How the batch was started."""

    jobs: int
    engine: str
    size: str
    changes: list[str]
    until: str | None = None
    cost_usd: float | None = None
    requests: int | None = None
    tokens: int | None = None
    gpu_memory_gb: float | None = None


class Totals(_Part):
    """Counts of runs by state, and their total time and cost."""

    runs: int = 0
    waiting: int = 0
    running: int = 0
    finished: int = 0
    failed: int = 0
    interrupted: int = 0
    refused: int = 0
    seconds: float = 0.0
    cost: Usage = Usage()


class BatchState(_Part):
    """The content of `batch.json`.

    Attributes:
        state: `running`, then `finished` (all runs are), `failed` (some are not) or `interrupted`. After kill -9 it
            stays `running`; check whether process `pid` lives.
        seconds: Wall-clock time of the batch.
        comparison: A page that shows the runs side by side.
    """

    format: int = 1
    state: Literal["running", "finished", "failed", "interrupted"] = "running"
    pid: int
    begun: str
    ended: str | None = None
    seconds: float = 0.0
    options: Options
    totals: Totals = Totals()
    comparison: str | None = None
    versions: dict[str, str]
    runs: list[RunState]

    def add_up(self) -> None:
        """Updates the totals."""
        totals = Totals(runs=len(self.runs))
        for run in self.runs:
            setattr(totals, run.state, getattr(totals, run.state) + 1)
            totals.seconds = round(totals.seconds + run.seconds, 2)
        totals.cost = sum((run.cost for run in self.runs), Usage())
        self.totals = totals

    def write(self, path: Path) -> None:
        """Replaces the file atomically."""
        self.add_up()
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> BatchState:
        """The state of a finished or running batch."""
        return cls.model_validate_json(path.read_bytes())


class BatchResult(Result):
    """What `optimsyn batch` prints with `--json`."""

    batch: BatchState = Field(description="The content of batch.json.")
