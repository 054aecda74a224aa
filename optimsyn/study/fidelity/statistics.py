"""Rank correlations of one pool's scores with its truths, each with bootstrap draws."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimsyn.base.errors import DataError
from optimsyn.base.files import write_json
from optimsyn.base.statistics import Array, ranks, spearman

LDS = "LDS"
"""Name of the linear datamodeling score among the truths."""


@dataclass(frozen=True)
class Subsets:
    """Random subsets of a pool, as indices, and how much training on each lowered the validation loss, in nats."""

    members: tuple[tuple[int, ...], ...]
    decreases: tuple[float, ...]


@dataclass(frozen=True)
class FidelityCell:
    """Scores and truths of one pool at one checkpoint (one domain, one source of pairs, one seed).

    Attributes:
        name: A unique name.
        ids: Of the n samples.
        groups: The passage of each sample; empty without passages.
        scores: Score name -> [n].
        truths: Truth name -> [n], decrease of the truth questions' loss in nats.
        length: Label tokens [n].
        gradient_norm: ‖g‖ [n].
        subsets: For the LDS, or None.
        chosen: How a part of the pool was chosen -> decrease after training on it; "random" has one for each repeat.
        start_loss: Loss of the truth questions before, in nats.
        questions: Number of questions behind the directions.
        truth_questions: Number of questions behind the truth.
        steps: Of the warm-up.
    """

    name: str
    domain: str
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    truths: dict[str, tuple[float, ...]]
    length: tuple[float, ...]
    gradient_norm: tuple[float, ...]
    subsets: Subsets | None
    chosen: dict[str, list[float]]
    start_loss: float
    questions: int
    truth_questions: int
    steps: int

    def save(self, file: Path) -> None:
        """Writes it as JSON."""
        write_json(file, asdict(self))

    @classmethod
    def load(cls, file: Path) -> FidelityCell:
        """Reads what `save` wrote.

        Raises:
            DataError: The file is damaged.
        """
        try:
            value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            subsets = value.pop("subsets")
            return cls(subsets=None if subsets is None else Subsets(**subsets), **value)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file}: not a readable fidelity cell ({error}); delete it and run again") from error


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % bootstrap interval: the mean over cells in which it is defined; None without any."""

    value: float | None
    low: float | None
    high: float | None
    cells: int

    def text(self, *, interval: bool = True) -> str:
        """The text in a table: .93 [.90, .95]."""
        if self.value is None:
            return "–"
        value, low, high = (f"{number:.2f}".replace("0.", ".", 1) for number in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]" if interval else value


def estimate(draws: Sequence[Array], seed: int = 0) -> Estimate:
    """Averages over cells, which are also resampled.

    Args:
        draws: For each cell [1 + R]: the statistic itself, then each resample's; NaN where undefined. Cells with an
            undefined statistic and undefined draws are left out.
        seed: Of the resampling of cells.
    """
    defined = [values for values in draws if not math.isnan(values[0])]
    if not defined:
        return Estimate(None, None, None, 0)
    stacked = np.stack(defined)
    drawn = np.random.default_rng(seed).integers(0, len(stacked), (len(stacked), stacked.shape[1]))
    drawn[:, 0] = np.arange(len(stacked))
    stacked = np.take_along_axis(stacked, drawn, axis=0)
    valid = ~np.isnan(stacked)
    counts = valid.sum(0)
    means = np.where(valid, stacked, 0.0).sum(0)[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means[1:], [0.025, 0.975]) if len(means) > 1 else (means[0], means[0])
    return Estimate(float(means[0]), float(low), float(high), len(defined))


class CellStatistics:
    """The correlations of one cell, each as [1 + R]: of all samples, then of R resamples (the same for every score)."""

    def __init__(self, cell: FidelityCell, resamples: int, seed: int) -> None:
        self.cell = cell
        generator = np.random.default_rng(seed)
        self.samples = draws(generator, len(cell.ids), resamples)
        self._subsets = draws(generator, len(cell.subsets.members), resamples) if cell.subsets else None
        names = sorted({group for group in cell.groups if cell.groups.count(group) > 1})
        self._groups = [np.array([i for i, group in enumerate(cell.groups) if group == name]) for name in names]
        self._drawn_groups = draws(generator, len(names), resamples) if names else None
        self._nothing: Array = np.full(resamples + 1, np.nan)
        self._controls = [np.asarray(values)[self.samples] for values in (cell.length, cell.gradient_norm)]

    @property
    def truths(self) -> list[str]:
        """The names of this cell's truths."""
        return [*self.cell.truths, *([LDS] if self._subsets is not None else [])]

    def spearman(self, score: str, truth: str) -> Array:
        """Rank correlation of a score with a truth; NaN where the cell lacks one."""
        if truth == LDS:
            return self._lds(score)
        return spearman(self._drawn(self.cell.scores, score), self._drawn(self.cell.truths, truth))

    def within(self, score: str, truth: str) -> Array:
        """Rank correlation within groups: of ranks among a group's samples, pooled over groups; groups are resampled.

        This is what GRPO sees of a reward. NaN where the cell lacks groups, score or truth.
        """
        if self._drawn_groups is None or score not in self.cell.scores or truth not in self.cell.truths:
            return self._nothing
        x, y = np.asarray(self.cell.scores[score]), np.asarray(self.cell.truths[truth])
        sums = []
        for places in self._groups:
            a, b = ranks(x[places]), ranks(y[places])
            sums.append([(a * b).sum(), (a * a).sum(), (b * b).sum()])
        xy, xx, yy = np.moveaxis(np.array(sums)[self._drawn_groups].sum(1), 1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            correlations: Array = np.where((xx > 1e-9) & (yy > 1e-9), xy / np.sqrt(xx * yy), np.nan)
        return correlations

    def partial(self, score: str, truth: str) -> Array:
        """The partial rank correlation, without length and gradient norm."""
        pair = self._drawn(self.cell.scores, score), self._drawn(self.cell.truths, truth)
        return spearman(*pair, self._controls)

    def with_control(self, score: str, which: int) -> Array:
        """Rank correlation of a score with answer length (0) or gradient norm (1)."""
        return spearman(self._drawn(self.cell.scores, score), self._controls[which])

    def _drawn(self, values: Mapping[str, Sequence[float]], name: str) -> Array:
        """[1 + R, n] values; NaN where the cell lacks them."""
        return np.asarray(values.get(name) or [math.nan] * len(self.cell.ids))[self.samples]

    def _lds(self, score: str) -> Array:
        if self.cell.subsets is None or self._subsets is None or score not in self.cell.scores:
            return self._nothing
        values = np.asarray(self.cell.scores[score])
        sums = np.array([values[list(members)].sum() for members in self.cell.subsets.members])
        decreases = np.asarray(self.cell.subsets.decreases)
        if np.ptp(sums) <= 1e-12 * np.abs(sums).max(initial=0.0):
            return self._nothing
        return spearman(sums[self._subsets], decreases[self._subsets])


def draws(generator: np.random.Generator, count: int, resamples: int) -> NDArray[np.int64]:
    """[1 + R, count]: all indices once, then R draws with replacement."""
    drawn = generator.integers(0, count, (resamples, count))
    return np.concatenate([np.arange(count)[None], drawn])
