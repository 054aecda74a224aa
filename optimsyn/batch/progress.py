"""The progress of a batch's runs, read from their folders, because the runs are other processes."""

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
    """The progress of one run.

    Attributes:
        stage: The current or next stage.
        number: Its place among the stages of the run, from 1.
        of: How many stages the run has.
        detail: The stage's own progress, such as `12 of 48 pairs`.
        left: Seconds until the run finishes; None if unknown.
        cost: What it has bought.
    """

    stage: str
    number: int
    of: int
    detail: str
    left: float | None
    cost: Usage


class Watch:
    """Reads the progress of runs, and estimates durations from finished stages.

    Args:
        live: Read the cost from the reply cache; False reads it from the manifest, which is as of the last finished
            stage, because a run on another machine must not be disturbed.
    """

    def __init__(self, *, live: bool = True) -> None:
        self._live = live
        self._earlier: dict[str, dict[str, float]] = {}
        self._finished: dict[tuple[str, str], float] = {}

    def look(self, job: Job) -> Progress | None:
        """The progress of a run; None when its manifest cannot be read just now."""
        run = job.run
        assert run is not None
        try:
            manifest = run.manifest
        except StageError:
            return None
        self._learn(run.name, manifest)
        stages = [manifest.stage(stage) for stage in job.stages]
        record = next((record for record in stages if record.status != "finished"), stages[-1])
        progress = run.progress()
        current = progress is not None and progress["stage"] == record.name
        return Progress(
            record.name,
            manifest.names.index(record.name) + 1,
            len(manifest.names),
            f"{progress['done']} of {progress['total']} {progress['what']}" if progress is not None and current else "",
            self._left(job, manifest, record.name),
            _bought_so_far(run, manifest) if self._live else manifest.cost,
        )

    def _left(self, job: Job, manifest: Manifest, stage: str) -> float | None:
        """Seconds until all stages finish, from the stage's rate, earlier runs, and the batch's other runs."""
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
                self._finished[name, record.name] = record.seconds

    def _usual(self) -> dict[str, float]:
        """Median time of each stage in the runs of this batch that have finished it."""
        times: dict[str, list[float]] = defaultdict(list)
        for (_, stage), seconds in self._finished.items():
            times[stage].append(seconds)
        return {stage: median(values) for stage, values in times.items()}


def bought_by(run: Run) -> Usage:
    """What a run has bought. The file is closed again, because a batch can have hundreds of runs.

    A damaged file counts as nothing; the run itself reports it.
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
    """The cost by the reply cache; whether some prices are unknown, by the manifest."""
    return bought_by(run).model_copy(update={"unpriced": manifest.cost.unpriced})
