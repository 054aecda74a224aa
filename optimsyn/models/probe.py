"""Asks every service of a recipe one tiny question, so that what would fail in an hour fails now.

A wrong key, a model that the service does not have, an address that answers to everything but this: a look at the
address cannot tell. The question is asked as the run will ask its own, with a schema, and what it costs is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from optimsyn.errors import OptimsynError, ServiceError
from optimsyn.models.language_model import Call, load_language_model
from optimsyn.models.replies import Budget, ReplyCache
from optimsyn.programs.prompts.messages import object_schema

if TYPE_CHECKING:
    from optimsyn.models.purse import Purse
    from optimsyn.recipe import ModelSpec, Recipe

# A recipe may wait minutes for a reply and try often; this is to be known at once.
_PATIENCE_S = 60.0
_TRIES_MORE = 1
# Enough for the answer, and the least that every API takes.
_MOST_TOKENS = 16


@dataclass(frozen=True)
class Probed:
    """What came of the questions.

    Attributes:
        problems: Services that do not answer as a run needs it, by the recipe's fields, each with the cure.
    """

    problems: tuple[str, ...] = ()


def probe(
    recipe: Recipe,
    cache: ReplyCache | None = None,
    *,
    roles: Mapping[str, ModelSpec] | None = None,
    purse: Purse | None = None,
) -> Probed:
    """Asks each service of a recipe once, whichever roles it has.

    Args:
        recipe: The recipe; its caps hold.
        cache: Where a run's replies are kept: who has answered in this run is not asked again. None: all are asked.
        roles: The roles to ask for; None: all that write text.
        purse: The caps of a batch of runs, where this is one of it.
    """
    if roles is None:
        roles = services(recipe)
    services_of: dict[_Service, list[str]] = {}
    for role, spec in roles.items():
        services_of.setdefault(_Service.of(spec), []).append(role)
    if not services_of:
        return Probed()
    kept = cache if cache is not None else ReplyCache(":memory:")
    budget = Budget.of(recipe.limits, kept, purse=purse)
    with ThreadPoolExecutor(max_workers=len(services_of)) as pool:
        waiting = [
            pool.submit(_problem, {name: roles[name] for name in names}, kept, budget) for names in services_of.values()
        ]
        return Probed(tuple(problem for each in waiting if (problem := each.result()) is not None))


def services(recipe: Recipe) -> dict[str, ModelSpec]:
    """The roles of a recipe that a service has."""
    models = recipe.models
    roles = {"generator": models.generator, "rubric": models.rubric, "reflection": models.reflection}
    return {role: spec for role, spec in roles.items() if spec is not None and spec.provider == "litellm"}


class _Service(NamedTuple):
    """What tells one service from another."""

    name: str
    api_base: str | None
    api_key_env: str | None

    @classmethod
    def of(cls, spec: ModelSpec) -> _Service:
        return cls(spec.name, spec.api_base, spec.api_key_env)


def _problem(roles: Mapping[str, ModelSpec], cache: ReplyCache, budget: Budget) -> str | None:
    """Asks one service, by the first of the roles that it has; what is wrong with it."""
    where = ", ".join(f"models.{role}" for role in roles)
    spec = next(iter(roles.values()))
    quick = spec.model_copy(
        update={"timeout_s": min(spec.timeout_s, _PATIENCE_S), "retries": min(spec.retries, _TRIES_MORE)}
    )
    call = Call.of(
        "Reply with the word yes.",
        schema=object_schema({"word": {"type": "string"}}),
        schema_name="word",
        max_tokens=_MOST_TOKENS,
        seed=0,
    )
    try:
        load_language_model(quick, cache, budget=budget).complete_sync(call)
    except ServiceError as error:
        return f"{where}: a first tiny request failed: {error}"
    except OptimsynError as error:
        return f"{where}: {error}"
    in_batches = [role for role, of_role in roles.items() if of_role.batch]
    return _batch_problem(quick, in_batches) if in_batches else None


def _batch_problem(spec: ModelSpec, roles: list[str]) -> str | None:
    from optimsyn.models.batched_model import batch_api_problem

    problem = batch_api_problem(spec)
    where = ", ".join(f"models.{role}.batch" for role in roles)
    return f"{where}: {problem}" if problem is not None else None
