"""How long a stage will take: from its own progress, else from earlier runs of the same recipe."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from optimsyn.errors import StageError
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES, ManifestFile

# A rate measured over the first moments says nothing.
_SOONEST = 3.0


def earlier_seconds(run: Run) -> dict[str, float]:
    """Median time of each stage in the finished stages of other runs of this recipe's name, in seconds."""
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for path in run.folder.parent.glob(f"{run.recipe.name}-*/manifest.json"):
        if path.parent == run.folder:
            continue
        try:
            manifest = ManifestFile(path).read()
        except StageError:
            # A run of another version of optimsyn; an estimate can do without it.
            continue
        for record in manifest.stages:
            if record.status == "finished" and record.seconds is not None:
                times[record.name].append(record.seconds)
    return {stage: median(values) for stage, values in times.items() if values}


def seconds_left(run: Run, stage: str, elapsed: float, earlier: dict[str, float]) -> float | None:
    """Seconds that a running stage will still take, or None when nothing is known.

    Args:
        run: The run.
        stage: The stage that runs.
        elapsed: Seconds since it was started.
        earlier: What `earlier_seconds` gave.
    """
    told = run.progress()
    if told is not None and told["stage"] == stage and told["done"] > 0 and told["seconds"] >= _SOONEST:
        whole = float(told["seconds"]) / float(told["done"]) * float(told["total"])
        return max(0.0, whole - elapsed)
    if stage in earlier:
        return max(0.0, earlier[stage] - elapsed)
    return None


def clock(seconds: float) -> str:
    """Seconds as `0:07`, `12:30` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def executed_notebook(run: Run, name: str) -> Path:
    """Where the executed notebook of a stage lies in a run."""
    return run.path("notebooks", f"{name}.ipynb")
