"""What the tools return: plain models, so that a client gets typed JSON with a schema."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class RecipeNames(BaseModel):
    """Recipes that can be named."""

    bundled: list[str] = Field(description="Recipes that come with optimsyn.")
    files: list[str] = Field(description="YAML files in the root and its folders; not all need be recipes.")


class RecipeText(BaseModel):
    """A recipe."""

    recipe: str
    fingerprint: str = Field(description="Changes with every field that changes results.")
    yaml: str = Field(description="The recipe with every field.")


class Validation(BaseModel):
    """The result of checking a recipe on this machine."""

    ok: bool = Field(description="Nothing would stop the run.")
    problems: list[str] = Field(description="Each stops the run; with the cure.")
    warnings: list[str]
    unchecked: list[str]
    counts: dict[str, int] = Field(description="Documents, passages, questions.")
    forecast: str | None = Field(description="What the run would send, in a sentence.")


class Amount(BaseModel):
    """An estimate."""

    low: float
    expected: float
    high: float


class Budget(BaseModel):
    """Money in US dollars over the life of this server."""

    budget_usd: float
    spent_usd: float
    reserved_usd: float = Field(description="For work in progress.")
    left_usd: float


class ForecastResult(BaseModel):
    """What a run would send and cost."""

    sentence: str
    requests: Amount
    input_tokens: Amount
    output_tokens: Amount
    cost_usd: Amount | None = Field(description="null: a price is unknown.")
    notes: list[str]
    money: Budget


class PreviewCard(BaseModel):
    """A pair that was written for a preview."""

    title: str
    outcome: str
    parts: dict[str, str] = Field(description="Passage, rubric, question, answer, checks, cost.")


class PreviewResult(BaseModel):
    """A few pairs, or that the preview is still at work."""

    state: str = Field(description="`finished`, or `running`: call preview again with the same arguments.")
    run: str
    cards: list[PreviewCard] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    reward: str | None = Field(None, description="A look at the reward, in a sentence.")


class StageStatus(BaseModel):
    """A stage of a run."""

    name: str
    status: str
    seconds: float | None
    error: str | None


class RunStatus(BaseModel):
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


class FoundTable(BaseModel):
    """A table."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str


class Tables(BaseModel):
    """The tables of a run."""

    run: str
    tables: list[FoundTable]


class Report(BaseModel):
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
    figures: dict[str, Any] | None = Field(description="summary.json; null until the run has finished.")


class Comparison(BaseModel):
    """Several runs on one page."""

    html: str
    runs: list[Report]


class DoctorFinding(BaseModel):
    """One check of this machine."""

    what: str
    status: str
    detail: str


class Doctor(BaseModel):
    """What this machine has and lacks."""

    ok: bool
    findings: list[DoctorFinding]


class DocumentRow(BaseModel):
    """A document in short."""

    id: str
    title: str
    words: int
    begins: str


class DocumentsSummary(BaseModel):
    """The documents of a recipe in short."""

    count: int
    words: int
    problems: list[str]
    some: list[DocumentRow]


class QuestionRow(BaseModel):
    """A validation question without its answer."""

    id: str
    subtask: str
    form: str
    question: str


class QuestionsSummary(BaseModel):
    """The validation questions of a recipe in short; test questions and answers are never shown."""

    validation: int
    subtasks: dict[str, int]
    forms: dict[str, int]
    problems: list[str]
    some: list[QuestionRow]
