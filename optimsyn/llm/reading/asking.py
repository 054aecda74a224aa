"""Asks a model and parses its reply; retries a cut reply with a larger cap, and records every outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from optimsyn.base.errors import Outcome, ReplyError, ServiceError
from optimsyn.base.secrets.redaction import redact

if TYPE_CHECKING:
    from optimsyn.llm.language_model import Call, LanguageModel
    from optimsyn.llm.replies import Reply

T = TypeVar("T")

# What to change when an outcome occurs again and again; `{field}` is the model's field in the recipe.
_CURES = {
    Outcome.CUT: "Raise {field}.max_tokens, or reduce the model's thinking",
    Outcome.REFUSAL: "The service refuses the requests: check the documents and the guiding text, or name another "
    "model in {field}",
    Outcome.TOOL_CALL: "Turn tools off at the service of {field}, or name a model that answers in text",
    Outcome.EMPTY: "If the server of {field} puts the answer into its reasoning, turn thinking off",
}


async def hear(model: LanguageModel, call: Call, read: Callable[[Reply, int | None], T], role: str) -> tuple[T, Reply]:
    """Asks a model, and once more with a larger cap when the reply was cut before its value was complete.

    Args:
        model: The model.
        call: The call.
        read: Parses a reply, given the cap on its tokens; raises ReplyError.
        role: The model's role: `generator`, `rubric`, `policy` or `reflection`.

    Raises:
        ReplyError: The reply holds no value; the outcome says why.
        ServiceError: The service failed permanently, or hardly any of its latest replies could be judged.
        BudgetError: A cap was reached; the retry counts against it too.
    """
    key = model.key(call)
    keys = [key]
    tokens = call.max_tokens or model.spec.max_tokens
    reply = await model.complete(call)
    try:
        try:
            value = read(reply, tokens)
        except ReplyError as error:
            roomier = model.more_room(call, reply) if error.outcome is Outcome.CUT else None
            if roomier is None:
                raise
            keys.append(model.key(roomier))
            tokens = roomier.max_tokens or tokens
            try:
                reply = await model.complete(roomier)
            except ReplyError:
                # The service rejects the larger cap.
                raise error from None
            value = read(reply, tokens)
    except ReplyError as error:
        failure = _with_context(error, model, role, tokens, len(keys))
        model.note(role, key, failure.outcome, asked_again=len(keys) > 1)
        _stop_if_hopeless(model, role, failure, keys)
        raise failure from None
    model.note(role, key, Outcome.READ, asked_again=len(keys) > 1)
    model.lately.add(Outcome.READ, keys)
    return value, reply


def field_of(role: str) -> str:
    """The recipe's section with the length limit of a role's replies."""
    return "optimizers.policy" if role == "policy" else f"models.{role}"


def _with_context(error: ReplyError, model: LanguageModel, role: str, tokens: int, tries: int) -> ReplyError:
    """The error with the model's name, and for a cut reply with the limit to raise."""
    message = f"{model.name}: {redact(str(error))}"
    if error.outcome is Outcome.CUT:
        again = ", also when it was asked again with a larger cap" if tries > 1 else ""
        message += f" (at most {tokens} tokens{again}). Raise {field_of(role)}.max_tokens"
    return ReplyError(message, error.outcome, replies=tries)


def _stop_if_hopeless(model: LanguageModel, role: str, error: ReplyError, keys: list[str]) -> None:
    """Ends the run when hardly any of the latest replies could be judged; they are requested again afterwards.

    Raises:
        ServiceError: Too few of the latest replies could be judged.
    """
    lately = model.lately.add(error.outcome, keys)
    if lately is None:
        return
    model.set_aside(lately.keys)
    names = ", ".join(f"{outcome.replace('_', ' ')} {count}x" for outcome, count in lately.counts.items())
    cure = _CURES[lately.worst].format(field=field_of(role))
    raise ServiceError(
        f"{field_of(role)} {model.name!r}: {lately.unjudged} of the last {lately.asked} requests brought nothing that "
        f"could be judged ({names}), for example: {str(error)[:300]}. {cure}. Everything else is kept, and these "
        "replies are asked for again when the run continues."
    )
