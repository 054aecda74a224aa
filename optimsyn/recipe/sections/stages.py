"""The section `stages` of a recipe: stages of your own between the built-in ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from optimsyn.base.suggestions import did_you_mean
from optimsyn.recipe.sections.models import Section, by_reference

STAGES = tuple("prepare warm_up optimize_prompt train_policy synthesize fine_tune evaluate".split())
"""The built-in stages, in order."""
# Folders of a run that belong to no stage.
_TAKEN = frozenset({"dataset", "notebooks", "batches"})


class OwnStage(Section):
    """A stage of your own, which runs after another one."""

    name: str = Field(
        ...,
        pattern=r"^[a-z][a-z0-9_]*$",
        max_length=40,
        description="Its name, in lower case, and that of its folder in the run.",
    )
    after: str = Field(..., description="The stage that it follows: a built-in one, or one of these.")
    run: Annotated[str, by_reference("stages.run")] = Field(
        "",
        description="Its function: `package.module:name`, a registered name, or an entry point of the group "
        "`optimsyn.stages`; empty: the function registered under its `name`.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="JSON values for the function, in `stage.options`."
    )

    @property
    def reference(self) -> str:
        """The name of its function."""
        return self.run or self.name


def ordered(own: Sequence[OwnStage]) -> tuple[str, ...]:
    """The names of all stages in running order; several after one stage keep the order of the recipe.

    Raises:
        ValueError: A name is taken, or a stage follows one that is not there.
    """
    names = [*STAGES, *(stage.name for stage in own)]
    for stage in own:
        if names.count(stage.name) > 1:
            holder = "a built-in stage" if stage.name in STAGES else "two stages"
            raise ValueError(f"stages: {stage.name!r} is the name of {holder}; call yours something else")
        if stage.name in _TAKEN:
            raise ValueError(f"stages: a run has a folder {stage.name!r} already; call the stage something else")
        if stage.after not in names:
            hint = did_you_mean(stage.after, names, f"the stages are {', '.join(names)}")
            raise ValueError(f"stages: {stage.name} is to run after {stage.after!r}, which is no stage; {hint}")
    order: list[str] = []

    def take(name: str) -> None:
        order.append(name)
        for stage in own:
            if stage.after == name:
                take(stage.name)

    for name in STAGES:
        take(name)
    lost = [stage.name for stage in own if stage.name not in order]
    if lost:
        raise ValueError(f"stages: {', '.join(lost)} follow each other, but no built-in stage")
    return tuple(order)
