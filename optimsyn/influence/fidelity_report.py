"""The figures of the fidelity benchmark: correlations with bootstrap intervals, a table, a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimsyn.data.jsonl import write_json, write_text
from optimsyn.errors import DataError
from optimsyn.influence.fidelity_statistics import LDS, CellStatistics, Estimate, FidelityCell, estimate

PAPER = "adam cosine"
"""The score of the OptimSyn paper, which the others are compared with."""

TITLES = {
    "in_batch": "in-batch",
    "lone": "lone step",
    "in_batch held out": "in-batch, held out",
    "lone held out": "lone step, held out",
    LDS: "LDS",
}


@dataclass(frozen=True)
class FidelityRow:
    """What one score is worth, averaged over cells.

    Attributes:
        score: Its name.
        spearman: Truth name -> rank correlation with it; "LDS" -> of the score's sum over subsets with their decrease.
        partial: Truth name -> the same with the ranks of answer length and gradient norm taken out.
        against_paper: Truth name -> its rank correlation minus that of `PAPER`, on the same resamples.
        with_length: Rank correlation of the score with answer length.
        with_gradient_norm: And with the gradient norm.
        top: Decrease of the validation loss after training on the score's top, minus that of random subsets, in nats.
        bottom: The same of its bottom.
    """

    score: str
    spearman: dict[str, Estimate]
    partial: dict[str, Estimate]
    against_paper: dict[str, Estimate]
    with_length: Estimate
    with_gradient_norm: Estimate
    top: float | None
    bottom: float | None


@dataclass(frozen=True)
class FidelityReport:
    """The fidelity table.

    Attributes:
        rows: One a score, best first (by the first truth).
        truths: Columns of `spearman`.
        cells: Names of the cells.
        samples: Samples in each cell.
        questions: Validation questions in each cell.
        random: Decrease after training on random subsets of the top's size, in nats, mean over cells; None: not made.
        resamples: Of the bootstrap.
        by_cell: Cell -> truth -> score -> rank correlation.
    """

    rows: tuple[FidelityRow, ...]
    truths: tuple[str, ...]
    cells: tuple[str, ...]
    samples: tuple[int, ...]
    questions: tuple[int, ...]
    random: float | None
    resamples: int
    by_cell: dict[str, dict[str, dict[str, float | None]]]

    @classmethod
    def of(cls, cells: Sequence[FidelityCell], *, resamples: int = 1000, seed: int = 0) -> FidelityReport:
        """The table of some cells.

        Samples (for the LDS: subsets) are drawn anew within each cell, a statistic is averaged over cells for each
        draw, and an interval holds the middle 95 % of these averages. A cell that lacks a truth or score is left out
        of its average.

        Raises:
            DataError: There are no cells.
        """
        if not cells:
            raise DataError("a fidelity report needs at least one cell; run the benchmark first")
        measured = [CellStatistics(cell, resamples, seed + place) for place, cell in enumerate(cells)]
        truths = list(dict.fromkeys(key for cell in measured for key in cell.truths))
        scores = list(dict.fromkeys(key for cell in cells for key in cell.scores))
        random = [_mean(cell.top["random"]) for cell in cells if "random" in cell.top]
        rows = []
        for score in scores:
            correlation = {truth: [cell.spearman(score, truth) for cell in measured] for truth in truths}
            paper = {truth: [cell.spearman(PAPER, truth) for cell in measured] for truth in truths}
            ends = [
                [value - _mean(cell.top["random"]) for value in cell.top[score]] for cell in cells if score in cell.top
            ]
            rows.append(
                FidelityRow(
                    score=score,
                    spearman={truth: estimate(values) for truth, values in correlation.items()},
                    partial={
                        truth: estimate([cell.partial(score, truth) for cell in measured])
                        for truth in truths
                        if truth != LDS
                    },
                    against_paper={
                        truth: estimate([a - b for a, b in zip(correlation[truth], paper[truth], strict=True)])
                        for truth in truths
                    },
                    with_length=estimate([cell.with_control(score, 0) for cell in measured]),
                    with_gradient_norm=estimate([cell.with_control(score, 1) for cell in measured]),
                    top=_mean([end[0] for end in ends]) if ends else None,
                    bottom=_mean([end[1] for end in ends]) if ends else None,
                )
            )
        if truths:
            rows.sort(key=lambda row: -(_or(row.spearman[truths[0]].value, -2.0)))
        by_cell = {
            cell.cell.name or "cell": {
                truth: {score: _none(float(cell.spearman(score, truth)[0])) for score in scores} for truth in truths
            }
            for cell in measured
        }
        return cls(
            rows=tuple(rows),
            truths=tuple(truths),
            cells=tuple(cell.name for cell in cells),
            samples=tuple(len(cell.ids) for cell in cells),
            questions=tuple(cell.questions for cell in cells),
            random=_mean(random) if random else None,
            resamples=resamples,
            by_cell=by_cell,
        )

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Writes fidelity.json, fidelity.md and fidelity.png."""
        write_json(folder / "fidelity.json", self.as_json())
        write_text(folder / "fidelity.md", self.markdown())
        self.plot(folder / "fidelity.png")

    def markdown(self) -> str:
        """The table, its legend above it."""
        tops = any(row.top is not None for row in self.rows)
        header = ["score"]
        for truth in self.truths:
            header += [TITLES.get(truth, truth)] + ([] if truth == LDS else ["partial", "minus the paper's"])
        header += ["with length", "with gradient norm"]
        if tops:
            header += ["top quarter", "bottom quarter"]
        lines = [
            "Spearman correlation of each score with the decrease of the validation loss that training really brings, "
            f"mean over {len(self.cells)} {'cell' if len(self.cells) == 1 else 'cells'} ({'; '.join(self.cells)}) of "
            f"{_range(self.samples)} samples and {_range(self.questions)} validation questions, with 95 % bootstrap "
            f"intervals ({self.resamples} resamples of samples, of subsets for the LDS). Partial: with the ranks of "
            f"answer length and gradient norm taken out. The paper's score is {PAPER}.",
            "",
        ]
        if tops and self.random is not None:
            lines[0] += (
                " Top and bottom quarter: decrease of the validation loss in millinats after training on it, beyond "
                f"that of random quarters ({self.random * 1000:.1f})."
            )
        lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for row in self.rows:
            values = [row.score]
            for truth in self.truths:
                values.append(row.spearman[truth].text())
                if truth != LDS:
                    values += [row.partial[truth].text(), row.against_paper[truth].text(signed=True)]
            values += [row.with_length.text(interval=False), row.with_gradient_norm.text(interval=False)]
            if tops:
                values += ["" if end is None else f"{end * 1000:+.1f}" for end in (row.top, row.bottom)]
            lines.append("| " + " | ".join(values) + " |")
        return "\n".join(lines) + "\n"

    def plot(self, file: Path) -> None:
        """A forest plot of the correlations with every truth, as PNG."""
        from optimsyn.influence.fidelity_plot import draw

        draw(self, file)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _none(value: float) -> float | None:
    return None if math.isnan(value) else value
