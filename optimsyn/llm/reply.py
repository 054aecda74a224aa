"""What one reply of a language model is, and what all of a run used."""

from __future__ import annotations

from collections.abc import Sequence

from optimsyn.base.secrets.redaction import kept_tree, unasked
from optimsyn.data.records import Record


class Reply(Record):
    """What a language model answered to one call.

    Attributes:
        text: The reply, as it came; nothing is repaired here.
        input_tokens: Tokens of the prompt, as the service counts them.
        output_tokens: Tokens of the reply, with those that were thought before it.
        reasoning_tokens: Those that were thought, among them, where the service says.
        cost_usd: Price in US dollars, 0 for local models; None where nobody says what the model costs.
        model: The model as the service names it.
        finish_reason: `stop`, `length` (cut at `max_tokens`), `content_filter` or `tool_calls`.
        seconds: Time from request to reply, without waiting for a free place.
        reasoning: What the model thought, where the service returns that separately and the text is empty.
        refusal: What the service says when it refuses.
        tool_call: Arguments of the tool that the model called in place of an answer.
        estimated: The service says nothing about its tokens that can be true, so they are counted from the texts.
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
    """What was bought, or may be: requests, tokens and money; replies that came from the cache cost nothing again.

    Attributes:
        unpriced: Nobody says what some of it costs, so `cost_usd` counts only the rest.
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

    def since(self, before: Usage) -> Usage:
        """What was bought after `before`."""
        return Usage(
            replies=self.replies - before.replies,
            input_tokens=self.input_tokens - before.input_tokens,
            output_tokens=self.output_tokens - before.output_tokens,
            cost_usd=round(self.cost_usd - before.cost_usd, 9),
            unpriced=self.unpriced and self.replies > before.replies,
        )

    def usd(self, decimals: int = 2) -> str:
        """The money in words: `1.20 USD`, `at least 1.20 USD`, `unknown`; a price that nobody says is not 0."""
        if self.unpriced and self.cost_usd <= 0:
            return "unknown"
        return f"{'at least ' if self.unpriced else ''}{self.cost_usd:.{decimals}f} USD"


def without_keys(reply: Reply, asked: Sequence[str]) -> Reply:
    """A reply without keys, before anybody reads or keeps it, so that a kept one reads like the one that came.

    A service may repeat its key anywhere, in any form. What only looks like a key stays where the request held it: a
    passage about the form of keys is quoted by its pair.

    Args:
        reply: The reply.
        asked: The texts of the request.
    """
    request = "\n".join(asked)
    raw = reply.model_dump(mode="json")
    cleaned = {name: unasked(value, request) if isinstance(value, str) else value for name, value in raw.items()}
    clean = kept_tree(cleaned)
    return reply if clean == raw else type(reply).model_validate(clean)
