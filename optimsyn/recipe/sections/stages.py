"""The section `stages` of a recipe: stages of your own between the built-in ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from optimsyn.base.extensions import STAGES as OWN_STAGES
from optimsyn.base.suggestions import did_you_mean
from optimsyn.recipe.sections.models import Section
from optimsyn.recipe.sections.parts import named

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
    run: Annotated[str, named(OWN_STAGES)] = Field(
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
    """The names of all stages in running order; several after one stage keep the order of the recipe."""
    order: list[str] = []

    def take(name: str) -> None:
        order.append(name)
        for stage in own:
            if stage.after == name:
                take(stage.name)

    for name in STAGES:
        take(name)
    return tuple(order)


def order_problems(own: Sequence[OwnStage]) -> list[str]:
    """Names that are taken, and stages that follow one that is not there."""
    names = [*STAGES, *(stage.name for stage in own)]
    problems = []
    for stage in own:
        if names.count(stage.name) > 1:
            holder = "a built-in stage" if stage.name in STAGES else "two stages"
            problems.append(f"{stage.name!r} is the name of {holder}; call yours something else")
        if stage.name in _TAKEN:
            problems.append(f"a run has a folder {stage.name!r} already; call the stage something else")
        if stage.after not in names:
            hint = did_you_mean(stage.after, names, f"the stages are {', '.join(names)}")
            problems.append(f"{stage.name} is to run after {stage.after!r}, which is no stage; {hint}")
    if not problems:
        order = ordered(own)
        lost = [stage.name for stage in own if stage.name not in order]
        problems += [f"{', '.join(lost)} follow each other, but no built-in stage"] if lost else []
    return list(dict.fromkeys(problems))
