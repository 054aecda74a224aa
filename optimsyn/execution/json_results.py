"""What the commands print with `--json`, made of the data that they show to people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from optimsyn.base.terminal.json_document import Part, Result
from optimsyn.llm.reply import Usage
from optimsyn.report.facts import RunFacts
from optimsyn.report.page.report import REPORT
from optimsyn.report.page.verdict import verdict
from optimsyn.runs.folder import Run
from optimsyn.runs.forecast import Forecast, Range, StageForecast
from optimsyn.runs.manifest import Status
from optimsyn.runs.outcomes import judgement

if TYPE_CHECKING:
    from optimsyn.machine.doctor import Finding
    from optimsyn.machine.preflight_result import Preflight
    from optimsyn.recipe.recipe import Recipe
    from optimsyn.stages.preview import Preview


class DoctorRow(Part):
    """One check of this machine."""

    what: str
    status: Literal["ok", "note", "fail"] = Field(description="`note`: it works; `fail`: the quickstart would not run.")
    detail: str = Field(description="The result, and the cure where one is needed.")


class DoctorResult(Result):
    """What `optimsyn doctor` says of this machine."""

    rows: tuple[DoctorRow, ...]

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> DoctorResult:
        """The findings."""
        return cls(rows=tuple(DoctorRow(**asdict(finding)) for finding in findings))


class Amounts(Part):
    """What a run, or one of its stages, is going to send: each an estimate with its range."""

    stage: str = Field(description="The stage; `all`: all of them.")
    requests: Range
    input_tokens: Range
    output_tokens: Range
    cost_usd: Range | None = Field(description="US dollars; null if a price is unknown.")

    @classmethod
    def of(cls, stage: StageForecast) -> Amounts:
        """The forecast of a stage."""
        return cls(**{name: getattr(stage, name) for name in cls.model_fields})


class Forecasted(Part):
    """The forecast of a run."""

    paid: bool = Field(description="Whether a model costs money or its price is unknown.")
    total: Amounts
    stages: tuple[Amounts, ...]
    notes: tuple[str, ...] = Field(description="Assumptions behind figures that are not measured.")

    @classmethod
    def of(cls, forecast: Forecast | None) -> Forecasted | None:
        """The forecast, if there is one."""
        if forecast is None:
            return None
        stages = tuple(map(Amounts.of, forecast.stages))
        return cls(paid=forecast.paid, total=Amounts.of(forecast.total), stages=stages, notes=forecast.notes)


class Disk(Part):
    """Disk space of a run, in bytes."""

    total: int
    more: int = Field(description="What it takes beyond the files that it has.")
    free: int | None = Field(description="Null if unknown.")
    parts: dict[str, int] = Field(description="By kind of file.")


class ValidateResult(Result):
    """What `optimsyn validate` says of a recipe."""

    recipe: str
    fingerprint: str
    folder: str = Field(description="The folder of its run, whether it exists or not.")
    problems: tuple[str, ...] = Field(description="Each would stop the run.")
    notes: tuple[str, ...] = Field(description="The run works, but not as well as it could.")
    unchecked: tuple[str, ...] = Field(description="Checks not run, since they need the network or a key.")
    counts: dict[str, int] = Field(description="Documents, passages and questions, as far as they were read.")
    forecast: Forecasted | None = Field(description="Null where the files could not be read.")
    gpu_bytes: int = Field(description="Estimated GPU memory of the models.")
    main_bytes: int = Field(description="Estimated main memory of the models.")
    disk: Disk | None
    time: str = Field(description="How long the run will take and what that is taken from, or why it is not foreseen.")

    @classmethod
    def of(cls, recipe: Recipe, root: Path, preflight: Preflight) -> ValidateResult:
        """The result of the checks."""
        need = preflight.disk
        return cls(
            recipe=recipe.name,
            fingerprint=recipe.fingerprint,
            folder=str(Run.folder_of(recipe, root)),
            problems=tuple(preflight.problems),
            notes=tuple(preflight.warnings),
            unchecked=tuple(preflight.unchecked),
            counts=preflight.counts,
            forecast=Forecasted.of(preflight.forecast),
            gpu_bytes=preflight.gpu_bytes,
            main_bytes=preflight.main_bytes,
            time=preflight.time,
            disk=None if need is None else Disk(total=need.total, more=need.more, free=need.free, parts=need.parts),
        )


class PreviewedPair(Part):
    """One pair of a preview."""

    passage: str = Field(description="Title or id of the passage.")
    valid: bool
    influence: float | None = Field(description="Null if the pair is not valid.")
    checks: str = Field(description="`valid`, or the checks that failed and why.")
    parts: dict[str, str] = Field(description="What was written, by label: passage, rubric, question, answer.")
    cost: Usage = Field(description="What it cost when it was bought.")


class PreviewResult(Result):
    """What `optimsyn preview` wrote."""

    folder: str
    pairs: tuple[PreviewedPair, ...]
    cost: Usage = Field(description="Of all pairs.")
    reward_look: str | None = Field(description="What the look at the reward says; null where the recipe has it off.")
    reward_verdict: str | None = Field(description="`sound`, `doubtful`, `noise` or `too few to tell`; or null.")
    notes: tuple[str, ...] = Field(description="How to read the figures.")

    @classmethod
    def of(cls, run: Run, preview: Preview) -> PreviewResult:
        """The pairs of a preview."""
        pairs = tuple(
            PreviewedPair(
                passage=str(row[0]),
                valid=row[4] is not None,
                influence=row[4],
                checks=str(row[3]),
                parts={label.lower(): text for label, text in card.parts if label not in ("Checks", "Cost")},
                cost=usage,
            )
            for row, card, usage in zip(preview.body, preview.cards, preview.usages, strict=True)
        )
        look = preview.look
        return cls(
            folder=str(run.folder),
            pairs=pairs,
            cost=sum(preview.usages, Usage()),
            reward_look=None if look is None else look.sentence,
            reward_verdict=None if look is None else look.verdict,
            notes=preview.notes,
        )


class StageOutcome(Part):
    """How far a stage is."""

    name: str
    status: Status
    attempts: int
    seconds: float | None = Field(description="Of the last attempt.")
    cost: Usage
    error: str | None = Field(description="Why the last attempt did not finish.")


class Figure(Part):
    """A metric of a variant on the test questions, with the interval of each number."""

    variant: str = Field(description="`target`: the target as it came.")
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int = Field(description="Number of test questions.")
    difference: float | None = Field(description="From the target as it came, on the same questions; null for itself.")
    difference_low: float | None
    difference_high: float | None
    judgement: str = Field(description="What the interval of the difference says, on this seed.")


class ComparisonMade(Part):
    """A comparison, what the run shows about it, and what that does not show."""

    what: str
    shown: tuple[str, ...]
    limit: str


class RunFigures(Part):
    """A run in any state."""

    name: str
    folder: str
    state: str = Field(description="`finished`, `failed`, `interrupted`, `running`, `unfinished` or `new`.")
    headline: str = Field(description="The outcome in one sentence, as in the report.")
    sentences: tuple[str, ...]
    comparisons: tuple[ComparisonMade, ...]
    not_shown: tuple[str, ...] = Field(description="What no comparison of this run shows.")
    stages: tuple[StageOutcome, ...]
    evaluation: tuple[Figure, ...] = Field(description="Empty until `evaluate` has finished.")
    dataset_variant: str
    dataset_pairs: int | None = Field(description="Null before there is a dataset.")
    usage: Usage = Field(description="What the run has bought.")
    report: str | None = Field(description="Its report; null if there is none yet.")

    @classmethod
    def read(cls, run: Run) -> RunFigures:
        """The figures of a run, from its files."""
        facts = RunFacts.read(run)
        outcome = verdict(facts)
        report = run.folder / REPORT
        return cls(
            name=run.name,
            folder=str(run.folder),
            state=facts.state.kind,
            headline=_plain(outcome.headline),
            sentences=tuple(_plain(text) for text in (outcome.ends, *outcome.sentences) if text),
            comparisons=tuple(
                ComparisonMade(what=each.what, shown=tuple(map(_plain, each.shown)), limit=each.limit)
                for each in outcome.comparisons
            ),
            not_shown=outcome.cannot,
            stages=tuple(
                StageOutcome(**{name: getattr(record, name) for name in StageOutcome.model_fields})
                for record in facts.manifest.stages
            ),
            evaluation=tuple(Figure(**row, judgement=judgement(row)) for row in facts.evaluation),
            dataset_variant=facts.dataset_variant,
            dataset_pairs=facts.dataset_pairs,
            usage=facts.manifest.cost,
            report=str(report) if report.is_file() else None,
        )


class RunResult(Result):
    """How far `optimsyn run` came."""

    run: RunFigures
    forecast: Forecasted | None = Field(description="The latest forecast, with what was sent in its place.")

    @classmethod
    def of(cls, run: Run) -> RunResult:
        """A run as it is now."""
        return cls(run=RunFigures.read(run), forecast=Forecasted.of(run.manifest.forecast_now))


class ReportResult(Result):
    """What `optimsyn report` wrote."""

    page: str
    run: RunFigures


class CompareResult(Result):
    """What `optimsyn compare` wrote."""

    page: str
    runs: tuple[RunFigures, ...]


class ExecuteResult(Result):
    """What `optimsyn execute` wrote."""

    notebook: str = Field(description="The executed notebook; after an error, up to the failed cell.")


class OpenResult(Result):
    """What `optimsyn open` opened."""

    folder: str
    stage: str
    notebook: str


class NewResult(Result):
    """What `optimsyn new` wrote."""

    path: str = Field(description="The recipe.")


def _plain(text: str) -> str:
    return text.replace("\u00a0", " ")
