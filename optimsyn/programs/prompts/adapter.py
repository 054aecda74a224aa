"""The DSPy adapter that sends our own prompts.

DSPy's adapters describe every field in prose, which a 270M base model does not follow and which makes prompts long.
This one lets the caller lay out the messages and name the schema; DSPy keeps what it is good at: the signature whose
instructions an optimiser may rewrite, the trace that it learns from, and the call itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import dspy

from optimsyn.base.errors import ReplyError
from optimsyn.llm.dspy_bridge import make_lm
from optimsyn.llm.reading.asking import hear
from optimsyn.programs.messages import Message, Schema

if TYPE_CHECKING:
    from optimsyn.llm.language_model import Call, LanguageModel
    from optimsyn.llm.reading.asking import Beginning
    from optimsyn.llm.replies import Reply


class PromptAdapter(dspy.Adapter):
    """Formats with `messages`; reads with `read`, which sees the whole reply, not only its text.

    Args:
        messages: From the signature's instructions and the inputs to chat messages; a base model gets one message,
            its whole prompt.
        read: From a reply, and the cap on its tokens, to the value of the signature's only output field; raises
            ReplyError.
        role: Who the model is in the recipe.
        unfinished: Where a model that continues its prompt is to go on; see `optimsyn.llm.reading.asking.hear`.
    """

    def __init__(
        self,
        messages: Callable[[str, dict[str, Any]], Sequence[Message]],
        read: Callable[[Reply, int | None], Any],
        role: str,
        unfinished: Callable[[str], Beginning | None] = lambda _: None,
    ) -> None:
        super().__init__()
        self._messages = messages
        self.read = read
        self.role = role
        self.unfinished = unfinished
        self._heard: Any = None

    async def hear(self, model: LanguageModel, call: Call) -> Reply | None:
        """Asks the model and keeps what was read, or why nothing could be, for `parse`.

        Returns:
            The reply that the value was read from; None where there is no value.
        """
        try:
            self._heard, reply = await hear(model, call, self.read, self.role, self.unfinished)
        except ReplyError as error:
            # Not raised through DSPy, which would tell of a failed service.
            self._heard = error
            return None
        return reply

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
        if isinstance(self._heard, ReplyError):
            raise self._heard
        return {field: self._heard}


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
        adapter: Lays out the prompt and reads the reply; made for this one call.
        schema: Name and JSON schema that the reply has to follow; None for free text.
        seed: Sampling seed of the request.
        stop: Texts that end the reply.
        **inputs: Values of the signature's input fields.

    Raises:
        ReplyError: The reply holds no usable value; its outcome says what it holds.
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
    lm = make_lm(model, hear=lambda call: adapter.hear(model, call))
    with dspy.context(lm=lm, adapter=adapter):
        return await predict.acall(config=config, **inputs)
