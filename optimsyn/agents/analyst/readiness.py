"""Whether the model of an analyst can be used, found before a notebook is written or a kernel started."""

from __future__ import annotations

from optimsyn.agents.guard import Guard
from optimsyn.base.errors import ModelError
from optimsyn.llm.hosted.capabilities import price_of
from optimsyn.machine.availability import availability
from optimsyn.recipe.sections.models import ModelSpec

FIELD = "the analyst's model"


def refuse_unusable(spec: ModelSpec, guard: Guard | None = None) -> None:
    """Refuses a model without its key, folder or price, or that may not be used.

    Args:
        spec: The model.
        guard: What it may use; None: the first cell of its notebook says so, and is asked later.

    Raises:
        ModelError: It cannot do the work; names every reason.
    """
    refuse_weak(spec)
    problems = list(guard.model_problems(FIELD, spec)) if guard is not None else []
    problems += availability(FIELD, spec).problems
    if not problems and price_of(spec) is None:
        problems.append(unknown_price(spec))
    if problems:
        raise ModelError("\n".join(dict.fromkeys(problems)))


def refuse_weak(spec: ModelSpec) -> None:
    """Refuses a model that cannot plan.

    Raises:
        ModelError: It is the embedded model.
    """
    if spec.provider == "embedded":
        raise ModelError(
            "the analyst's model: `embedded` has 270 million parameters and cannot plan; name a chat model with "
            "--model, such as openai/gpt-6-luna, a hub id or a local folder"
        )


def unknown_price(spec: ModelSpec) -> str:
    """Why a model without a price cannot be used."""
    return (
        f"{FIELD}: the price of {spec.name} is unknown, so it cannot be kept within a budget; give it, such as "
        "--model-option 'prices={input: 0.1, output: 0.5}'"
    )
