"""What an author asks for, before any step is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.recipe.sections.arms import has_weights
from optimsyn.recipe.sections.author import author_model, works
from optimsyn.runs.forecast import Range

if TYPE_CHECKING:
    from optimsyn.machine.forecast.lengths import Kind
    from optimsyn.recipe.recipe import Recipe

# One draft, its score, the end.
_FEWEST_STEPS = 3
# Steps that are neither of a draft nor its score: a look at the questions, a search, the end.
_FURTHER_STEPS = 3


def author_makes(recipe: Recipe, rubrics: Range) -> list[tuple[Kind, Range]]:
    """Requests for so many rubrics of the variant author; the first draft of its plan may be that of the static one."""
    if not works(recipe.author, recipe.synthesis):
        return []
    known = {"static", "static_pool"} & set(recipe.variants) and recipe.author.text == "own"
    return author_asks(recipe, rubrics, shared=1 if known else 0)


def author_teaches(recipe: Recipe, passages: int) -> list[tuple[Kind, Range]]:
    """Requests for the rubrics that the policy learns from; `passages` is 0 where they are not read yet."""
    policy = recipe.optimizers.policy
    if not (policy.enabled and "author" in policy.learn_from):
        return []
    lessons = recipe.author.lessons
    if passages:
        lessons = min(lessons, passages - policy.held(passages))
    return author_asks(recipe, Range.exactly(float(lessons)))


def author_asks(recipe: Recipe, rubrics: Range, *, shared: int = 0) -> list[tuple[Kind, Range]]:
    """Requests for so many rubrics of the author, `shared` drafts of each of which are known."""
    config = recipe.author
    drafts = float(config.drafts)
    if config.decides == "plan" or (config.decides == "auto" and author_model(recipe.models).provider == "embedded"):
        sampled = recipe.synthesis.one_decoder and has_weights(recipe.models.rubric)
        # Writers repeat themselves, and equal drafts have one pair.
        new = rubrics * Range(low=max(1.0, 0.5 * drafts) - shared, expected=drafts - shared, high=drafts)
        return [("policy" if sampled else "rubric", new), ("pair", new)]
    most = float(config.steps)
    steps = Range(low=min(most, _FEWEST_STEPS), expected=min(most, 2 * drafts + _FURTHER_STEPS), high=most)
    return [("author", rubrics * steps), ("pair", rubrics * Range(low=1.0, expected=drafts, high=drafts))]
