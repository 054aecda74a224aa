"""The figures of the fidelity study: correlations with bootstrap intervals, tables, a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from optimsyn.base.errors import DataError
from optimsyn.base.files import write_json, write_text
from optimsyn.report.drawing import BLUE, BROWN, INK, drawing, finish, picture
from optimsyn.study.fidelity.statistics import LDS, CellStatistics, Estimate, FidelityCell, estimate

PAPER = "adam cosine"
"""The score of the OptimSyn paper."""
DEFAULT = "adam_linear dot, plain mean"
"""The default score of a recipe."""

# Number of best rows that are always shown.
_BEST = 8


@dataclass(frozen=True)
class FidelityRow:
    """The correlations of one score, averaged over cells.

    Attributes:
        within: Truth name -> rank correlation within passages, which is all that GRPO sees.
        spearman: Truth name -> rank correlation over the pool; "LDS" -> of the score's sum over subsets with their
            decrease.
        partial: Truth name -> the same with the ranks of answer length and gradient norm taken out.
        with_length: Rank correlation with answer length.
        with_gradient_norm: Rank correlation with the gradient norm.
    """

    score: str
    within: dict[str, Estimate]
    spearman: dict[str, Estimate]
    partial: dict[str, Estimate]
    with_length: Estimate
    with_gradient_norm: Estimate


@dataclass(frozen=True)
class Choice:
    """The gain of training on a chosen part of the pool over random parts, in one group of cells.

    Attributes:
        cells: The cells' domain and source.
        decrease: Of the truth questions' loss, in nats, mean over cells.
        beyond_random: The decrease minus that of the cell's random parts, mean over cells.
        by_cell: The same for each cell.
    """

    cells: str
    how: str
    decrease: float
    beyond_random: float
    by_cell: tuple[float, ...]


@dataclass(frozen=True)
class FidelityReport:
    """The fidelity tables.

    Attributes:
        rows: One per score, best first: by ranking within passages of the last truth that has one, else of the pool.
        domains: Domain -> the same for its cells alone.
        choices: Parts of pools that were trained on.
        cells: Names of the cells with trainings on single samples; all cells if there are none.
        samples: Number of samples in each of them.
        questions: Number of questions behind each cell's directions.
        truth_questions: Number of questions behind its truth.
    """

    rows: tuple[FidelityRow, ...]
    domains: dict[str, tuple[FidelityRow, ...]]
    truths: tuple[str, ...]
    choices: tuple[Choice, ...]
    cells: tuple[str, ...]
    samples: tuple[int, ...]
    questions: tuple[int, ...]
    truth_questions: tuple[int, ...]
    resamples: int

    @classmethod
    def of(cls, cells: Sequence[FidelityCell], *, resamples: int = 1000, seed: int = 0) -> FidelityReport:
        """The tables of some cells.

        Cells are resampled, and within each cell its samples (within passages: its passages; for the LDS: subsets). A
        statistic is averaged over cells for each draw, and an interval holds the middle 95 % of these averages. A cell
        without a truth or score is left out of its average.

        Raises:
            DataError: There are no cells.
        """
        if not cells:
            raise DataError("a fidelity report needs at least one cell; run the benchmark first")
        measured = [CellStatistics(cell, resamples, seed + place) for place, cell in enumerate(cells)]
        truths = tuple(dict.fromkeys(key for cell in measured for key in cell.truths))
        names = list(dict.fromkeys(cell.domain for cell in cells if cell.domain and cell.truths))
        # Pools of which only parts were trained on have no single scores to rank.
        ranked = [cell for cell in cells if cell.truths] or list(cells)
        return cls(
            rows=_rows(measured, truths),
            domains={name: _rows([m for m in measured if m.cell.domain == name], truths) for name in names},
            truths=truths,
            choices=tuple(_choices(cells)),
            cells=tuple(cell.name for cell in ranked),
            samples=tuple(len(cell.ids) for cell in ranked),
            questions=tuple(cell.questions for cell in ranked),
            truth_questions=tuple(cell.truth_questions for cell in ranked),
            resamples=resamples,
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
        """The tables, each below its legend."""
        return "\n".join([*self._main_table(), *self._domain_tables(), *self._choice_table()])

    def plot(self, file: Path) -> None:
        """A forest plot as PNG: a panel per truth, a line per score in the report's order, dots with 95 % intervals."""
        panels = max(1, len(self.truths))
        with drawing(1.3 + 0.26 * len(self.rows), width=3.0 + 2.9 * panels) as figure:
            axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
            for axis, truth in zip(axes, self.truths, strict=False):
                for place, row in enumerate(self.rows):
                    estimate = row.spearman[truth]
                    if estimate.value is None or estimate.low is None or estimate.high is None:
                        continue
                    # "adam cosine", "adam_linear dot, end of both": an estimator and how its products are divided.
                    is_influence = row.score.split(",")[0].split(" ")[1:2] in (["cosine"], ["dot"])
                    color = BLUE if is_influence else BROWN
                    axis.plot([estimate.low, estimate.high], [place, place], color=color, linewidth=1.6, alpha=0.65)
                    axis.plot(estimate.value, place, "o", color=color, markersize=4.5)
                axis.axvline(0, color=INK, linewidth=0.8)
                finish(axis, truth, "Spearman with the truth", "", grid="x")
            axes[0].set_yticks(range(len(self.rows)), [row.score for row in self.rows])
            axes[0].invert_yaxis()
            picture(figure, "").save(file)

    def _main_table(self) -> Iterable[str]:
        if not self.truths:
            return
        legend = (
            "Spearman correlation of each score with what real training brings, mean over "
            f"{len(self.cells)} {'cell' if len(self.cells) == 1 else 'cells'} of {_range(self.samples)} samples, with "
            f"{_range(self.questions)} questions for the directions and {_range(self.truth_questions)} others for the "
            f"truth; 95 % bootstrap intervals over cells and samples ({self.resamples} resamples). "
            "*Within*: ranks among the pairs of one passage."
        )
        rows = self._shown()
        if left := len(self.rows) - len(rows):
            legend += f" {left} more definitions of what counts, none of them among the best, stand in the JSON."
        header, columns = ["score"], []
        for truth in self.truths:
            if any(row.within[truth].value is not None for row in self.rows if truth in row.within):
                header.append(f"within, {truth}")
                columns.append(("within", truth))
            header.append(truth)
            columns.append(("spearman", truth))
        header += ["with length", "with gradient norm"]
        cells = []
        for row in rows:
            values = [_named(row.score), *(getattr(row, kind)[truth].text() for kind, truth in columns)]
            cells.append([*values, row.with_length.text(interval=False), row.with_gradient_norm.text(interval=False)])
        yield _table(legend, header, cells)

    def _domain_tables(self) -> Iterable[str]:
        for kind, label in (("within", "Within passages"), ("spearman", "Over the pool")):
            truth = _headline(self.rows, self.truths, kind)
            if truth is None or len(self.domains) < 2:
                continue
            by_domain = [{r.score: getattr(r, kind)[truth].text() for r in rows} for rows in self.domains.values()]
            cells = [[_named(row.score), *(texts.get(row.score, "–") for texts in by_domain)] for row in self._shown()]
            yield _table(f"{label}, {truth}, domain by domain:", ["score", *self.domains], cells)

    def _choice_table(self) -> Iterable[str]:
        if not self.choices:
            return
        groups = list(dict.fromkeys(choice.cells for choice in self.choices))
        texts = {}
        for choice in self.choices:
            mean = choice.decrease if choice.how == "random" else choice.beyond_random
            each = ", ".join(f"{value:+.2f}" for value in choice.by_cell)
            texts[choice.how, choice.cells] = f"{mean:+.2f} [{each}]"
        ways = dict.fromkeys(choice.how for choice in self.choices)
        yield _table(
            "Training on a quarter of the pool: decrease of the truth questions' loss in nats, beyond that of random "
            "quarters (row `random`: the decrease itself), mean over seeds [each seed].",
            ["chosen", *groups],
            [[how, *(texts.get((how, group), "–") for group in groups)] for how in ways],
        )

    def _shown(self) -> list[FidelityRow]:
        """The best rows, and the others except alternative definitions of what counts."""
        return [
            row
            for place, row in enumerate(self.rows)
            if place < _BEST or "," not in row.score or row.score == DEFAULT or row.score.startswith("simulated")
        ]


def _headline(rows: Sequence[FidelityRow], truths: Sequence[str], kind: str) -> str | None:
    """The last in-batch truth with figures of this kind, else the last truth with any."""
    measured = [t for t in truths if any(t in getattr(r, kind) and getattr(r, kind)[t].value is not None for r in rows)]
    in_batch = [truth for truth in measured if truth.startswith("in batch")]
    ranked = in_batch or measured
    return ranked[-1] if ranked else None


def _rows(measured: Sequence[CellStatistics], truths: Sequence[str]) -> tuple[FidelityRow, ...]:
    scores = list(dict.fromkeys(key for cell in measured for key in cell.cell.scores))
    rows = [
        FidelityRow(
            score=score,
            within={t: estimate([cell.within(score, t) for cell in measured]) for t in truths if t != LDS},
            spearman={t: estimate([cell.spearman(score, t) for cell in measured]) for t in truths},
            partial={t: estimate([cell.partial(score, t) for cell in measured]) for t in truths if t != LDS},
            with_length=estimate([cell.with_control(score, 0) for cell in measured]),
            with_gradient_norm=estimate([cell.with_control(score, 1) for cell in measured]),
        )
        for score in scores
    ]
    for kind in ("within", "spearman"):
        truth = _headline(rows, truths, kind)
        if truth is not None:
            values = [getattr(row, kind)[truth].value for row in rows]
            order = sorted(range(len(rows)), key=lambda place: 2.0 if values[place] is None else -values[place])
            return tuple(rows[place] for place in order)
    return tuple(rows)


def _choices(cells: Sequence[FidelityCell]) -> Iterable[Choice]:
    groups: dict[str, list[FidelityCell]] = {}
    for cell in cells:
        if cell.chosen:
            groups.setdefault(cell.name.rsplit(", seed", 1)[0], []).append(cell)
    for name, members in groups.items():
        for how in dict.fromkeys(key for cell in members for key in cell.chosen):
            having = [cell for cell in members if how in cell.chosen]
            means = [fmean(cell.chosen[how]) for cell in having]
            randoms = [fmean(cell.chosen["random"]) if "random" in cell.chosen else None for cell in having]
            beyond = [mean - other for mean, other in zip(means, randoms, strict=True) if other is not None]
            shares = means if how == "random" else beyond
            yield Choice(name, how, fmean(means), fmean(beyond) if beyond else math.nan, tuple(shares))


def _named(score: str) -> str:
    return {DEFAULT: f"**{score}** (the default)", PAPER: f"{score} (the paper)"}.get(score, score)


def _table(legend: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table below its legend."""
    head, *body = (f"| {' | '.join(values)} |" for values in (header, *rows))
    return "\n".join([legend, "", head, "|" + "---|" * len(header), *body]) + "\n"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
