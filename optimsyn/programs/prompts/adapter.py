"""The DSPy adapter that sends our own prompts.

DSPy's adapters describe every field in prose, which a 270M base model does not follow and which makes prompts long.
This one lets the caller lay out the messages and name the schema; DSPy keeps what it is good at: the signature whose
instructions an optimiser may rewrite, the trace that it learns from, and the call itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import dspy
import json_repair

from optimsyn.errors import ReplyError
from optimsyn.programs.prompts.messages import Message, Schema

if TYPE_CHECKING:
    from optimsyn.models.language_model import LanguageModel


class PromptAdapter(dspy.Adapter):
    """Formats with `messages`, reads with `read`.

    Args:
        messages: From the signature's instructions and the inputs to chat messages; a base model gets one message,
            its whole prompt.
        read: From the reply's text to the value of the signature's only output field; raises ReplyError.
    """

    def __init__(
        self,
        messages: Callable[[str, dict[str, Any]], Sequence[Message]],
        read: Callable[[str], Any],
    ) -> None:
        super().__init__()
        self._messages = messages
        self._read = read

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The messages of one request."""
        return [dict(message) for message in self._messages(signature.instructions, inputs)]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """The value of the output field.

        Raises:
            ReplyError: The reply holds no such value.
        """
        (field,) = signature.output_fields
        return {field: self._read(completion)}


async def ask(
    predict: dspy.Predict,
    model: LanguageModel,
    adapter: PromptAdapter,
    *,
    seed: int,
    schema: tuple[str, Schema] | None,
    stop: Sequence[str] = (),
    **inputs: Any,
) -> dspy.Prediction:
    """One call of a Predict through our adapter.

    Args:
        predict: The Predict, whose signature has one output field.
        model: Answers.
        adapter: Lays out the prompt and reads the reply.
        schema: Name and JSON schema that the reply has to follow; None for free text.
        seed: Sampling seed of the request.
        stop: Texts that end the reply.
        **inputs: Values of the signature's input fields.

    Raises:
        ReplyError: The reply is empty or holds no usable value.
        ServiceError: The service failed for good (raised by the model, passed through).
    """
    config: dict[str, Any] = {"seed": seed}
    if schema is not None:
        name, body = schema
        config["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": name, "schema": body, "strict": True},
        }
    if stop:
        config["stop"] = list(stop)
    with dspy.context(lm=model.dspy_lm(), adapter=adapter):
        try:
            return await predict.acall(config=config, **inputs)
        except dspy.utils.exceptions.AdapterParseError as error:
            # DSPy itself raises this one for an empty reply only; `read` raises ReplyError.
            raise ReplyError(f"{model.name} sent an empty reply (seed {seed})") from error


def read_object(text: str, what: str) -> dict[str, Any]:
    """The JSON object in a reply, repaired where it is damaged (a cut end, a code fence, single quotes).

    Raises:
        ReplyError: There is none; the message shows the reply's beginning.
    """
    body = text[text.find("{") :] if "{" in text else text
    value = json_repair.loads(body)
    if isinstance(value, list):
        # Prose after the object makes the repairer see several values; the object is the first of them.
        value = next((item for item in value if isinstance(item, dict)), None)
    if not isinstance(value, dict) or not value:
        raise ReplyError(f"no JSON object with a {what} in the reply, which begins {beginning(text)}")
    return {str(key): item for key, item in value.items()}


def beginning(text: str, limit: int = 100) -> str:
    """The start of a reply, on one line, for an error message."""
    line = " ".join(text.split())
    return repr(line[:limit] + ("…" if len(line) > limit else ""))


def one_line(value: Any) -> str:
    """A reply's field as one line of text; anything that is not text, a number or a verdict is empty."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(value)
    return " ".join(value.split()) if isinstance(value, str) else ""
