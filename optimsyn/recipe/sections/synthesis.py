"""The sections `synthesis` and `checks` of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from optimsyn.base.extensions import reference_to
from optimsyn.recipe.sections.models import Section

Variant = Literal["no_rubric", "static", "optimized", "policy"]


class Synthesis(Section):
    """The final pairs of every variant."""

    pairs: int = Field(24, ge=2, description="Valid pairs a variant; the same number for each.")
    oversample: float = Field(1.5, ge=1, le=1000, description="Candidates written per pair kept.")
    select: Literal["set", "influence", "first"] = Field(
        "set",
        description="Which valid candidates are kept. set: those that help the questions most together, by a training "
        "predicted from gradients. influence: those of highest single influence. first: the first ones.",
    )
    dataset: Literal["auto", "no_rubric", "static", "optimized", "policy"] = Field(
        "auto", description="Variant that becomes the final dataset; auto: the last one that was learned."
    )


class Checks(Section):
    """Validity checks; a pair that fails one is invalid and the check is named."""

    disabled: tuple[str, ...] = Field((), description="Names of checks that are not run.")
    unsafe_words: tuple[str, ...] = Field((), description="Words and phrases that no pair may hold.")
    plugins: tuple[str, ...] = Field(
        (),
        description="Your own checks: registered names or `package.module:name`; in Python also functions themselves.",
    )

    @field_validator("plugins", mode="before")
    @classmethod
    def _by_reference(cls, value: Any) -> Any:
        """Replaces functions that Python code passes by their `package.module:name`."""
        if not isinstance(value, list | tuple):
            return value
        return [reference_to(part, "checks.plugins") if callable(part) else part for part in value]
