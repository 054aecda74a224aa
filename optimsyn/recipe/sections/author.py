"""The section `author` of a recipe: an agent that writes rubrics with tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from optimsyn.recipe.sections.models import ModelSpec, Section

if TYPE_CHECKING:
    from optimsyn.recipe.sections.models import Models
    from optimsyn.recipe.sections.optimizers import Optimizers
    from optimsyn.recipe.sections.synthesis import Synthesis


class Author(Section):
    """The author, who writes the rubric for a passage with tools: search, read, draft, have a pair written, score.

    It is off by default. `steps`, `drafts`, `tokens` and `cost_usd` are of one rubric; `limits` are of the run.
    """

    enabled: bool = Field(
        False, description="Adds the variant author. Naming the arm author in synthesis.arms does the same."
    )
    decides: Literal["auto", "model", "plan"] = Field(
        "auto",
        description="Who calls the tools. model: the model, step by step. plan: nobody chooses; all drafts are written "
        "and scored, and the best is kept. auto: the model if it follows instructions, the plan for a base model.",
    )
    steps: int = Field(12, ge=2, le=100, description="Most replies of the model for a rubric.")
    drafts: int = Field(3, ge=1, le=50, description="Most pairs that are written and scored for a rubric.")
    tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens for a rubric, read and written, with those of its pairs; when they are used, nothing more "
        "is asked and the best draft is taken.",
    )
    cost_usd: float | None = Field(None, gt=0, description="The same in US dollars; all prices must be known.")
    text: Literal["own", "optimized"] = Field(
        "own",
        description="Guiding text that it follows: the recipe's, or the one that optimize_prompt found; see "
        "optimizers.prompt.program.",
    )
    lessons: int = Field(
        8,
        ge=1,
        description="Passages that it works on for the policy to learn from; see optimizers.policy.learn_from.",
    )


# A recipe without this section keeps its fingerprint.
AUTHOR_OFF = Author()


def author_model(models: Models) -> ModelSpec:
    """The model that calls the tools: `models.author`, or the rubric model."""
    return models.rubric if models.author is None else models.author


def works(author: Author, synthesis: Synthesis) -> bool:
    """Whether the author is a variant of the recipe."""
    return author.enabled if synthesis.arms is None else "author" in synthesis.arms


def at_work(author: Author, synthesis: Synthesis, optimizers: Optimizers) -> bool:
    """Whether the author makes pairs, or rubrics that the policy learns from."""
    return works(author, synthesis) or (optimizers.policy.enabled and "author" in optimizers.policy.learn_from)


def author_problems(author: Author, synthesis: Synthesis, optimizers: Optimizers, models: Models) -> list[str]:
    """What a recipe with an author lacks, a sentence each."""
    searched = "optimizers.prompt.program: author improves the text of the variant author, and"
    if optimizers.prompt.for_author and not works(author, synthesis):
        cure = "set author.enabled: true" if synthesis.arms is None else "name the arm author"
        place = "author.enabled is false" if synthesis.arms is None else "synthesis.arms does not name it"
        return [f"{searched} {place}; {cure}, or set program: rubric"]
    if not at_work(author, synthesis, optimizers):
        if models.author is not None:
            return ["models.author is named, and no author works: set author.enabled: true, or remove models.author"]
        return []
    problems = []
    spec, field = author_model(models), "models.rubric" if models.author is None else "models.author"
    if author.decides == "model" and spec.provider == "embedded":
        problems.append(
            f"author.decides: model needs a model that follows instructions, and {field} is 'embedded', a base model; "
            "set author.decides to auto or plan, or name a chat model in models.author"
        )
    slow = {field: spec, "models.rubric": models.rubric, "models.generator": models.generator}
    problems += [
        f"{name}.batch: the author waits for the reply to each step, and a batch takes up to hours; set it to false"
        for name, each in slow.items()
        if each.batch
    ]
    if optimizers.prompt.for_author and author.text == "own":
        problems.append(f"{searched} with author.text: own it follows the recipe's; set author.text: optimized")
    if author.text == "optimized" and not optimizers.prompt.enabled:
        problems.append(
            "author.text: optimized needs optimizers.prompt, which is disabled; enable it, or set it to own"
        )
    return problems
