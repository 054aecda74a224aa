"""What the tools return: plain models, so that a client gets typed JSON with a schema, which show themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, Field

from optimsyn.base.secrets.redaction import redact_tree, secret_values
from optimsyn.base.terminal.table import Table, number

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

# Longest text of a cell, in characters.
_LONGEST = 700
# Longer lists of short texts are counted.
_MANY = 12


class Result(BaseModel):
    """The result of a tool. A notebook shows its tables; a text is made of all that it holds."""

    def text(self) -> str:
        """All that it holds, as YAML."""
        plain = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(plain, allow_unicode=True, sort_keys=False, width=100_000).rstrip()

    def _tables(self) -> Iterable[Table]:
        rows = [(_label(name), _cell(getattr(self, name))) for name in type(self).model_fields]
        yield Table("", ("what", "found"), tuple(row for row in rows if row[1]))

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self._tables())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.text())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._tables()


ResultT = TypeVar("ResultT", bound=BaseModel)


def cleaned(result: ResultT) -> ResultT:
    """A result without secrets."""
    return type(result).model_validate(redact_tree(result.model_dump(mode="json"), secret_values()))


class RecipeNames(Result):
    """Recipes that can be named."""

    bundled: list[str] = Field(description="Recipes that come with optimsyn.")
    files: list[str] = Field(description="YAML files in the root and its folders; not all need be recipes.")


class RecipeText(Result):
    """A recipe."""

    recipe: str
    fingerprint: str = Field(description="Changes with every field that changes results.")
    yaml: str = Field(description="The recipe with every field.")


class Validation(Result):
    """The result of checking a recipe on this machine."""

    ok: bool = Field(description="Nothing would stop the run.")
    problems: list[str] = Field(description="Each stops the run; with the cure.")
    warnings: list[str]
    unchecked: list[str]
    counts: dict[str, int] = Field(description="Documents, passages, questions.")
    forecast: str | None = Field(description="What the run would send, in a sentence.")


class Amount(Result):
    """An estimate."""

    low: float
    expected: float
    high: float


class Budget(Result):
    """Money in US dollars over the life of this server."""

    budget_usd: float
    spent_usd: float
    reserved_usd: float = Field(description="For work in progress.")
    left_usd: float

    @property
    def sentence(self) -> str:
        """The same in words."""
        return f"{self.left_usd:.4f} of {self.budget_usd:g} US dollars are left."


class ForecastResult(Result):
    """What a run would send and cost."""

    sentence: str
    requests: Amount
    input_tokens: Amount
    output_tokens: Amount
    cost_usd: Amount | None = Field(description="null: a price is unknown.")
    notes: list[str]
    money: Budget


class PreviewCard(Result):
    """A pair that was written for a preview."""

    title: str
    outcome: str
    parts: dict[str, str] = Field(description="Passage, rubric, question, answer, checks, cost.")


class PreviewResult(Result):
    """A few pairs, or that the preview is still at work."""

    state: str = Field(description="`finished`, or `running`: call preview again with the same arguments.")
    run: str
    cards: list[PreviewCard] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    reward: str | None = Field(None, description="A look at the reward, in a sentence.")

    def _tables(self) -> Iterable[Table]:
        names = list(dict.fromkeys(name for card in self.cards for name in card.parts if name != "Passage"))
        rows = tuple(
            (card.title, card.outcome, *(_cell(card.parts.get(name, "")) for name in names)) for card in self.cards
        )
        note = " ".join([*self.notes, self.reward or ""]).strip()
        yield Table(f"Preview of {self.run}: {self.state}", ("passage", "outcome", *names), rows, note=note)


class StageStatus(Result):
    """A stage of a run."""

    name: str
    status: str
    seconds: float | None
    error: str | None


class RunStatus(Result):
    """A run as it is now."""

    run: str = Field(description="Its folder, which the other tools take.")
    state: str = Field(description="new, running, unfinished, failed, interrupted or finished.")
    working: bool = Field(description="A process works on it now.")
    place: str = Field(description="The stage that is running or stopped.")
    exit_code: int | None = Field(description="Of the process that this server started; null: none, or it still works.")
    stages: list[StageStatus]
    progress: dict[str, Any] | None
    cost_usd: float
    log: list[str] = Field(description="Last lines of its output.")
    money: Budget

    def _tables(self) -> Iterable[Table]:
        rows = tuple((each.name, each.status, number(each.seconds), each.error or "") for each in self.stages)
        money = f"The run has cost {self.cost_usd:.4f} US dollars; {self.money.sentence}"
        state = f"{self.run}: {self.state}" + (", at work now" if self.working else "")
        yield Table(state, ("stage", "status", "seconds", "error"), rows, right=frozenset({2}), note=money)


class FoundTable(Result):
    """A table."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str


class Tables(Result):
    """The tables of a run."""

    run: str
    tables: list[FoundTable]

    def _tables(self) -> Iterable[Table]:
        for each in self.tables:
            rows = tuple(tuple(row) for row in each.rows)
            yield Table(each.title, tuple(each.columns), rows, note=each.note)


class Report(Result):
    """The verdict on a run and its figures."""

    run: str
    html: str = Field(description="The report as a page, from the root.")
    state: str
    headline: str
    ends: str = Field(description="The highest and the lowest variant.")
    sentences: list[str]
    comparisons: list[dict[str, Any]] = Field(description="What was compared, what is shown, and its limit.")
    cannot: list[str] = Field(description="What no comparison shows.")
    failure: str | None
    reward: str | None = Field(None, description="The look at the reward, in a sentence; null where there is none.")
    reward_verdict: str | None = Field(None, description="`sound`, `doubtful`, `noise` or `too few to tell`; or null.")
    figures: dict[str, Any] | None = Field(description="summary.json; null until the run has finished.")

    def _tables(self) -> Iterable[Table]:
        rows = [("headline", self.headline), ("", self.ends), *(("", text) for text in self.sentences)]
        rows += [(str(each["what"]), "\n".join([*each["shown"], str(each["limit"])])) for each in self.comparisons]
        rows += [("not shown", text) for text in self.cannot]
        rows += [("reward", self.reward or ""), ("failure", self.failure or ""), ("page", self.html)]
        yield Table(f"{self.run}: {self.state}", ("what", "found"), tuple(row for row in rows if row[1]))


class Comparison(Result):
    """Several runs on one page."""

    html: str
    runs: list[Report]

    def _tables(self) -> Iterable[Table]:
        rows = tuple((each.run, each.state, each.headline) for each in self.runs)
        yield Table("", ("run", "state", "headline"), rows, note=f"The page is {self.html}.")


class DoctorFinding(Result):
    """One check of this machine."""

    what: str
    status: str
    detail: str


class Doctor(Result):
    """What this machine has and lacks."""

    ok: bool
    findings: list[DoctorFinding]


class DocumentRow(Result):
    """A document in short."""

    id: str
    title: str
    words: int
    begins: str


class DocumentsSummary(Result):
    """The documents of a recipe in short."""

    count: int
    words: int
    problems: list[str]
    some: list[DocumentRow]


class QuestionRow(Result):
    """A validation question without its answer."""

    id: str
    subtask: str
    form: str
    question: str


class QuestionsSummary(Result):
    """The validation questions of a recipe in short; test questions and answers are never shown."""

    validation: int
    subtasks: dict[str, int]
    forms: dict[str, int]
    problems: list[str]
    some: list[QuestionRow]


class Figure(Result):
    """A metric of a variant of a run."""

    run: str
    state: str
    variant: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int = Field(description="Number of test questions.")
    difference: float | None = Field(description="From the target as it came, on the same questions.")
    difference_low: float | None
    difference_high: float | None
    judgement: str = Field(description="What the interval of the difference says, on this seed.")


class Figures(Result):
    """What the runs of a notebook have measured, and what the work has cost."""

    runs: dict[str, str] = Field(description="Run to its headline.")
    figures: list[Figure]
    money: Budget

    def _tables(self) -> Iterable[Table]:
        rows = tuple(
            (
                each.run,
                each.variant,
                each.metric,
                _interval(each.value, each.low, each.high),
                _interval(each.difference, each.difference_low, each.difference_high, sign=True),
                str(each.n),
                each.judgement,
            )
            for each in self.figures
        )
        columns = ("run", "variant", "metric", "value", "difference to the target", "questions", "judgement")
        yield Table("Figures", columns, rows, right=frozenset({3, 4, 5}), note=self.money.sentence)


def _interval(value: float | None, low: float | None, high: float | None, *, sign: bool = False) -> str:
    if low is None or high is None:
        return number(value, sign=sign)
    return f"{number(value, sign=sign)} ({number(low, sign=sign)} to {number(high, sign=sign)})"


def _label(name: str) -> str:
    return name.removesuffix("_usd").replace("_", " ") + (" (USD)" if name.endswith("_usd") else "")


def _cell(value: Any) -> str:
    """A value as the text of a cell."""
    if isinstance(value, BaseModel):
        inner = ((name, getattr(value, name)) for name in type(value).model_fields)
        return _cut(", ".join(f"{_label(name)} {_cell(each)}" for name, each in inner if each not in (None, "", [])))
    if isinstance(value, dict):
        return _cut(", ".join(f"{key} {_cell(each)}" for key, each in value.items()))
    if isinstance(value, list | tuple):
        rows = [_cell(each) for each in value]
        many = len(rows) > _MANY and all(len(row) < 2 * _MANY for row in rows)
        return _cut((", " if many else "\n").join(rows))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, 4)
    return _cut("" if value is None else str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
