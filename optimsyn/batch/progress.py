"""The progress of a batch's runs, read from their folders, because the runs are other processes."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing
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
    """The progress of one run: the current or next stage, its place among so many, and what the run has bought.

    Attributes:
        detail: The stage's own progress, such as `12 of 48 pairs`.
        left: Seconds until the run finishes; None if unknown.
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
        # By stage and run of this batch.
        self._finished: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def look(self, job: Job) -> Progress | None:
        """The progress of a run; None when its manifest cannot be read just now."""
        run = job.opened
        try:
            manifest = run.manifest
        except StageError:
            return None
        for record in manifest.stages:
            if record.status == "finished" and record.seconds is not None:
                self._finished[record.name][run.name] = record.seconds
        stages = [manifest.stage(stage) for stage in job.stages]
        record = next((record for record in stages if record.status != "finished"), stages[-1])
        progress = run.progress() or {"stage": ""}
        current = progress["stage"] == record.name
        # The cost by the reply cache; whether some prices are unknown, by the manifest.
        live = {"unpriced": manifest.cost.unpriced}
        return Progress(
            record.name,
            manifest.names.index(record.name) + 1,
            len(manifest.names),
            f"{progress['done']} of {progress['total']} {progress['what']}" if current else "",
            self._left(job, manifest, record.name),
            bought_by(run).model_copy(update=live) if self._live else manifest.cost,
        )

    def _left(self, job: Job, manifest: Manifest, stage: str) -> float | None:
        """Seconds until all stages finish, from the stage's rate, earlier runs, and the batch's other runs."""
        run = job.opened
        if run.name not in self._earlier:
            self._earlier[run.name] = earlier_seconds(run)
        usual = {stage: median(times.values()) for stage, times in self._finished.items()} | self._earlier[run.name]
        now = seconds_left(run, stage, since_begun(manifest.stage(stage)), usual)
        later = [
            name for name in job.stages[job.stages.index(stage) + 1 :] if manifest.stage(name).status != "finished"
        ]
        if now is None or any(name not in usual for name in later):
            return None
        return now + sum(usual[name] for name in later)


def bought_by(run: Run) -> Usage:
    """What a run has bought. The file is closed again, because a batch can have hundreds of runs.

    A damaged file counts as nothing; the run itself reports it.
    """
    path = run.folder / "replies.sqlite"
    if not path.is_file():
        return Usage()
    try:
        with closing(ReplyCache(path)) as cache:
            return cache.totals()
    except DataError:
        return Usage()
