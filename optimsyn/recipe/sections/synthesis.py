"""The sections `synthesis` and `checks` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from optimsyn.recipe.sections.models import Section, by_reference

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
    plugins: Annotated[tuple[str, ...], by_reference("checks.plugins")] = Field(
        (),
        description="Your own checks: registered names or `package.module:name`; in Python also functions themselves.",
    )
