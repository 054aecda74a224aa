"""Sends every service of a recipe one tiny request, so that what would fail in an hour fails now.

Checking the address alone would not show a wrong key or an unknown model. The request has a schema, as those of a run
do, and its cost is counted. Its reply is read as in a run: a service that refuses to say yes, or says something else,
will fail in a run too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from optimsyn.base.errors import OptimsynError, Outcome, ReplyError, ServiceError
from optimsyn.base.secrets.redaction import redact
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.hosted.batched_model import batch_api_problem
from optimsyn.llm.hosted.litellm_model import LiteLLMModel
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.reading.unusable import was_cut, was_refused
from optimsyn.llm.reading.values import objects_in, read
from optimsyn.llm.replies import Budget, Reply, ReplyCache
from optimsyn.programs.messages import object_schema

if TYPE_CHECKING:
    from optimsyn.llm.shared_budget import Purse
    from optimsyn.recipe.recipe import ModelSpec, Recipe

# Shorter than a recipe's own time-out and retries, so that the probe is quick.
_PATIENCE_S = 60.0
_TRIES_MORE = 1
# Enough for the answer, and the smallest cap that every API accepts.
_MOST_TOKENS = 16
_QUESTION = "Reply with the word yes."
# Another request, to see whether a service that refused the first one refuses everything.
_PLAINLY = "What is the capital of France? Answer in one word."
_YES = re.compile(r"\byes\b", re.IGNORECASE)
_SHOWN = 120

# What to do about an unusable reply.
_CURES = {
    Outcome.INVALID: "A run needs whole pairs from it: check that its name is the model that you mean, one that "
    "follows instructions, and that its api_base is that model's server",
    Outcome.CUT: "Its reasoning leaves no room for an answer: raise its max_tokens, or lower its reasoning_effort",
    Outcome.REFUSAL: "A refusal ends a run: check the filters of this account or server, or name another model",
    Outcome.TOOL_CALL: "Turn tools off at this service, or name a model that answers in text",
    Outcome.EMPTY: "If its server puts the answer into its reasoning, turn thinking off; else name another model",
}
_WORDS = {
    Outcome.INVALID: "with something else",
    Outcome.CUT: "with a reply that was cut before it answered",
    Outcome.REFUSAL: "with a refusal",
    Outcome.TOOL_CALL: "with a tool call",
    Outcome.EMPTY: "with an empty text",
}


@dataclass(frozen=True)
class Probed:
    """The result of the requests, with the recipe's field and the cure: `problems` stop a run, `notes` do not."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def probe(
    recipe: Recipe,
    cache: ReplyCache | None = None,
    *,
    roles: Mapping[str, ModelSpec] | None = None,
    purse: Purse | None = None,
) -> Probed:
    """Asks each service of a recipe once, even if it has several roles.

    A service that has answered well in the run of this cache is not asked again.
    """
    if roles is None:
        roles = services(recipe)
    services_of: dict[tuple[str | None, ...], list[str]] = {}
    for role, spec in roles.items():
        services_of.setdefault((spec.name, spec.api_base, spec.api_key_env), []).append(role)
    if not services_of:
        return Probed()
    cache = cache if cache is not None else ReplyCache(":memory:")
    budget = Budget.of(recipe.limits, cache, purse=purse)
    with ThreadPoolExecutor(max_workers=len(services_of)) as pool:
        futures = [
            pool.submit(_ask_service, {name: roles[name] for name in names}, cache, budget)
            for names in services_of.values()
        ]
        results = [future.result() for future in futures]
    return Probed(
        tuple(problem for result in results for problem in result.problems),
        tuple(note for result in results for note in result.notes),
    )


def services(recipe: Recipe) -> dict[str, ModelSpec]:
    """The roles of a recipe that use a service."""
    return {role: spec for role, spec in recipe.models.writers.items() if spec.provider == "litellm"}


def _ask_service(roles: Mapping[str, ModelSpec], cache: ReplyCache, budget: Budget) -> Probed:
    """Asks one service with the settings of its first role."""
    where = ", ".join(f"models.{role}" for role in roles)
    spec = next(iter(roles.values()))
    quick = spec.model_copy(
        update={"timeout_s": min(spec.timeout_s, _PATIENCE_S), "retries": min(spec.retries, _TRIES_MORE)}
    )
    notes: list[str] = []
    try:
        model = load_language_model(quick, cache, budget=budget)
        model.field = where
        if isinstance(model, LiteLLMModel):
            model.report_to(notes.append)
        problem = _ask(model, notes)
    except ServiceError as error:
        problem = f"a first tiny request failed: {error}"
    except OptimsynError as error:
        problem = str(error)
    problems = [f"{where}: {problem}"] if problem is not None else []
    in_batches = ", ".join(f"models.{role}.batch" for role, of_role in roles.items() if of_role.batch)
    if not problems and in_batches and (no_batches := batch_api_problem(quick)) is not None:
        problems.append(f"{in_batches}: {no_batches}")
    return Probed(tuple(problems), tuple(f"{where}: {note}" for note in notes))


def _ask(model: LanguageModel, notes: list[str]) -> str | None:
    """Sends the request; notes what is odd about the reply, and returns what would stop a run."""
    call = Call.of(
        _QUESTION,
        schema=object_schema({"word": {"type": "string"}}),
        schema_name="word",
        max_tokens=_MOST_TOKENS,
        seed=0,
    )
    reply = model.complete_sync(call)
    if was_cut(reply) and _problem(reply, _MOST_TOKENS) and model.spec.max_tokens > _MOST_TOKENS:
        # Reasoning models need more tokens than a word; a run gives them this many.
        call = replace(call, max_tokens=model.spec.max_tokens)
        reply = model.complete_sync(call)
    schema_refusal = model.schema_refusal if isinstance(model, LiteLLMModel) else ""
    if schema_refusal:
        notes.append(
            f"it took no JSON schema ({schema_refusal}) and answered without one: where it refuses schemas, replies "
            "are requested and read without one. `structured_output: false` there says so from the start"
        )
    error = _problem(reply, call.max_tokens)
    if error is not None:
        # So that the next start asks again.
        model.set_aside([model.key(call)])
        how, cure = _WORDS[error.outcome], _CURES[error.outcome]
        text = f"it answered {_QUESTION!r} {how}: {_quoted(reply, error)}. {cure}"
        if was_refused(reply) and _refuses_all(model):
            return f"{text} (another harmless request was refused, too)"
        notes.append(text)
        return None
    schema_sent = model.structured and not schema_refusal
    if schema_sent and not was_cut(reply) and next(objects_in(reply.text, repair=False), None) is None:
        notes.append(
            f"a JSON schema was sent with {_QUESTION!r}, and it answered {_quoted(reply)} in plain text: it seems to "
            "ignore schemas, so replies are read as they come. `structured_output: false` there sends none"
        )
    return None


def _yes(text: str, repair: bool) -> str:
    if _YES.search(text) is None:
        raise ReplyError("the reply does not say yes")
    return text


def _problem(reply: Reply, max_tokens: int | None) -> ReplyError | None:
    """Why a reply is not read as yes."""
    try:
        read(reply, _yes, "word yes", max_tokens=max_tokens)
    except ReplyError as error:
        return error
    return None


def _refuses_all(model: LanguageModel) -> bool:
    """Whether the API also refuses another harmless request."""
    call = Call.of(_PLAINLY, max_tokens=_MOST_TOKENS, seed=0)
    refused = was_refused(model.complete_sync(call))
    if refused:
        model.set_aside([model.key(call)])
    return refused


def _quoted(reply: Reply, error: ReplyError | None = None) -> str:
    """The quoted reply, or the error if it is empty."""
    text = " ".join((reply.text or reply.refusal or reply.tool_call).split())
    if not text:
        return str(error) if error is not None else "nothing"
    return redact(repr(text if len(text) <= _SHOWN else text[:_SHOWN] + " …"))
