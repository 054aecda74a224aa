"""Connects a `LanguageModel` to DSPy: two engines that translate requests and pass our errors through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
from dspy.lm15 import Message, Request, Response, TextPart
from dspy.lm15 import Usage as DspyUsage
from dspy.utils.exceptions import LMError

from optimsyn.base.errors import BudgetError, DataError, ModelError, OptimsynError, Outcome, ReplyError, ServiceError
from optimsyn.llm.language_model import Call, Hear, run_sync
from optimsyn.llm.replies import Reply

if TYPE_CHECKING:
    from optimsyn.llm.language_model import LanguageModel

# DSPy treats an empty text as its own failure and warns of each cut reply on the terminal; both are handled here before
# DSPy sees the reply.
_NOTHING = "-"


class _Through:
    """Makes our error a DSPy error too: DSPy passes its own errors on unchanged and wraps all others."""

    def __init__(self, message: str) -> None:
        LMError.__init__(self, message)


class DspyServiceError(_Through, ServiceError, LMError):
    """A `ServiceError` on its way through DSPy."""


class DspyBudgetError(_Through, BudgetError, LMError):
    """A `BudgetError` on its way through DSPy."""


class DspyModelError(_Through, ModelError, LMError):
    """A `ModelError` on its way through DSPy."""


class DspyReplyError(_Through, ReplyError, LMError):
    """A `ReplyError` on its way through DSPy."""

    outcome = Outcome.INVALID
    replies = 1


class DspyDataError(_Through, DataError, LMError):
    """A `DataError` (a reply that could not be kept) on its way through DSPy."""


# A traceback shows the name of the original error.
for _class in (DspyServiceError, DspyBudgetError, DspyModelError, DspyReplyError, DspyDataError):
    _class.__name__ = _class.__name__.removeprefix("Dspy")

_THROUGH: tuple[tuple[type[OptimsynError], type[Any]], ...] = (
    (ServiceError, DspyServiceError),
    (BudgetError, DspyBudgetError),
    (ModelError, DspyModelError),
    (ReplyError, DspyReplyError),
    (DataError, DspyDataError),
)


class AsyncEngine:
    """DSPy's asynchronous engine for one model."""

    def __init__(self, model: LanguageModel, hear: Hear | None = None) -> None:
        """An engine that asks `model`.

        Args:
            model: The model.
            hear: Asks the model and reads its reply; None: DSPy gets the text without thinking and parses it itself.
        """
        self.model = model
        self._hear = hear or self._plain

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncEngine:
        return self

    async def complete(self, request: Request) -> Response:
        """Answers one request of DSPy.

        Raises:
            ServiceError, BudgetError, ModelError, DataError: As `LanguageModel.complete`.
            ReplyError: The reply holds no text; only where DSPy parses the replies.
        """
        call = to_call(request)
        problem: OptimsynError
        try:
            return to_response(await self._hear(call), request.model)
        except OptimsynError as error:
            problem = error
        for kind, through in _THROUGH:
            if isinstance(problem, kind):
                passed = through(str(problem))
                if isinstance(problem, ReplyError):
                    passed.outcome, passed.replies = problem.outcome, problem.replies
                raise passed
        raise problem

    async def _plain(self, call: Call) -> Reply:
        """The reply to one of DSPy's own programs (a reflection, say): its text without thinking."""
        from optimsyn.llm.reading.asking import hear
        from optimsyn.llm.reading.values import plain_text

        def read(reply: Reply, max_tokens: int | None) -> str:
            return plain_text(reply, max_tokens=max_tokens)

        text, reply = await hear(self.model, call, read, "reflection")
        return reply.model_copy(update={"text": text})


class SyncEngine:
    """DSPy's synchronous engine for one model; safe in many threads and inside a running event loop."""

    def __init__(self, model: LanguageModel, hear: Hear | None = None) -> None:
        """An engine that asks `model`, as `AsyncEngine`."""
        self._engine = AsyncEngine(model, hear)

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncEngine:
        return self

    def complete(self, request: Request) -> Response:
        """Answers one request of DSPy; raises as `AsyncEngine.complete`."""
        return run_sync(self._engine.complete(request))


def make_lm(
    model: LanguageModel,
    *,
    temperature: float | None = None,
    max_tokens: int | None = None,
    hear: Hear | None = None,
    kind: type[Any] = dspy.LM,
) -> dspy.LM:
    """A `dspy.LM` (or a subclass, `kind`) that asks `model`, with DSPy's own cache and retries off."""
    return kind(
        # The prefix keeps DSPy from guessing the model's abilities and limits from its name.
        "optimsyn/" + model.name.replace("/", ":"),
        engine=SyncEngine(model, hear),
        async_engine=AsyncEngine(model, hear),
        cache=False,
        num_retries=0,
        temperature=model.spec.temperature if temperature is None else temperature,
        max_tokens=model.spec.max_tokens if max_tokens is None else max_tokens,
    )


def to_call(request: Request) -> Call:
    """DSPy's request as a call of ours.

    Raises:
        ModelError: The request holds tools, or anything but text.
    """
    messages = []
    if request.system:
        messages.append({"role": "system", "content": _text(request.system)})
    for message in request.messages:
        role = "system" if message.role == "developer" else message.role
        messages.append({"role": role, "content": _text(message.parts)})
    if request.tools:
        raise ModelError("this language model takes no tools; give the program one without `tools`")
    config = request.config
    schema, name = _schema(config.response_format)
    return Call(
        messages=tuple(messages),
        schema=schema,
        schema_name=name,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=config.seed,
        stop=tuple(config.stop or ()),
    )


def to_response(reply: Reply | None, model: str) -> Response:
    """Our reply as a DSPy response; None (an unreadable reply) becomes an empty response."""
    reply = reply or Reply(text="")
    return Response(
        id=None,
        model=reply.model or model,
        message=Message.assistant([TextPart(reply.text or _NOTHING)]),
        finish_reason="stop",
        usage=DspyUsage(input_tokens=reply.input_tokens, output_tokens=reply.output_tokens),
    )


def _schema(response_format: Any) -> tuple[dict[str, Any] | None, str]:
    """Schema and name of DSPy's `response_format`, in its own flat form or in OpenAI's nested one."""
    if not response_format or response_format.get("type") != "json_schema":
        return None, "reply"
    inner = response_format.get("json_schema", response_format)
    return dict(inner["schema"]), str(inner.get("name") or "reply")


def _text(parts: Any) -> str:
    if isinstance(parts, str):
        return parts
    texts = []
    for part in parts:
        if not isinstance(part, TextPart):
            raise ModelError(f"language models here take text only, not {getattr(part, 'type', type(part).__name__)}")
        texts.append(part.text)
    return "\n".join(texts)
