"""One prompt of a batch, its reply, and where the reply ends."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

# A decoder may drop the blank before a text's first word, so a reply is decoded behind the prompt's last tokens.
_PROMPT_TAIL = 8
# A stop text has at most as many tokens as characters; these more hold the letters that a token has in front of it.
_STOP_MARGIN = 8


@dataclass(frozen=True)
class Row:
    """One prompt of a batch and its sampling parameters.

    Attributes:
        ids: Token ids of the prompt.
        temperature: 0 for greedy decoding.
        max_tokens: Longest reply in tokens.
        seed: Seed of the row's noise.
        stop: Stop sequences.
    """

    ids: list[int]
    temperature: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """The most tokens that prompt and reply have together."""
        return len(self.ids) + self.max_tokens


@dataclass(frozen=True)
class Generated:
    """One reply: its text without stop sequence and special tokens, its length in tokens, and why it ended."""

    text: str
    tokens: int
    finish_reason: str


class StopTexts:
    """Whether a reply has reached a stop text, decoding only where its newest tokens may complete one."""

    def __init__(self, tokenizer: Any) -> None:
        """Nothing is decoded yet."""
        self._tokenizer = tokenizer
        # For each set of stop texts the tokens that complete none of them.
        self._harmless: dict[tuple[str, ...], set[int]] = {}

    def reached(self, row: Row, reply: Sequence[int], new: int) -> bool:
        """Whether one of the last `new` tokens of the reply completes a stop text of the row."""
        if not row.stop or not new:
            return False
        harmless = self._harmless.setdefault(row.stop, set())
        recent = reply[-new:]
        if harmless.issuperset(recent):
            return False
        harmless.update(token for token in {*recent} - harmless if not self._may_complete(token, row.stop))
        if harmless.issuperset(recent):
            return False
        window = max(len(stop) for stop in row.stop) + new + _STOP_MARGIN
        tail = self._tokenizer.decode(list(reply[-window:]), skip_special_tokens=True)
        return any(stop in tail for stop in row.stop)

    def _may_complete(self, token: int, stops: Sequence[str]) -> bool:
        piece = self._tokenizer.decode([token], skip_special_tokens=True)
        # A decoder may drop a blank, and a letter of several bytes may come in several tokens.
        return any(stop[-1] in piece or stop[-1] == " " or not stop[-1].isascii() for stop in stops)


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a reply; instruction-tuned models often have several."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, list | tuple) else [configured]
    return sorted({end for end in [*ids, tokenizer.eos_token_id] if end is not None})


def finished(tokenizer: Any, row: Row, new: Sequence[int], ends: Collection[int]) -> Generated:
    """The reply that the tokens `new` hold, cut at its length, its end token or its stop text.

    Args:
        tokenizer: The model's tokenizer.
        row: The prompt.
        new: Tokens of the reply; there may be more than it has.
        ends: Tokens that end a reply.
    """
    content = list(new[: row.max_tokens])
    ended = next((index for index, token in enumerate(content) if token in ends), None)
    content = content[:ended]
    tail = row.ids[-_PROMPT_TAIL:]
    before = len(tokenizer.decode(tail, skip_special_tokens=True))

    def text_of(count: int) -> str:
        text: str = tokenizer.decode([*tail, *content[:count]], skip_special_tokens=True)
        return text[before:]

    text = text_of(len(content))
    cuts = [text.index(stop) for stop in row.stop if stop in text]
    if cuts:
        tokens = bisect_left(range(len(content)), True, key=lambda count: any(s in text_of(count) for s in row.stop))
        return Generated(text[: min(cuts)], tokens, "stop")
    return Generated(text, len(content) + (ended is not None), "length" if ended is None else "stop")
