"""`transfer.json`: everything that a transfer found, for its page and for others."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Gain(_Part):
    """A paired difference of one metric: the same questions and seeds on both sides."""

    before: float = Field(description="Mean of the left side: the target as it came, or its own run.")
    after: float = Field(description="Mean of the right side.")
    value: float = Field(description="After minus before; each seed counts the same.")
    low: float | None = Field(description="Lower end of the interval; None where nothing varies.")
    high: float | None = Field(description="Upper end.")
    interval_over: Literal["questions", "seeds and questions"] = Field(
        description="What the interval takes as random: with one seed only the questions (bootstrap)."
    )
    seeds: int
    questions: int = Field(description="Test questions of a seed.")


class TableCell(_Part):
    """One cell of the table: a generator's pairs, scored by one target, on which a target is trained."""

    generator: str
    scored_by: str = Field(description="The target whose influence chose the pairs.")
    target: str = Field(description="The target that is fine-tuned and evaluated.")
    own: bool = Field(description="Whether both are the same, so that nothing is transferred.")
    seeds: list[int] = Field(description="Seeds that have finished.")
    pairs: list[int] = Field(description="Pairs that it is fine-tuned on, by seed.")
    gains: dict[str, Gain] = Field(description="By metric: against the target as it came; empty before a seed is done.")
    against_own: dict[str, Gain] = Field(
        description="By metric: against the same target trained on pairs that it scored itself (`scored_by`), from the "
        "same generator; empty without such a run."
    )


class TransferRun(_Part):
    """One run."""

    generator: str
    scored_by: str
    target: str
    seed: int
    folder: str = Field(description="From the folder of the transfer.")
    state: str = Field(description="waiting, finished, unfinished, failed, refused, interrupted or unreadable.")
    reason: str = ""
    seconds: float = Field(description="Time of its stages, without those that it took over.")


class TransferResult(_Part):
    """The content of `transfer.json`."""

    format: int = 1
    name: str
    question: str
    fingerprint: str = Field(description="Of the design.")
    written: str
    versions: dict[str, str]
    design: dict[str, Any] = Field(description="The file.")
    arm: str = Field(description="The variant of the table.")
    confidence: float = Field(description="Coverage of the intervals.")
    targets: dict[str, str] = Field(description="Name to model.")
    generators: dict[str, str] = Field(description="Name to model.")
    scorers: list[str] = Field(description="Targets whose influence chose pairs.")
    table: list[TableCell]
    runs: list[TransferRun]
    notes: list[str]
