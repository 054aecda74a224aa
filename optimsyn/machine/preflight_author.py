"""What an author needs on this machine, and where nobody chooses its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.llm.hosted.capabilities import listed, price_problem
from optimsyn.machine.hub_lookup import cached_folder
from optimsyn.recipe.sections.author import AUTHOR_OFF, at_work, author_model
from optimsyn.recipe.sizes import TINY_LESSONS
from optimsyn.reward.author.library import search_problem

if TYPE_CHECKING:
    from optimsyn.machine.preflight_result import Preflight
    from optimsyn.recipe.recipe import ModelSpec, Recipe

# Modes in LiteLLM's list of models that answer in a chat.
_CHATS = ("chat", "responses")


def check_author(recipe: Recipe, preflight: Preflight) -> None:
    """Adds the problems and warnings of a recipe's author; none where no author works."""
    config = recipe.author
    preflight.warnings += _idle_lessons(recipe)
    prompt = recipe.optimizers.prompt
    if prompt.program == "author" and not prompt.enabled:
        preflight.warnings.append(
            "optimizers.prompt.program: author has no effect while optimizers.prompt.enabled is false"
        )
    if config.enabled and recipe.synthesis.arms is not None and "author" not in recipe.synthesis.arms:
        preflight.warnings.append(
            "author.enabled is true, and synthesis.arms does not name author, so it makes no pairs; add the arm"
        )
    if not at_work(config, recipe.synthesis, recipe.optimizers):
        return
    lacking = search_problem()
    preflight.problems += [f"author: {lacking}"] if lacking is not None else []
    field = "models.rubric" if recipe.models.author is None else "models.author"
    spec = author_model(recipe.models)
    why = _no_steps(spec)
    if why is not None and config.decides == "auto":
        preflight.warnings.append(
            f"author: {field} {spec.name!r} {why}, so nobody chooses: {config.drafts} drafts of a passage are written "
            "and scored, and the best is kept. Name a chat model in models.author for an author that decides"
        )
    elif why is not None and config.decides == "model":
        preflight.problems.append(
            f"author.decides: model needs a model that takes steps as it is told, and {field} {spec.name!r} {why}; "
            "name a chat model in models.author, or set author.decides to auto or plan"
        )
    mode = (listed(spec) or {}).get("mode", "chat") if spec.provider == "litellm" else "chat"
    if mode not in _CHATS and config.decides != "plan":
        preflight.problems.append(
            f"author: LiteLLM lists {field} {spec.name!r} as a model of mode {mode}, not of chat, which cannot take "
            "the author's steps; name a chat model in models.author, or set author.decides: plan"
        )
    if config.cost_usd is not None:
        priced = {field: spec, "models.rubric": recipe.models.rubric, "models.generator": recipe.models.generator}
        problems = (price_problem(name, each, "author.cost_usd") for name, each in priced.items())
        preflight.problems += [problem for problem in problems if problem is not None]


def _idle_lessons(recipe: Recipe) -> list[str]:
    """A note where `author.lessons` has no effect."""
    policy, lessons = recipe.optimizers.policy, recipe.author.lessons
    # Those that nobody has written into the recipe.
    if lessons in (AUTHOR_OFF.lessons, TINY_LESSONS) or (policy.enabled and "author" in policy.learn_from):
        return []
    why = "is set" if policy.enabled else "and optimizers.policy.enabled are set"
    return [
        f"author.lessons: {lessons} has no effect before optimizers.policy.learn_from: [author] {why}; the policy "
        "learns nothing from the author"
    ]


def _no_steps(spec: ModelSpec) -> str | None:
    """Why a model on this machine cannot take steps, as far as its files say; None: it can, or they are not here."""
    if spec.provider == "embedded":
        return "is a base model that follows no instructions and calls no tools"
    if spec.provider != "local":
        return None
    folder = Path(spec.name).expanduser()
    place = folder if folder.is_dir() else cached_folder("model", spec.name, spec.revision)
    if place is None or any(place.glob("chat_template*")):
        return None
    try:
        settings = json.loads((place / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return None if settings.get("chat_template") else "has no chat template: it is a base model"
