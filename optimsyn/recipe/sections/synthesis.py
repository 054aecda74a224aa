"""The sections `synthesis` and `checks` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from optimsyn.base.extensions import CHECKS, is_part
from optimsyn.recipe.sections.models import Extended, Section
from optimsyn.recipe.sections.parts import named
from optimsyn.recipe.sections.warm_up import CANDIDATES_OF_A_HANDFUL

Variant = Literal[
    "no_rubric",
    "static",
    "static_pool",
    "untrained_policy",
    "author",
    "optimized",
    "policy",
    "both",
    "insider",
    "validation",
]
# Newer fields with neutral values: a recipe without them keeps its fingerprint.
LATER_SYNTHESIS_FIELDS = ("passages", "arms", "same_decoder", "pool", "insider_text")


def _several(value: Any) -> Any:
    """Lets a list of one be written without brackets."""
    return [value] if isinstance(value, str) or is_part(value) else value


class Synthesis(Section):
    """The final pairs of every variant."""

    pairs: int = Field(24, ge=2, description="Valid pairs a variant; the same number for each.")
    oversample: float = Field(1.5, ge=1, le=1000, description="Candidates written per pair kept.")
    select: Literal["set", "influence", "first"] = Field(
        "set",
        description="Which valid candidates are kept. set: those that help the questions most together, by a training "
        "predicted from gradients. influence: those of highest single influence. first: the first ones.",
    )
    passages: Literal["all", "disjoint"] = Field(
        "all",
        description="all: warm-up, optimisers and synthesis walk through the same passages. disjoint: each has "
        "passages of its own, in proportion to how many it asks for; where there are too few for that, all are shared "
        "and the run says so.",
    )
    dataset: Literal[
        "auto", "no_rubric", "static", "static_pool", "untrained_policy", "author", "optimized", "policy", "both"
    ] = Field("auto", description="Variant that becomes the final dataset; auto: the last one that was learned.")
    arms: Annotated[tuple[Variant, ...] | None, BeforeValidator(_several)] = Field(
        None,
        min_length=1,
        description="Variants to compare, which then differ in one thing only: same decoder, temperature, passages and "
        "number of candidates. no_rubric; static; static_pool (static, as many candidates as an optimiser cost); "
        "untrained_policy; author (an agent with tools); optimized; policy (trained, under guiding_text); both "
        "(trained, under the optimised text); the ceilings insider and validation. null: no_rubric, static, author "
        "where it is enabled, optimized, and policy under the optimised text.",
    )
    same_decoder: bool | None = Field(
        None,
        description="Sample the rubrics of all variants as those of the policy: by transformers, with the temperature "
        "and max_tokens of optimizers.policy. null: where arms are named. Without effect on a service's rubric model, "
        "which writes all rubrics anyway.",
    )
    pool: int | None = Field(
        None,
        ge=2,
        description="Candidates of the arm static_pool. null: as many as the policy training judged (without it, the "
        "prompt search) plus the candidates of another arm.",
    )
    insider_text: str | None = Field(
        None,
        min_length=10,
        description="Guiding text of the arm insider, by somebody who saw the validation questions.",
    )

    @property
    def one_decoder(self) -> bool:
        """Whether the rubrics of all variants are sampled alike."""
        return self.arms is not None if self.same_decoder is None else self.same_decoder

    @property
    def first_round(self) -> int:
        """Candidates of a variant in its first round."""
        return max(self.pairs, round(self.pairs * self.oversample))

    @property
    def most_candidates(self) -> int:
        """The most candidates of a variant that are written while too few are valid."""
        return max(4 * self.first_round, CANDIDATES_OF_A_HANDFUL)


class Criterion(Section):
    """One thing that the judge scores."""

    name: str = Field(..., pattern=r"^[a-z][a-z0-9_]*$", max_length=40, description="Its name, in lower case.")
    asks: str = Field(..., min_length=5, description="What a full score means, in a sentence.")
    least: int | None = Field(None, ge=1, description="Least score of a valid pair; null: that of the judge.")


_CRITERIA = (
    Criterion(name="correct", asks="the answer is right, and the passage says so"),
    Criterion(name="well_formed", asks="question and answer are whole, grammatical and free of debris"),
    Criterion(name="answerable", asks="somebody who knows the field can answer it as it stands, and in one way"),
    Criterion(name="useful", asks="it asks for something of the passage that is worth knowing"),
)


class Judge(Section):
    """How `models.judge` judges pairs that pass all other checks."""

    mode: Literal["check", "column"] = Field(
        "check",
        description="check: a pair below the least score of a criterion is invalid, and one whose verdict cannot be "
        "read is not judged. column: the scores are kept and change nothing.",
    )
    scale: int = Field(5, ge=2, le=100, description="The best score; the worst is 1.")
    least: int = Field(3, ge=1, description="Least score of a valid pair, of each criterion.")
    criteria: tuple[Criterion, ...] = Field(_CRITERIA, min_length=1, description="What is scored.")

    def least_of(self, criterion: Criterion) -> int:
        """The least score of a criterion."""
        return self.least if criterion.least is None else criterion.least

    @model_validator(mode="before")
    @classmethod
    def _model_elsewhere(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "model" in raw:
            raise ValueError("the model that judges is models.judge; name it there, and here what it judges by")
        return raw

    @model_validator(mode="after")
    def _possible(self) -> Judge:
        names = [criterion.name for criterion in self.criteria]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"criteria: {twice!r} is there twice; rename one")
        high = next((c.name for c in self.criteria if self.least_of(c) > self.scale), None)
        if high is not None:
            raise ValueError(f"criteria: {high} asks for more than the best score, scale: {self.scale}; lower least")
        return self


class Checks(Extended):
    """Validity checks; a pair that fails one is invalid and the check is named."""

    later: ClassVar[tuple[str, ...]] = ("redrafts",)

    redrafts: int = Field(
        0,
        ge=0,
        le=5,
        description="How often a pair that fails a check is written again under its rubric: by a chat model with "
        "what was wrong, by others with another seed. The first valid draft counts; if none is, the pair is invalid.",
    )
    disabled: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        (), description="Names of checks that are not run."
    )
    unsafe_words: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        (), description="Words and phrases that no pair may hold."
    )
    plugins: Annotated[tuple[Annotated[str, named(CHECKS)], ...], BeforeValidator(_several)] = Field(
        (),
        description="Your own checks: registered names or `package.module:name`; in Python also functions themselves.",
    )
    judge: Judge = Judge()
