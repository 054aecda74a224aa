"""The methods of both optimisers: what one has to be, and those that come with optimsyn.

Nothing heavy is imported before a method runs, so that `optimsyn validate` can look one up.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import POLICY_OPTIMIZERS, PROMPT_OPTIMIZERS, Registry
from optimsyn.base.source_identity import source_identity

if TYPE_CHECKING:
    from optimsyn.optimize.policy_task import PolicyTask
    from optimsyn.optimize.prompt_task import PromptTask
    from optimsyn.recipe.recipe import Recipe


class PromptMethod(Protocol):
    """Searches for a better guiding text: a function of one `PromptTask`, or an object that can be called so.

    The task judges texts by the one reward of the run, holds the method to the budget of judged pairs, keeps the
    history, and compares the text that the method returns with the one that it started from: one that gained nothing
    is not taken. A search that was killed is started again from its beginning; it then gets what it had asked for out
    of memory, so a method that draws only from `task.seed` takes the same path and buys nothing twice.

    An object may also have a method `problem(recipe) -> str | None`. It says, before anything is bought, what this
    recipe lacks for the method.
    """

    def __call__(self, task: PromptTask) -> str:
        """The guiding text to keep; `task.start` where nothing better was found."""


class PolicyMethod(Protocol):
    """Trains the rubric model: a function of one `PolicyTask`, or an object that can be called so.

    The task lays out the prompts, loads the model, calls the reward, holds the method to the budget of judged pairs
    and keeps the history. What the method leaves in `task.checkpoints` is there again after a kill, until it returns;
    a training with other settings, other passages or another version of the method starts anew.

    An object may also have a method `problem(recipe) -> str | None`, as a `PromptMethod`.
    """

    def __call__(self, task: PolicyTask) -> Path:
        """The folder of the trained adapter, as `task.save(model)` gives it."""


def gepa(task: PromptTask) -> str:
    """`dspy.GEPA`: tries a proposal on a few passages first, and rewrites the text out of the feedback."""
    from optimsyn.optimize.gepa import search

    return search(task)


class _MIPROv2:
    """`dspy.MIPROv2`: a reflection model proposes texts out of examples, and Optuna chooses which to try."""

    def __call__(self, task: PromptTask) -> str:
        from optimsyn.optimize.mipro import search

        return search(task)

    def problem(self, recipe: Recipe) -> str | None:
        """What the recipe or the installation lacks."""
        if recipe.models.reflection is None:
            return "miprov2 has its texts written by a language model; name one in models.reflection"
        if find_spec("optuna") is None:
            return "miprov2 needs the package optuna; pip install 'optimsyn[mipro]'"
        return None


def grpo(task: PolicyTask) -> Path:
    """TRL's `GRPOTrainer`: of several rubrics for one passage, those that earned more become more likely."""
    from optimsyn.optimize.grpo import train

    return train(task)


def _problem(part: object) -> str | None:
    wanted = "write a function of one argument, the task"
    if inspect.isclass(part):
        return f"it is a class; {wanted}, or name an object of the class"
    if not callable(part):
        return f"it cannot be called; {wanted}"
    try:
        inspect.signature(part).bind(None)
    except TypeError:
        return f"it cannot be called with one argument; {wanted}"
    except ValueError:  # one that does not say what it takes
        return None
    return None


PROMPT_OPTIMIZERS.provide({"gepa": gepa, "miprov2": _MIPROv2()}, _problem)
POLICY_OPTIMIZERS.provide({"grpo": grpo}, _problem)


def prompt_method(reference: str) -> PromptMethod:
    """The method that `optimizers.prompt.method` names.

    Raises:
        RecipeError: There is none, or it is no such method.
    """
    method: PromptMethod = PROMPT_OPTIMIZERS.get(reference)
    return method


def policy_method(reference: str) -> PolicyMethod:
    """The method that `optimizers.policy.method` names.

    Raises:
        RecipeError: There is none, or it is no such method.
    """
    method: PolicyMethod = POLICY_OPTIMIZERS.get(reference)
    return method


def method_identity(registry: Registry[Any], reference: str) -> Mapping[str, str]:
    """The source of a method of somebody's own, by module; nothing of one that comes with optimsyn.

    Args:
        registry: `PROMPT_OPTIMIZERS` or `POLICY_OPTIMIZERS`.
        reference: What the recipe calls it.

    Raises:
        RecipeError: There is no such method, or it has no source.
    """
    if reference in registry.built_in:
        return {}
    return source_identity(reference, registry.get(reference), registry.field)


def method_facts(registry: Registry[Any], reference: str) -> dict[str, str]:
    """What the manifest says of a method: its name, and of one of somebody's own a digest of its source.

    Args:
        registry: `PROMPT_OPTIMIZERS` or `POLICY_OPTIMIZERS`.
        reference: What the recipe calls it.
    """
    from optimsyn.reward.judgements import digest

    own = method_identity(registry, reference)
    return {"method": reference, **({"source": digest(own)} if own else {})}


def method_problems(recipe: Recipe) -> list[str]:
    """What is wrong with the methods that a recipe names, each with its field; only of optimisers that are enabled."""
    problems = []
    sections = ((PROMPT_OPTIMIZERS, recipe.optimizers.prompt), (POLICY_OPTIMIZERS, recipe.optimizers.policy))
    for registry, section in sections:
        if not section.enabled:
            continue
        try:
            method = registry.get(section.method)
            method_identity(registry, section.method)
        except RecipeError as error:
            problems.append(str(error))
            continue
        asked = getattr(method, "problem", None)
        lacking = asked(recipe) if callable(asked) else None
        if lacking is not None:
            problems.append(f"{registry.field}: {lacking}")
    return problems
