"""Estimates how long a stage takes: from its progress, else from earlier runs of the same recipe."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from optimsyn.base.errors import StageError
from optimsyn.base.terminal.labels import OUTCOME_LABELS
from optimsyn.runs.manifest import ManifestFile, StageRecord
from optimsyn.runs.protocol import RunLike
from optimsyn.runs.resources import notebook_name

_OF_RUN = re.compile(r"-[0-9a-f]{10}")
# A rate over a shorter time says nothing.
_SOONEST = 3.0


def earlier_seconds(run: RunLike) -> dict[str, float]:
    """Median time of each finished stage over other runs of this recipe's name, in seconds."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for path in run.folder.parent.glob(f"{run.recipe.name}-*/manifest.json"):
        if path.parent == run.folder:
            continue
        try:
            manifest = ManifestFile(path).read()
        except StageError:
            # A run of another version; the estimate can do without it.
            continue
        for record in manifest.stages:
            if record.status == "finished" and record.seconds is not None:
                times[record.name].append(record.seconds)
    return {stage: median(times[stage]) for stage in run.manifest.names if stage in times}


def whole_runs(root: Path, name: str) -> list[float]:
    """Seconds of each finished run of a recipe's name in a folder, over all its stages."""
    found = []
    for path in sorted(root.glob(f"{name}-*/manifest.json")):
        try:
            stages = ManifestFile(path).read().stages
        except StageError:
            continue
        seconds = [record.seconds for record in stages if record.status == "finished" and record.seconds is not None]
        # The name of another recipe may begin with this one.
        if _OF_RUN.fullmatch(path.parent.name.removeprefix(name)) and seconds and len(seconds) == len(stages):
            found.append(sum(seconds))
    return found


def since_begun(record: StageRecord) -> float:
    """Seconds that a running stage has taken, as in its `seconds`; 0 while its kernel starts."""
    if record.status != "running" or record.started is None:
        return 0.0
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(record.started)).total_seconds())


def seconds_left(run: RunLike, stage: str, elapsed: float, earlier: dict[str, float]) -> float | None:
    """Seconds that a running stage still needs, or None if nothing is known."""
    progress = _progress_of(run, stage)
    part = _part_left(progress)
    if part is not None and progress is not None and progress.get("last", True):
        return part
    if stage in earlier:
        return max(part or 0.0, earlier[stage] - elapsed, 0.0)
    return None


def described(run: RunLike, stage: str, elapsed: float, earlier: dict[str, float]) -> str:
    """Progress of a running stage: `12 of 48 pairs, 0:35, about 1:10 to go`; arguments as `seconds_left`."""
    progress = _progress_of(run, stage)
    words = [clock(elapsed)]
    if progress is not None:
        words.insert(0, f"{progress['done']} of {progress['total']} {progress['what']}")
    left, part = seconds_left(run, stage, elapsed, earlier), _part_left(progress)
    if left is not None:
        words.append(f"about {clock(left)} to go")
    elif part is not None and progress is not None:
        words.append(f"about {clock(part)} for these {progress['what']}")
    # Progress files of older versions lack it.
    if progress is not None and (unread := progress.get("unread")):
        outcomes = ", ".join(f"{count} {OUTCOME_LABELS[name]}" for name, count in unread.items())
        words.append(f"{sum(unread.values())} replies without a value ({outcomes})")
    return ", ".join(words)


def share_done(run: RunLike, stage: str) -> float | None:
    """Share of the current part of a stage that is done, from 0 to 1, if it reports progress."""
    progress = _progress_of(run, stage)
    return None if progress is None or not progress["total"] else float(progress["done"]) / float(progress["total"])


def _progress_of(run: RunLike, stage: str) -> dict[str, Any] | None:
    progress = run.progress()
    return progress if progress is not None and progress["stage"] == stage else None


def _part_left(progress: dict[str, Any] | None) -> float | None:
    """Seconds until the current part of a stage ends, at its rate so far."""
    if progress is None or progress["seconds"] < _SOONEST:
        return None
    done = progress["done"] - progress.get("first", 0)
    if done <= 0:
        return None
    since = max(0.0, time.time() - progress["at"]) if "at" in progress else 0.0
    left: float = progress["seconds"] / done * (progress["total"] - progress["done"]) - since
    return max(0.0, left)


def clock(seconds: float) -> str:
    """Seconds as `0:07`, `12:30` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def executed_notebook(run: RunLike, stage: str) -> Path:
    """Path of a stage's executed notebook in a run."""
    return run.path("notebooks", f"{notebook_name(stage, run.manifest.names)}.ipynb")
