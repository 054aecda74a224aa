"""The methods of both optimisers: their interfaces, and the built-in ones.

Nothing heavy is imported before a method runs, so that `optimsyn validate` can look one up.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import POLICY_OPTIMIZERS, PROMPT_OPTIMIZERS, Registry, call_problem
from optimsyn.base.source_identity import source_identity

if TYPE_CHECKING:
    from optimsyn.optimize.policy_task import PolicyTask
    from optimsyn.optimize.prompt_task import PromptTask
    from optimsyn.recipe.recipe import Recipe


class PromptMethod(Protocol):
    """Searches for a better guiding text: a function of one `PromptTask`, or such a callable object.

    The task judges texts by the reward of the run, enforces the budget of judged pairs, keeps the history, and compares
    the returned text with the start text: one that gains nothing is dropped. A killed search restarts from the
    beginning and gets its earlier answers from the cache, so a method that draws only from `task.seed` takes the same
    path and pays for nothing twice.

    An object may also have a method `problem(recipe) -> str | None`. It says, before anything is paid for, what this
    recipe lacks for the method.
    """

    def __call__(self, task: PromptTask) -> str:
        """The guiding text to keep; `task.start` if none is better."""


class PolicyMethod(Protocol):
    """Trains the rubric model: a function of one `PolicyTask`, or such a callable object.

    The task builds the prompts, loads the model, calls the reward, enforces the budget of judged pairs and keeps the
    history. Files in `task.checkpoints` survive a kill, until the method returns; a training with other settings, other
    passages or another version of the method starts from the beginning.

    An object may also have a method `problem(recipe) -> str | None`, as a `PromptMethod`.
    """

    def __call__(self, task: PolicyTask) -> Path:
        """The folder of the trained adapter, from `task.save(model)`."""


def gepa(task: PromptTask) -> str:
    """`dspy.GEPA`: tries a proposal on a few passages first, and rewrites the text from the feedback."""
    from optimsyn.optimize.gepa import search

    return search(task)


def halving(task: PromptTask) -> str:
    """Successive halving: many proposals on few passages, the better half on twice as many, and so on."""
    from optimsyn.optimize.halving import search

    return search(task)


class _MIPROv2:
    """`dspy.MIPROv2`: a reflection model proposes texts from examples, and Optuna chooses which to try."""

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


class _Grpo:
    """TRL's `GRPOTrainer`: of several rubrics for one passage, those with a higher reward become more likely."""

    def __call__(self, task: PolicyTask) -> Path:
        from optimsyn.optimize.grpo import train

        return train(task)

    def problem(self, recipe: Recipe) -> str | None:
        """What the installation lacks."""
        if recipe.optimizers.policy.learn_from:
            return "learn_from is for expert and dpo, since grpo learns from its own rubrics alone; set method: expert"
        sampler = recipe.optimizers.policy.sampler
        if sampler.startswith("vllm") and find_spec("vllm") is None:
            return f"sampler: {sampler} needs the package vllm; pip install 'optimsyn[vllm]', or use transformers"
        return None


class _InRounds:
    """Rounds of sampling, judging and training on all rubrics judged so far."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, task: PolicyTask) -> Path:
        from optimsyn.optimize.rounds import training
        from optimsyn.optimize.rounds.loop import train

        return train(task, {"expert": training.on_the_best, "dpo": training.on_preferences}[self.name])

    def problem(self, recipe: Recipe) -> str | None:
        """What of the recipe it cannot follow."""
        config = recipe.optimizers.policy
        if (config.sampler, config.steps_ahead) != ("transformers", 1):
            return f"sampler and steps_ahead are for grpo; leave them out with {self.name}"
        if self.name == "dpo" and config.kl == 0:
            return "dpo learns nothing with kl: 0, since its loss is of kl times the change; use 0.02, or up to 0.5"
        if recipe.reward.given == "judged":
            return (
                f"{self.name} compares rewards of different rounds, which reward.given: judged lowers from round to "
                "round; set reward.given: nothing"
            )
        return None


def _problem(part: object) -> str | None:
    wanted = "write a function of one argument, the task"
    if inspect.isclass(part):
        return f"it is a class; {wanted}, or name an object of the class"
    if not callable(part):
        return f"it cannot be called; {wanted}"
    problem = call_problem(part, "the task")
    return None if problem is None else f"{problem}; {wanted}"


PROMPT_OPTIMIZERS.provide({"gepa": gepa, "halving": halving, "miprov2": _MIPROv2()}, _problem)
POLICY_OPTIMIZERS.provide({"grpo": _Grpo(), "expert": _InRounds("expert"), "dpo": _InRounds("dpo")}, _problem)


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
    """The source of a custom method, by module; empty for a built-in one.

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
    """A method in the manifest: its name, and for a custom one a digest of its source.

    Args:
        registry: `PROMPT_OPTIMIZERS` or `POLICY_OPTIMIZERS`.
        reference: What the recipe calls it.
    """
    from optimsyn.reward.judgements import digest

    own = method_identity(registry, reference)
    return {"method": reference, **({"source": digest(own)} if own else {})}


def method_problems(recipe: Recipe) -> list[str]:
    """The problems of a recipe's methods, each with its field; only for enabled optimisers."""
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
        try:
            lacking = asked(recipe) if callable(asked) else None
        except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything; it is reported
            lacking = f"`problem` of {section.method!r} raised {type(error).__name__}: {error}; fix it"
        if lacking is not None:
            problems.append(f"{registry.field}: {lacking}")
    return problems
