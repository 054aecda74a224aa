"""How far the runs of a transfer are, and what those that have finished came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from optimsyn.base.errors import DataError, OptimsynError
from optimsyn.base.files import iter_json
from optimsyn.base.secrets.redaction import redact
from optimsyn.runs.folder import Run
from optimsyn.runs.results.built_in import FineTuneResult
from optimsyn.study.arms.effects import Differences, effect
from optimsyn.study.arms.outcomes import group_of
from optimsyn.study.transfer.result import Gain
from optimsyn.study.transfer.transfer_file import TransferCell
from optimsyn.training.intervals import UNTUNED, bootstrap_mean, metrics_of

TRANSFERRED = "transferred"
"""The folder, inside that of the transfer, of the runs that take pairs over."""
Values = Mapping[str, Mapping[str, float]]
"""Metric to question to value."""


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        before: The target as it came.
        after: The target fine-tuned on the pairs.
        groups: Group of each test question.
        pairs: Pairs that it was fine-tuned on.
    """

    before: Values
    after: Values
    groups: dict[str, str]
    pairs: int


@dataclass(frozen=True)
class CellState:
    """How far a run is.

    Attributes:
        state: `waiting`, `unfinished`, `finished` or `unreadable`; of a batch that has ended also `failed`, `refused`
            or `interrupted`.
        seconds: Time of its finished stages, without those that it took over.
        trained_seconds: That of fine-tuning and evaluation.
    """

    cell: TransferCell
    folder: Path
    state: str
    reason: str = ""
    seconds: float = 0.0
    trained_seconds: float = 0.0
    outcome: Outcome | None = None


def folder_of(cell: TransferCell, root: Path) -> Path:
    """The run folder of a cell in the folder of its transfer."""
    return Run.folder_of(cell.recipe, root if cell.own else root / TRANSFERRED)


def state_of(cell: TransferCell, root: Path, arm: str) -> CellState:
    """The state of a run, with its outcome if it has finished."""
    folder = folder_of(cell, root)
    if not (folder / "manifest.json").is_file():
        return CellState(cell, folder, "waiting")
    try:
        run = Run.load(folder)
        records = [record for record in run.manifest.stages if record.status == "finished"]
        seconds = sum(record.seconds or 0.0 for record in records)
        trained = sum(record.seconds or 0.0 for record in records if record.name in ("fine_tune", "evaluate"))
        if not all(map(run.done, cell.recipe.stage_names)):
            stopped = next((record for record in run.manifest.stages if record.error), None)
            reason = "" if stopped is None else f"{stopped.name}: {stopped.error}"
            return CellState(cell, folder, "unfinished", redact(reason), seconds, trained)
        return CellState(cell, folder, "finished", "", seconds, trained, _outcome(run, arm))
    except OptimsynError as error:
        return CellState(cell, folder, "unreadable", redact(str(error)))


def _outcome(run: Run, arm: str) -> Outcome:
    rows = {}
    for variant in (UNTUNED, arm):
        path = run.folder / "evaluate" / f"{variant}.jsonl"
        if not path.is_file():
            raise DataError(f"{path}: missing; the run has finished without it")
        rows[variant] = metrics_of(list(iter_json(path)))  # type: ignore[arg-type]
    tuned = (FineTuneResult.load(run).variants or {}).get(arm)
    groups = {str(row["id"]): group_of(row) for row in iter_json(run.folder / "prepare" / "test.jsonl")}
    return Outcome(rows[UNTUNED], rows[arm], groups, 0 if tuned is None else tuned.pairs or 0)


def gain(metric: str, sides: Sequence[tuple[Values, Values, dict[str, str]]], cells: Sequence[TransferCell]) -> Gain:
    """The paired difference of a metric, right minus left, over seeds and questions.

    With one seed the interval is the one of `evaluation.json`: the bootstrap over questions. With several it is over
    seeds and groups of questions, as in a study.

    Args:
        metric: Present on both sides of every seed.
        sides: Left, right and the questions' groups, for each seed.
        cells: The run of each seed.

    Raises:
        DataError: The two sides of a seed answered different questions.
    """
    values: list[float] = []
    seeds: list[int] = []
    groups: list[str] = []
    for (left, right, group), cell in zip(sides, cells, strict=True):
        one, other = left[metric], right[metric]
        if one.keys() != other.keys():
            odd = sorted(one.keys() ^ other.keys())[0]
            raise DataError(
                f"{cell.name}: {metric} is not of the same test questions on both sides ({odd!r} is on one only)"
            )
        values += [other[name] - one[name] for name in one]
        seeds += [cell.seed] * len(one)
        groups += [group.get(name, name) for name in one]
    recipe = cells[0].recipe
    confidence = recipe.evaluation.confidence
    if len(sides) == 1:
        low, high = bootstrap_mean(
            values, confidence=confidence, resamples=recipe.evaluation.bootstrap, seed=recipe.seed
        )[1:3]
        value = fmean(values)
    else:
        found = effect([Differences(tuple(values), tuple(seeds), tuple(groups))], confidence=confidence)
        value, low, high = found.value, found.low, found.high
    return Gain(
        before=fmean(fmean(left[metric].values()) for left, _, _ in sides),
        after=fmean(fmean(right[metric].values()) for _, right, _ in sides),
        value=value,
        low=low,
        high=high,
        interval_over="questions" if len(sides) == 1 else "seeds and questions",
        seeds=len(sides),
        questions=round(len(values) / len(sides)),
    )


def seconds_to_come(states: Sequence[CellState]) -> float | None:
    """Time of the runs to come, by those that have finished; None before one that synthesizes has."""
    done = [each for each in states if each.state == "finished"]
    whole = [each.seconds for each in done if each.cell.own]
    if not whole:
        return None
    taken = [each.seconds for each in done if not each.cell.own] or [e.trained_seconds for e in done if e.cell.own]
    left = [each for each in states if each.state != "finished"]
    return sum(max(0.0, median(whole if each.cell.own else taken) - each.seconds) for each in left)
