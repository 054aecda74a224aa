"""Asks a model and parses its reply; retries a cut one with a larger cap, lets a model go on, records every outcome."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from optimsyn.base.errors import Outcome, ReplyError, ServiceError
from optimsyn.base.secrets.redaction import redact
from optimsyn.llm.reading.unusable import was_cut

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


# How often a model is given the next label to go on from, at most.
_GOES_ON = 4


@dataclass(frozen=True)
class Beginning:
    """The beginning of a reply, from which a model that continues its prompt is to go on.

    Attributes:
        text: The beginning, up to a label.
        options: The texts of which one is to follow, where a server can hold a model to them; empty: any text.
    """

    text: str
    options: tuple[str, ...] = ()


async def hear(
    model: LanguageModel,
    call: Call,
    read: Callable[[Reply, int | None], T],
    role: str,
    unfinished: Callable[[str], Beginning | None] = lambda _: None,
) -> tuple[T, Reply]:
    """Asks a model, and once more with a larger cap when the reply was cut before its value was complete.

    Args:
        model: The model.
        call: The call.
        read: Parses a reply, given the cap on its tokens; raises ReplyError.
        role: The model's role: `generator`, `rubric`, `policy` or `reflection`.
        unfinished: From the text of a reply with a gap to its beginning, from which a model that continues its prompt
            is to go on; None where it cannot.

    Raises:
        ReplyError: The reply holds no value; the outcome says why.
        ServiceError: The service failed permanently, or hardly any of its latest replies could be judged.
        BudgetError: A cap was reached; the retry counts against it too.
    """
    key = model.key(call)
    keys = [key]
    tokens = call.max_tokens or model.spec.max_tokens
    reply, last, begun, again = await model.complete(call), call, "", False
    try:
        for _ in range(_GOES_ON):
            more = None if was_cut(reply) else unfinished(reply.text)
            if more is None or (more.options and not model.structured):
                break
            schema = {"enum": list(more.options)} if more.options else None
            prompt = {"role": "user", "content": call.prompt + more.text}
            last, begun = replace(call, messages=(prompt,), schema=schema), more.text
            keys.append(model.key(last))
            reply = _joined(begun, last, await model.complete(last))
        try:
            value = read(reply, tokens)
        except ReplyError as error:
            roomier = model.more_room(last, reply) if error.outcome is Outcome.CUT else None
            if roomier is None:
                raise
            keys.append(model.key(roomier))
            again = True
            tokens = roomier.max_tokens or tokens
            try:
                reply = _joined(begun, roomier, await model.complete(roomier))
            except ReplyError:
                # The service rejects the larger cap.
                raise error from None
            value = read(reply, tokens)
    except ReplyError as error:
        failure = _with_context(error, model, role, tokens, len(keys), again=again)
        model.note(role, key, failure.outcome, asked_again=again)
        _stop_if_hopeless(model, role, failure, keys)
        raise failure from None
    model.note(role, key, Outcome.READ, asked_again=again)
    model.lately.add(Outcome.READ, keys)
    return value, reply


def _joined(begun: str, call: Call, reply: Reply) -> Reply:
    """The reply to a call after its beginning; one that a schema held to its options is their JSON."""
    if not begun:
        return reply
    text = reply.text
    if call.schema is not None:
        # What was cut is no JSON; `read` says so.
        with contextlib.suppress(ValueError):
            text = f" {json.loads(text)}\n"
    return reply.model_copy(update={"text": begun + text})


def field_of(role: str) -> str:
    """The recipe's section with the length limit of a role's replies."""
    return "optimizers.policy" if role == "policy" else f"models.{role}"


def _with_context(
    error: ReplyError, model: LanguageModel, role: str, tokens: int, tries: int, *, again: bool
) -> ReplyError:
    """The error with the model's name, and for a cut reply with the limit to raise."""
    message = f"{model.name}: {redact(str(error))}"
    if error.outcome is Outcome.CUT:
        also = ", also when it was asked again with a larger cap" if again else ""
        message += f" (at most {tokens} tokens{also}). Raise {field_of(role)}.max_tokens"
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
