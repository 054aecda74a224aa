"""What the arms of a comparison are (`synthesis.arms`), and which of them a recipe can make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimsyn.recipe.sections.synthesis import Synthesis, Variant

if TYPE_CHECKING:
    from optimsyn.recipe.sections.models import ModelSpec
    from optimsyn.recipe.sections.optimizers import Optimizers

ARMS: tuple[Variant, ...] = (
    *("no_rubric", "static", "static_pool", "untrained_policy", "author", "optimized", "policy", "both"),
    *("insider", "validation"),
)
"""All arms, in the order of tables."""
CEILINGS: tuple[Variant, ...] = ("insider", "validation")
"""Arms that know the validation questions: for evaluation, never the dataset."""
TRAINED: tuple[Variant, ...] = ("policy", "both")
"""Arms whose rubrics the trained policy writes."""
_SEARCHED: tuple[Variant, ...] = ("optimized", "both")
_FOR_AUTHOR = (
    "optimizers.prompt.program is author, so the search finds a text for the author alone; remove the arm, or set "
    "program: rubric"
)
# Needs the weights of the rubric model.
_SAMPLED: tuple[Variant, ...] = ("untrained_policy", *TRAINED)


def has_weights(rubric: ModelSpec) -> bool:
    """Whether the rubric model's weights are on this machine, so that the policy's sampler can run it."""
    return rubric.provider in ("embedded", "local")


def under_own_text(variant: str, synthesis: Synthesis) -> bool:
    """Whether a variant's rubrics are written under the recipe's own guiding text.

    Among the arms of a comparison the policy differs from the untrained one in its weights alone. In a recipe without
    `arms` it is the product of both optimisers, as the arm `both` is.
    """
    if variant == "policy":
        return synthesis.arms is not None
    return variant in ("first_draft", "static", "static_pool", "untrained_policy", "author")


def under_second_text(variant: str, synthesis: Synthesis, optimizers: Optimizers) -> bool:
    """Whether a variant's rubrics are written under the text that was searched with the trained policy."""
    return optimizers.searched_again and variant in TRAINED and not under_own_text(variant, synthesis)


def trained_as(synthesis: Synthesis) -> Variant:
    """The variant under whose guiding text the policy is trained."""
    return "both" if synthesis.arms is not None and "policy" not in synthesis.arms else "policy"


def arm_problems(synthesis: Synthesis, optimizers: Optimizers, rubric: ModelSpec) -> list[str]:
    """What the arms of a recipe lack, a sentence each."""
    arms, problems = synthesis.arms, []
    if synthesis.pool is not None and "static_pool" not in (arms or ()):
        problems.append("synthesis.pool is the size of the arm static_pool; name it in synthesis.arms, or remove pool")
    if synthesis.insider_text is not None and "insider" not in (arms or ()):
        problems.append("synthesis.insider_text is for the arm insider; name it in synthesis.arms, or remove the text")
    if arms is None:
        return problems
    if len(set(arms)) < len(arms):
        problems.append(f"synthesis.arms: {next(arm for arm in arms if arms.count(arm) > 1)} is named twice")
    if not set(arms) - set(CEILINGS):
        problems.append(
            f"synthesis.arms: {', '.join(arms)} know the validation questions and make no dataset; name one that does, "
            "such as static"
        )
    if not has_weights(rubric):
        problems += _named(
            arms,
            _SAMPLED,
            f"models.rubric is {rubric.name!r}, whose weights are not here; remove the arm, or name a local or hub "
            "model or `embedded`",
        )
    elif not optimizers.policy.enabled:
        problems += _named(arms, TRAINED, "optimizers.policy is disabled; enable it, or remove the arm")
    if not optimizers.prompt.enabled:
        problems += _named(arms, _SEARCHED, "optimizers.prompt is disabled; enable it, or remove the arm")
    elif optimizers.prompt.for_author:
        problems += _named(arms, _SEARCHED, _FOR_AUTHOR)
    if "static_pool" in arms:
        problems += _pool_problems(synthesis, optimizers)
    if "insider" in arms and synthesis.insider_text is None:
        problems.append(
            "synthesis.arms names insider: give synthesis.insider_text, a guiding text by somebody who saw the "
            "validation questions"
        )
    return problems


def idle_optimizers(synthesis: Synthesis, optimizers: Optimizers) -> list[str]:
    """Warnings about optimisers whose result no arm uses."""
    if synthesis.arms is None:
        return []
    by_cost = "static_pool" in synthesis.arms and synthesis.pool is None
    policy_used = bool(set(synthesis.arms) & set(TRAINED)) or by_cost
    # Without a policy, the prompt search says what the pool may cost.
    readers = ("author",) if optimizers.prompt.for_author else _SEARCHED
    prompt_used = bool(set(synthesis.arms) & set(readers)) or (by_cost and not optimizers.policy.enabled)
    parts = (("policy", optimizers.policy.enabled, policy_used), ("prompt", optimizers.prompt.enabled, prompt_used))
    idle = [
        f"optimizers.{name} is enabled, but no arm of synthesis.arms uses what it learns; set "
        f"optimizers.{name}.enabled: false to save its time"
        for name, enabled, used in parts
        if enabled and not used
    ]
    if optimizers.searched_again and not any(under_second_text(arm, synthesis, optimizers) for arm in synthesis.arms):
        idle.append(
            "optimizers.turns is 2, but no arm of synthesis.arms is written under the text of the second search; name "
            "the arm both, or set optimizers.turns: 1 to save its time"
        )
    return idle


def _pool_problems(synthesis: Synthesis, optimizers: Optimizers) -> list[str]:
    if synthesis.pool is None and not (optimizers.policy.enabled or optimizers.prompt.enabled):
        return [
            "synthesis.arms names static_pool, which costs as much as an optimiser does, and both are disabled; give "
            "its number of candidates in synthesis.pool"
        ]
    if synthesis.pool is not None and synthesis.pool < synthesis.first_round:
        return [
            f"synthesis.pool is {synthesis.pool}, less than the {synthesis.first_round} candidates of every other arm "
            "(pairs times oversample)"
        ]
    return []


def _named(arms: Sequence[Variant], some: Sequence[Variant], problem: str) -> list[str]:
    return [f"synthesis.arms names {arm}: {problem}" for arm in arms if arm in some]
