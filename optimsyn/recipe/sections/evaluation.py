"""The sections `fine_tune` and `evaluation` of a recipe."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from optimsyn.recipe.sections.models import Extended, Section, TargetSpec, as_name


class FineTune(Extended):
    """Supervised fine-tuning of the target on each variant's pairs."""

    later: ClassVar[tuple[str, ...]] = ("target",)

    steps: int = Field(12, ge=1, description="AdamW steps, the same for each variant.")
    batch_size: int = Field(4, ge=1, description="Pairs a step.")
    lr: float = Field(2e-4, gt=0, description="Highest learning rate.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps over which the rate rises.")
    target: Annotated[TargetSpec | None, BeforeValidator(as_name)] = Field(
        None,
        description="Another model to fine-tune and evaluate on the pairs that `models.target` has scored, with the "
        "fields of `models.target`; null: `models.target` itself.",
    )


class Evaluation(Section):
    """Evaluation on the held-back test questions."""

    max_new_tokens: int = Field(16, ge=1, description="Longest decoded answer, in tokens.")
    batch_size: int = Field(16, ge=1, description="Questions asked at once.")
    tolerance: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Largest difference of a figure from the gold one that still counts as right, as a share of the "
        "larger one; 0: the same value.",
    )
    bootstrap: int = Field(2000, ge=100, description="Resamples behind each interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
