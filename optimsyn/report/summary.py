"""The summary of a run: the content of `summary.json` and its display."""

from __future__ import annotations

import html
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from optimsyn.base.counting import plural
from optimsyn.base.files import write_json
from optimsyn.base.terminal.labels import BESIDES_LABELS, UNREAD, outcome_table, variant_label
from optimsyn.base.terminal.table import DASH, Table, duration, number
from optimsyn.llm.reply import Usage
from optimsyn.report.drawing import Picture
from optimsyn.report.tables import evaluation_table, facts_table
from optimsyn.runs.results.losses import Losses
from optimsyn.training.intervals import MetricRow


class InfluenceSummary(BaseModel):
    """Influence of one variant's valid pairs."""

    n: int
    mean: float
    median: float
    lowest: float
    highest: float


class Summary(BaseModel):
    """The key results of a run, in one JSON object.

    Attributes:
        run: Folder name of the run.
        reward_source: The recipe's `reward.source`: influence, or a control.
        dataset_variant: Variant that became the dataset.
        dataset_pairs: Pairs in it.
        evaluation: Rows of `evaluation.json`.
        confidence: Coverage of the intervals in `evaluation`.
        influence: Influence of the valid pairs, by variant.
        zero_gradient: Influence of a sample without any gradient.
        losses: Counts of each variant's candidates.
        optimization: Results of the optimisers (`prompt`, `policy`).
        stages: The other stages' numbers.
        cost: Replies, tokens and money.
        outcomes: Outcomes of the requests, by role; see `optimsyn.runs.manifest.Manifest`.
        seconds: Wall time of each stage.
        notes: Caveats for reading the numbers.
    """

    model_config = ConfigDict(extra="forbid")

    run: str
    recipe: str
    fingerprint: str
    reward_source: str = "influence"
    dataset_variant: str = ""
    dataset_pairs: int = 0
    evaluation: list[dict[str, Any]] = Field(default_factory=list)
    confidence: float = 0.95
    influence: dict[str, InfluenceSummary] = Field(default_factory=dict)
    zero_gradient: float | None = None
    losses: dict[str, Losses] = Field(default_factory=dict)
    optimization: dict[str, dict[str, Any]] = Field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = Field(default_factory=dict)
    cost: dict[str, float | int] = Field(default_factory=dict)
    outcomes: dict[str, dict[str, int]] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)

    def write(self, folder: Path, picture: Picture | None = None) -> None:
        """Writes `summary.json`, and `summary.png` if there is a picture, each atomically."""
        write_json(folder / "summary.json", self.model_dump(mode="json"))
        if picture is not None:
            picture.save(folder / "summary.png")

    @classmethod
    def read(cls, folder: Path) -> Summary:
        """The summary of a run folder."""
        return cls.model_validate_json((folder / "summary.json").read_text(encoding="utf-8"))

    def tables(self) -> list[Table]:
        """The tables of the summary, the evaluation first."""
        tables: list[Table] = []
        if self.evaluation:
            rows: list[MetricRow] = self.evaluation  # type: ignore[assignment]  # the same keys, read from JSON
            tables.append(evaluation_table(rows, confidence=self.confidence))
        if self.losses or self.influence:
            tables.append(self._variants())
        for name, facts in self.optimization.items():
            tables.append(facts_table({"prompt": "Prompt search", "policy": "Policy training"}.get(name, name), facts))
        if any(counts.get(name) for counts in self.outcomes.values() for name in (*UNREAD, *BESIDES_LABELS)):
            columns, counted = outcome_table(self.outcomes)
            rows_of_roles = tuple((role, *(f"{n:,}" if n else DASH for n in counts)) for role, counts in counted)
            right = frozenset(range(1, len(columns) + 1))
            tables.append(Table("What came of the requests", ("asked", *columns), rows_of_roles, right))
        if self.seconds or self.cost:
            tables.append(self._cost())
        return tables

    def _variants(self) -> Table:
        body, often = [], []
        for variant in dict.fromkeys([*self.losses, *self.influence]):
            lost, measured = self.losses.get(variant), self.influence.get(variant)
            cells = ["–"] * 5
            worst: list[tuple[str, int]] = []
            if lost is not None:
                left = None if lost.not_selected is None else lost.not_selected + lost.near_test
                counts = (lost.candidates, lost.invalid, lost.duplicate, left, lost.kept)
                cells = ["–" if count is None else str(count) for count in counts]
                failed = Counter(lost.invalid_by_check) + Counter(lost.not_judged_by_outcome)
                worst = failed.most_common(3)
            body.append((variant_label(variant), *cells, number(measured.median if measured else None)))
            if worst:
                often.append(f"{variant_label(variant)}: " + ", ".join(f"{name} {n}" for name, n in worst))
        notes = ["Median influence of the valid ones."]
        if often:
            notes.append(f"Failed checks: {'; '.join(often)}.")
        if self.zero_gradient is not None:
            notes.append(f"Influence of a zero gradient: {number(self.zero_gradient)}.")
        columns = ("variant", "written", "invalid", "repeated", "left out", "kept", "influence")
        return Table("From candidates to pairs", columns, tuple(body), frozenset(range(1, 7)), " ".join(notes))

    def _cost(self) -> Table:
        body = [(name.replace("_", " "), duration(seconds)) for name, seconds in self.seconds.items()]
        if len(body) > 1:
            body.append(("all stages", duration(sum(self.seconds.values()))))
        paid = {"replies": "replies", "input_tokens": "input tokens", "output_tokens": "output tokens"}
        body += [(label, f"{self.cost[name]:,}") for name, label in paid.items() if name in self.cost]
        if "cost_usd" in self.cost:
            body.append(("cost", Usage(cost_usd=self.cost["cost_usd"], unpriced=bool(self.cost.get("unpriced"))).usd()))
        return Table("Time and cost", ("what", "amount"), tuple(body), frozenset({1}))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(f"Run {self.run}", style="bold")
        yield from self.tables()
        yield from map(Text, self._sentences())

    def _repr_html_(self) -> str:
        parts = [f"<h3>Run {html.escape(self.run)}</h3>"]
        parts += [table._repr_html_() for table in self.tables()]
        parts += [f"<p>{html.escape(sentence)}</p>" for sentence in self._sentences()]
        return "".join(parts)

    def _sentences(self) -> list[str]:
        made_with = variant_label(self.dataset_variant)
        dataset = f"Dataset: {plural(self.dataset_pairs, 'pair')} ({made_with}) in dataset/train.parquet."
        return [*self.notes, dataset] if self.dataset_pairs else self.notes


def influence_summaries(influence: Mapping[str, Sequence[float]]) -> dict[str, InfluenceSummary]:
    """A summary for each variant that has a valid pair."""
    return {
        variant: InfluenceSummary(
            n=len(values),
            mean=statistics.fmean(values),
            median=statistics.median(values),
            lowest=min(values),
            highest=max(values),
        )
        for variant, values in influence.items()
        if values
    }
