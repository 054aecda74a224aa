"""Separates a model's answer from its thinking, by the common conventions for marking it.

- Tags: `<think>`, `<thinking>`, `<thought>`, `<reasoning>`, `<seed:think>` and the like, `[THINK]`, `◁think▷`,
  `<|begin_of_thought|>`, `<|START_THINKING|>`, `<|channel>thought`, nested, closed without having been opened (the chat
  template opened it), or never closed.
- Channels (harmony): `<|channel|>analysis<|message|>…<|channel|>final<|message|>…`, with its special tokens or without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice

_NAME = (
    r"(?i:(?:[a-z0-9]{1,12}:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|cot"
    r"|(?:inner|internal)_monologue|chain_of_thought))"
)
_BRACKETED = r"(?:THINK|THINKING|THOUGHT|REASONING)"
_SPECIAL = r"(?i:thought|thinking|reasoning)"
_EVENT = re.compile(
    rf"(?P<none><{_NAME}\s?/>)"
    rf"|(?P<close></\s?{_NAME}\s?>|\[/{_BRACKETED}\]|◁/think▷|<\|end_of_{_SPECIAL}\|>"
    rf"|<\|(?i:end)_{_SPECIAL}\|>|<\|/(?i:think|thinking)\|>|<channel\|>|<unused95>)"
    rf"|(?P<open><{_NAME}(?:\s[^<>]{{0,100}})?>|\[{_BRACKETED}\]|◁think▷|<\|(?i:begin|start)_of_{_SPECIAL}\|>"
    rf"|<\|(?i:start|begin)_{_SPECIAL}\|>|<\|(?i:think|thinking)\|>|<\|channel>\s?thought|<unused94>)"
)
_CHANNEL = re.compile(r"<\|channel\|>\s?(?P<name>\w{1,20})[^<]{0,200}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|start|channel|call)\|>")
# The same without special tokens, which many servers leave out of the text.
_BARE_ANALYSIS = re.compile(r"\s*(?:assistant\s?)?analysis(?=[A-Z\s])")
_BARE_FINAL = "assistantfinal"
# The most tags that are searched in a reply.
_MOST = 2000
# Tags that some models put around an answer, and tokens that end a turn.
_WRAPPING = re.compile(
    r"</?(?:answer|response|output|final|final_answer)>|<\|(?:begin|end)_of_solution\|>|\\?<\|?/?(?:START|END)_RESPONSE\|>"
    r"|(?:<\|(?:im_end|eot_id|end|return|endoftext|end_of_text|eom_id)\|>|</s>|<eos>|<end_of_turn>)\s*\Z",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```[a-zA-Z]{0,10}\s*(?=[{\[\"])(.*?)\n?```", re.DOTALL)


@dataclass(frozen=True)
class Spoken:
    """A reply without its thinking.

    Attributes:
        answers: Its possible answers, the likeliest first; none of them is blank.
        thinking: It ends inside its thinking.
    """

    answers: tuple[str, ...]
    thinking: bool = False


def spoken(text: str, *, data: tuple[int, int] = (0, 0)) -> Spoken:
    """A reply without its thinking.

    Args:
        text: The reply.
        data: A span of it that is known to be an answer; tags in it are quoted text.
    """
    if "<|channel|>" in text:
        return _of_channels(text)
    if _BARE_ANALYSIS.match(text) and _BARE_FINAL in text:
        return Spoken(_answers(text.rpartition(_BARE_FINAL)[2]))
    tags = (event for event in _EVENT.finditer(text) if not data[0] <= event.start() < data[1])
    events = list(islice(tags, _MOST))
    if not events:
        return Spoken(_answers(text))
    closes = [event.end() for event in events if event.lastgroup == "close"]
    last = max(closes, default=0)
    unclosed = next((event.start() for event in events if event.lastgroup == "open" and event.start() >= last), None)
    # The likeliest answer follows the last closing tag, whatever the nesting. But that tag may be a quote in the
    # answer, or more thinking may follow; then the text outside all pairs of tags is the answer.
    after = text[last:unclosed]
    return Spoken(_answers(after, _outside(text, events)), thinking=unclosed is not None)


def _outside(text: str, events: list[re.Match[str]]) -> str:
    """The text outside all pairs of tags."""
    parts: list[str] = []
    depth, begin, opened = 0, 0, False
    for event in events:
        if event.lastgroup == "none" and depth == 0:
            parts.append(text[begin : event.start()])
            begin = event.end()
        elif event.lastgroup == "open":
            if depth == 0:
                parts.append(text[begin : event.start()])
            depth, opened = depth + 1, True
        elif event.lastgroup == "close" and depth > 0:
            depth -= 1
            begin = event.end()
        elif event.lastgroup == "close" and not opened:
            # Opened by the chat template.
            parts, begin, opened = [], event.end(), True
    if depth == 0:
        parts.append(text[begin:])
    return "".join(parts)


def _of_channels(text: str) -> Spoken:
    """The final channel of a reply in OpenAI's harmony format."""
    channels = list(_CHANNEL.finditer(text))
    final = next((channel for channel in reversed(channels) if channel["name"].lower() == "final"), None)
    if final is None:
        return Spoken((), thinking=True)
    end = _CHANNEL_END.search(text, final.end())
    return Spoken(_answers(text[final.end() : end.start() if end else len(text)]))


def _answers(*texts: str) -> tuple[str, ...]:
    unwrapped = [_WRAPPING.sub("", text).strip() for text in texts]
    # The content of a code fence comes last, because it may be only an example.
    fenced = [fence[1].strip() for text in unwrapped if (fence := _FENCE.search(text)) is not None]
    return tuple(dict.fromkeys(text for text in [*unwrapped, *fenced] if text))
