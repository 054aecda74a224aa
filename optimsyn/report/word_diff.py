"""What changed between two texts, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

Kind = Literal["same", "removed", "added"]
# Chinese, Japanese and Korean have no spaces: each character is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]\s*|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+\s*|\s+")


class Part(NamedTuple):
    """A piece of text in both, only in the first, or only in the second."""

    kind: Kind
    text: str


def word_diff(before: str, after: str) -> list[Part]:
    """The parts of both texts, in order.

    Example:
        >>> word_diff("Ask one short question.", "Ask one hard question.")
        [Part(kind='same', text='Ask one '), Part(kind='removed', text='short '), Part(kind='added', text='hard '), \
Part(kind='same', text='question.')]
    """
    old, new = _WORD.findall(before), _WORD.findall(after)
    parts: list[Part] = []
    # Ignore spaces after a word.
    matcher = SequenceMatcher(None, [word.rstrip() for word in old], [word.rstrip() for word in new], autojunk=False)
    for operation, old_from, old_to, new_from, new_to in matcher.get_opcodes():
        if operation == "equal":
            parts.append(Part("same", "".join(new[new_from:new_to])))
            continue
        if old_to > old_from:
            parts.append(Part("removed", "".join(old[old_from:old_to])))
        if new_to > new_from:
            parts.append(Part("added", "".join(new[new_from:new_to])))
    return parts
