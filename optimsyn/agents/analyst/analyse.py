"""The analyst: an agent whose whole work is a notebook of tool calls, within a budget.

from optimsyn.agents import analyse

analyse("Which guiding text helps most?", recipe="mine.yaml", budget=2.0, model="openai/gpt-6-luna")
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optimsyn.agents.analyst.defaults import BUDGET, BUYS, STEPS
from optimsyn.agents.analyst.notebook import AnalystNotebook, facts_in, literal, plain
from optimsyn.agents.analyst.readiness import refuse_unusable, refuse_weak
from optimsyn.agents.analyst.work import Analysis, Ask, Say, Work, kept_of, set_budget
from optimsyn.agents.guard import Guard
from optimsyn.base.counting import plural
from optimsyn.base.environment import ANALYST_MODEL, variable
from optimsyn.base.errors import ModelError, ParameterError, RecipeError
from optimsyn.base.secrets.redaction import KEY_CURE, find_secret, redact
from optimsyn.base.version import __version__
from optimsyn.recipe.problems import explain
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.models import ModelSpec

_LONGEST_GOAL = 4000
_LEAST_TOKENS = 4000


@dataclass(frozen=True)
class Allowed:
    """What a person allows an analyst; see `Workbench`."""

    budget: float = BUDGET
    hosted: bool = False
    plugins: bool = False
    addresses: Sequence[str] = ()


def analyse(  # noqa: PLR0913 - keyword-only options, each with a default
    goal: str,
    *,
    recipe: str = "quickstart",
    root: Path | str = ".",
    budget: float = BUDGET,
    model: str | Mapping[str, Any] | None = None,
    steps: int = STEPS,
    allow_hosted: bool = False,
    allow_plugins: bool = False,
    addresses: Sequence[str] = (),
    notebook: Path | str | None = None,
    ask: Ask | None = None,
    say: Say | None = None,
) -> Analysis:
    """Lets an agent work towards a goal, in a notebook of its own.

    Args:
        goal: What you want, in words.
        recipe: The recipe to begin with: a file inside the root, or the name of a bundled one.
        root: The only folder that it may read and write.
        budget: US dollars that all it does may cost, its own replies included; 0 for free models only.
        model: The model that chooses the steps: a name, or fields of a recipe's model; None: the environment variable
            `OPTIMSYN_ANALYST_MODEL`, else the recipe's generator.
        steps: The most steps.
        allow_hosted: It and its recipes may use services, which get texts of your documents.
        allow_plugins: Recipes may name code, which then runs with your rights.
        addresses: Hosts that `api_base` may name beside this machine.
        notebook: The notebook to write; it must not exist. None: named after the goal, in the root.
        ask: Asks you whether the budget may be raised; without it, the work stops there.
        say: Shows you each step as it is done.

    Raises:
        ParameterError: An argument is wrong.
        RecipeError: There is no such recipe.
        ModelError: The model cannot do it, may not be used, or its key is not set; nothing has been written then.
        StageError: The notebook's kernel does not start or died; `go_on` continues.

    Example:
        >>> analyse("Is the reward sound?", recipe="mine.yaml", model="openai/gpt-6-luna")   # doctest: +SKIP
    """
    place = Path(root)
    if not place.is_dir():
        raise ParameterError(f"root: there is no folder {root}; create it, or name another one")
    if not goal.strip():
        raise ParameterError("goal: is empty; say in a sentence what you want to know or have")
    if budget < 0:
        raise ParameterError(f"budget: {budget:g} is below 0; give US dollars")
    goal = " ".join(goal.split())[:_LONGEST_GOAL]
    file = Guard(place).file_of(recipe)
    spec = _model_spec(model, Recipe.load(file))
    path = Path(notebook) if notebook is not None else _free(place, goal)
    if path.suffix != ".ipynb":
        raise ParameterError(f"notebook: {path} is no .ipynb file; name one")
    if path.exists():
        raise ParameterError(f"notebook: {path} exists already; continue it, or give another file name")
    allowed = Allowed(budget, allow_hosted, allow_plugins, addresses)
    refuse_unusable(spec, Guard(place, allow_hosted=allow_hosted, allow_plugins=allow_plugins, addresses=addresses))
    if say is not None:
        say(_bounds(budget, steps, spec.name, path))
    title = (
        f"# {plain(goal)}\n\nWritten by the analyst of optimsyn {__version__}, with the model {plain(spec.name)}, from "
        f"the recipe {plain(recipe)}. Each step is a cell that can be run again; change one, and "
        f"`optimsyn agent --continue {shlex.quote(path.name)}` goes on from it."
    )
    made = AnalystNotebook.create(path, title, _setup(path, place, allowed))
    made.facts().update({"goal": redact(goal), "recipe": recipe, "model": spec.model_dump(exclude_defaults=True)})
    made.save()
    return Work(made, spec, steps, ask, say).to_its_end()


def go_on(  # noqa: PLR0913 - keyword-only options, each with a default
    notebook: Path | str,
    *,
    goal: str = "",
    budget: float | None = None,
    model: str | Mapping[str, Any] | None = None,
    steps: int = STEPS,
    ask: Ask | None = None,
    say: Say | None = None,
) -> Analysis:
    """Continues the work of a notebook: what a person has changed runs again, then the agent goes on.

    Args:
        notebook: A notebook of `analyse`; permissions and budget are those of its first code cell.
        goal: A further wish; it is written into the notebook.
        budget: Another budget, written into the first code cell; None: as it stands there.
        model: Another model; None: the same.
        steps: The most further steps.
        ask: As for `analyse`.
        say: As for `analyse`.

    Raises:
        DataError: It is no notebook of an analyst.
        ModelError, StageError: As `analyse`.
    """
    path = Path(notebook)
    spec = _model_spec(facts_in(path).get("model") if model is None else model, None)
    refuse_unusable(spec)
    made = AnalystNotebook.load(path)
    facts = made.facts()
    facts.update({"model": spec.model_dump(exclude_defaults=True)})
    made.drop_end()
    if budget is not None:
        set_budget(made, budget, "A person has set the budget")
    if goal.strip():
        facts["goal"] = redact(f"{facts.get('goal', '')} Then: {' '.join(goal.split())[:_LONGEST_GOAL]}".strip())
        made.say(f"The person adds: {plain(goal)}")
    made.save()
    return Work(made, spec, steps, ask, say).to_its_end()


def _model_spec(model: str | Mapping[str, Any] | None, recipe: Recipe | None) -> ModelSpec:
    """The model that chooses the steps.

    Raises:
        ModelError: None is named that could.
        RecipeError: Its fields are wrong.
    """
    if model is None and (named := variable(ANALYST_MODEL)):
        model = named
    if model is None and recipe is not None:
        generator = recipe.models.generator
        if generator.provider in ("embedded", "own"):
            raise ModelError(
                f"the analyst's model: none is named, and the recipe's generator, {generator.name}, cannot plan; name "
                f"a chat model with --model (such as openai/gpt-6-luna) or in the variable {ANALYST_MODEL}"
            )
        # As the recipe describes the service, without what is for writing pairs.
        kept = generator.model_dump(exclude_defaults=True, exclude={"batch", "batch_hours", "structured_output"})
        model = {**kept, "max_tokens": max(generator.max_tokens, _LEAST_TOKENS), "max_tokens_again": None}
    if model is None:
        raise ModelError("the analyst's model: none is named; name a chat model with --model")
    raw = {"name": model} if isinstance(model, str) else dict(model)
    secret = find_secret(raw)
    if secret is not None:
        raise RecipeError(f"the analyst's model: {secret}; {KEY_CURE}")
    try:
        spec = ModelSpec.model_validate({"temperature": 0.0, "max_tokens": _LEAST_TOKENS, **raw})
    except ValidationError as error:
        lines = [explain(item, ModelSpec) for item in error.errors()]
        raise RecipeError("the analyst's model:\n  " + "\n  ".join(lines)) from None
    refuse_weak(spec)
    return spec


def _bounds(budget: float, steps: int, model: str, path: Path) -> str:
    """What it may spend and do, for its beginning."""
    enough = f" ({BUYS})" if budget == BUDGET else ""
    return (
        f"The analyst works with {model} in {path}. It may take {plural(steps, 'step')} (--steps) and spend "
        f"{budget:g} US "
        f"dollars (--budget){enough}, its own replies included; before more is spent, you are asked, or it stops."
    )


def _setup(path: Path, root: Path, allowed: Allowed) -> str:
    """The first code cell of a notebook."""
    # From the notebook's folder, where its kernel works.
    place = os.path.relpath(root.resolve(), path.resolve().parent)
    options = [f"root={literal(place)}", f"budget={literal(float(allowed.budget))}"]
    options += ["allow_hosted=True"] if allowed.hosted else []
    options += ["allow_plugins=True"] if allowed.plugins else []
    options += [f"addresses={literal(list(allowed.addresses))}"] if allowed.addresses else []
    options.append(f"kept={literal(kept_of(path).name)}")
    arguments = "".join(f"    {option},\n" for option in options)
    return (
        "from optimsyn.agents import Workbench\n\n"
        "# All that this notebook may do. The analyst works with what stands here.\n"
        f"bench = Workbench(\n{arguments})\nbench"
    )


def _free(root: Path, goal: str) -> Path:
    """A notebook in the root that does not exist yet, named after the goal."""
    words = re.findall(r"[a-z0-9]+", goal.lower())[:6]
    name = "-".join(words) or "analyst"
    number = 1
    while (path := root / f"{name}{'' if number == 1 else f'-{number}'}.ipynb").exists() or kept_of(path).exists():
        number += 1
    return path
