"""How far the runs of a batch are, read from their folders: the runs themselves are other processes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import median

from optimsyn.base.errors import DataError, StageError
from optimsyn.batch.plan import Job
from optimsyn.llm.replies import ReplyCache, Usage
from optimsyn.runs.durations import earlier_seconds, seconds_left, since_begun
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import Manifest


@dataclass(frozen=True)
class Progress:
    """How far one running run is.

    Attributes:
        stage: The stage that runs, or that will be next.
        number: Its place among the stages of the run, from 1.
        of: How many stages the run has.
        told: What the stage says about itself, such as `12 of 48 pairs`.
        left: Seconds until the run has finished; None when nothing is known.
        cost: What it has bought.
    """

    stage: str
    number: int
    of: int
    told: str
    left: float | None
    cost: Usage


class Watch:
    """Reads how far runs are, and learns from finished stages how long the others may take.

    Args:
        live: Ask the reply cache what was bought; False takes what the manifest said when a stage ended, because a
            run on another machine must not be disturbed.
    """

    def __init__(self, *, live: bool = True) -> None:
        self._live = live
        self._earlier: dict[str, dict[str, float]] = {}
        self._here: dict[tuple[str, str], float] = {}

    def look(self, job: Job) -> Progress | None:
        """How far a run is; None when its manifest cannot be read just now."""
        run = job.run
        assert run is not None
        try:
            manifest = run.manifest
        except StageError:
            return None
        self._learn(run.name, manifest)
        stages = [manifest.stage(stage) for stage in job.stages]
        record = next((record for record in stages if record.status != "finished"), stages[-1])
        told = run.progress()
        at_work = told is not None and told["stage"] == record.name
        return Progress(
            record.name,
            manifest.names.index(record.name) + 1,
            len(manifest.names),
            f"{told['done']} of {told['total']} {told['what']}" if told is not None and at_work else "",
            self._left(job, manifest, record.name),
            _bought_so_far(run, manifest) if self._live else manifest.cost,
        )

    def _left(self, job: Job, manifest: Manifest, stage: str) -> float | None:
        """Seconds until all stages have finished: by the stage's own rate, earlier runs, and the batch's other runs."""
        assert job.run is not None
        usual = {**self._usual(), **self._from_earlier(job)}
        now = seconds_left(job.run, stage, since_begun(manifest.stage(stage)), usual)
        later = [
            name for name in job.stages[job.stages.index(stage) + 1 :] if manifest.stage(name).status != "finished"
        ]
        if now is None or any(name not in usual for name in later):
            return None
        return now + sum(usual[name] for name in later)

    def _from_earlier(self, job: Job) -> dict[str, float]:
        assert job.run is not None
        if job.run.name not in self._earlier:
            self._earlier[job.run.name] = earlier_seconds(job.run)
        return self._earlier[job.run.name]

    def _learn(self, name: str, manifest: Manifest) -> None:
        for record in manifest.stages:
            if record.status == "finished" and record.seconds is not None:
                self._here[name, record.name] = record.seconds

    def _usual(self) -> dict[str, float]:
        """Median time of each stage in the runs of this batch that have finished it."""
        times: dict[str, list[float]] = defaultdict(list)
        for (_, stage), seconds in self._here.items():
            times[stage].append(seconds)
        return {stage: median(values) for stage, values in times.items()}


def bought_by(run: Run) -> Usage:
    """What a run has bought; the file is closed again, for a batch can have hundreds of runs.

    A damaged file counts as nothing here: the run itself stops at it and tells.
    """
    path = run.folder / "replies.sqlite"
    if not path.is_file():
        return Usage()
    try:
        cache = ReplyCache(path)
    except DataError:
        return Usage()
    try:
        return cache.totals()
    except DataError:
        return Usage()
    finally:
        cache.close()


def _bought_so_far(run: Run, manifest: Manifest) -> Usage:
    """As its file of replies says now; whether some of it has no price, as its manifest does."""
    return bought_by(run).model_copy(update={"unpriced": manifest.cost.unpriced})
