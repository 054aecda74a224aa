"""A reply of a language model, and the usage of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from optimsyn.base.secrets.redaction import kept_tree, unasked
from optimsyn.data.records import Record


class Reply(Record):
    """A language model's reply to one call.

    Attributes:
        text: The raw reply.
        input_tokens: Tokens of the prompt, as the service counts them.
        output_tokens: Tokens of the reply, with its reasoning.
        reasoning_tokens: The reasoning's share of `output_tokens`, where the service reports it.
        cost_usd: Price in US dollars, 0 for local models; None where the price is unknown.
        model: The model as the service names it.
        finish_reason: `stop`, `length` (cut at `max_tokens`), `content_filter` or `tool_calls`.
        seconds: Time from request to reply, without time in the queue.
        reasoning: The reasoning, where the service returns it separately and the text is empty.
        refusal: The service's text when it refuses.
        tool_call: Arguments of the tool that the model called instead of answering.
        estimated: The service reports no plausible token counts, so they are counted from the texts.
    """

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = 0.0
    model: str = ""
    finish_reason: str = "stop"
    seconds: float = 0.0
    reasoning: str = ""
    refusal: str = ""
    tool_call: str = ""
    estimated: bool = False


class Usage(Record):
    """Requests, tokens and money, spent or reserved; cached replies cost nothing.

    Attributes:
        unpriced: Some prices are unknown; `cost_usd` leaves them out.
    """

    replies: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: bool = False

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            replies=self.replies + other.replies,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
            unpriced=self.unpriced or other.unpriced,
        )

    @classmethod
    def of(cls, replies: Iterable[Reply]) -> Usage:
        """What these replies cost when they were bought."""
        usage = cls()
        for reply in replies:
            usage += cls(
                replies=1,
                input_tokens=reply.input_tokens,
                output_tokens=reply.output_tokens,
                cost_usd=reply.cost_usd or 0.0,
                unpriced=reply.cost_usd is None,
            )
        return usage

    def since(self, before: Usage) -> Usage:
        """Usage since `before`."""
        return Usage(
            replies=self.replies - before.replies,
            input_tokens=self.input_tokens - before.input_tokens,
            output_tokens=self.output_tokens - before.output_tokens,
            cost_usd=round(self.cost_usd - before.cost_usd, 9),
            unpriced=self.unpriced and self.replies > before.replies,
        )

    def usd(self, decimals: int = 2) -> str:
        """The cost in words: `1.20 USD`, `at least 1.20 USD` or `unknown`; an unknown price is not 0."""
        if self.unpriced and self.cost_usd <= 0:
            return "unknown"
        return f"{'at least ' if self.unpriced else ''}{self.cost_usd:.{decimals}f} USD"


_HEARD: ContextVar[list[Reply] | None] = ContextVar("heard replies", default=None)


@contextmanager
def heard_replies() -> Iterator[list[Reply]]:
    """Collects every reply that the block gets, kept ones too; each task of a gather collects its own."""
    heard: list[Reply] = []
    token = _HEARD.set(heard)
    try:
        yield heard
    finally:
        _HEARD.reset(token)


def hear(reply: Reply) -> Reply:
    """Hands a reply to whoever collects them."""
    if (heard := _HEARD.get()) is not None:
        heard.append(reply)
    return reply


def without_keys(reply: Reply, asked: Sequence[str]) -> Reply:
    """Removes API keys from a reply before it is read or cached, so that both see the same text.

    A service may repeat its key anywhere, in any form. What only looks like a key stays if the request held it: a pair
    may quote a passage about the format of keys.

    Args:
        reply: The reply.
        asked: The texts of the request.
    """
    request = "\n".join(asked)
    raw = reply.model_dump(mode="json")
    cleaned = {name: unasked(value, request) if isinstance(value, str) else value for name, value in raw.items()}
    clean = kept_tree(cleaned)
    return reply if clean == raw else type(reply).model_validate(clean)
