"""A cache of trainings: finished ones are never recomputed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from optimsyn.base.errors import DataError
from optimsyn.base.files import append_jsonl, iter_json
from optimsyn.base.identity import digest_of
from optimsyn.influence.trainings import Schedule, Trainings

LEDGER = "trainings.jsonl"


class TrainingLedger:
    """Trainings and the questions' losses after them, cached in a folder.

    Args:
        trainings: Runs them.
        folder: The folder of `trainings.jsonl`; None caches in memory.
        report: Called with the number of trainings and the seconds of each newly computed group.

    Raises:
        DataError: The ledger belongs to another target, pool, question set or setting.
    """

    def __init__(
        self, trainings: Trainings, folder: Path | None = None, report: Callable[[int, float], None] | None = None
    ) -> None:
        self._trainings = trainings
        self._file = None if folder is None else folder / LEDGER
        self._report = report
        self._known: dict[str, dict[str, list[float]]] = {}
        if self._file is not None:
            self._open(self._file)

    def start(self) -> torch.Tensor:
        """The questions' losses before any training, [Q] float64."""
        if "start" not in self._known:
            self._keep("start", {"0": self._trainings.start().tolist()})
        return torch.tensor(self._known["start"]["0"], dtype=torch.float64)

    def run(self, schedules: Sequence[Schedule], looks: Sequence[int]) -> torch.Tensor:
        """As `Trainings.run`: [schedules, looks, Q]; cached trainings are read."""
        wanted = sorted(set(looks))
        keys = [digest_of([list(step) for step in schedule], 20) for schedule in schedules]
        fresh = {
            key: schedule
            for key, schedule in zip(keys, schedules, strict=True)
            if not self._known.get(key, {}).keys() >= set(map(str, wanted))
        }
        items, size = list(fresh.items()), self._trainings.together(fresh.values())
        for begin in range(0, len(items), size):
            group = items[begin : begin + size]
            began = time.monotonic()
            results = self._trainings.run([schedule for _, schedule in group], wanted)
            for (key, _), losses in zip(group, results.tolist(), strict=True):
                self._keep(key, {str(look): row for look, row in zip(wanted, losses, strict=True)})
            if self._report is not None:
                self._report(len(group), time.monotonic() - began)
        rows = [[self._known[key][str(look)] for look in wanted] for key in keys]
        return torch.tensor(rows, dtype=torch.float64).view(len(keys), len(wanted), -1)

    def _keep(self, key: str, losses: dict[str, list[float]]) -> None:
        self._known[key] = {**self._known.get(key, {}), **losses}
        if self._file is not None:
            append_jsonl(self._file, [{"key": key, "losses": losses}])

    def _open(self, file: Path) -> None:
        identity = self._trainings.identity
        if not file.is_file():
            append_jsonl(file, [identity.saved("fingerprint")])
        # A half-written line of a killed process is skipped, and its training is redone.
        rows: list[dict[str, Any]] = list(iter_json(file, tolerate_torn=True))
        begun = next((row for row in rows if "fingerprint" in row), {})
        changed = identity.changed_since(begun, "fingerprint")
        if changed:
            raise DataError(
                f"{file}: belongs to another target, pool, question set or setting ({changed} changed); name another "
                "folder or delete this one"
            )
        for row in rows:
            if "losses" in row:
                self._known[row["key"]] = {**self._known.get(row["key"], {}), **row["losses"]}
