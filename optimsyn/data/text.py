"""Shared text helpers."""

from __future__ import annotations

import difflib
import re
from collections import Counter

import regex

from optimsyn.data.language.segment import BIDI_CONTROLS, UNSPACED, normalized, word_count, words_in, words_of

__all__ = [
    "BIDI_CONTROLS",
    "FUNCTION_WORDS",
    "STOP_WORDS",
    "as_written",
    "control_token",
    "encodable",
    "is_quoted",
    "normalized",
    "stem",
    "word_count",
    "words_of",
]
# English words that carry no content of a question.
STOP_WORDS = frozenset(
    (
        "a an and are as at be been being by can could did do does for from had has have how in into is it its may "
        "might must of on or our shall should so than that the their them then there these they this those to was we "
        "were what when where which while who whom whose why will with would you your"
    ).split()
)
# All English words without content of their own; more than those of a question.
FUNCTION_WORDS = frozenset(
    """a an the of in on at by for to from with without within and or but nor as is are was were be been being am it
    its this that these those which who whom whose what he she they them him her their his we our us you your i my not
    no so if than then there here has have had having do does did doing done will would can could may might must should
    shall also into onto over under after before between among during about against through upon toward towards across
    along all some any each every both either neither more most much many such only very just too even still yet when
    where while why how because until unless since although though however therefore thus hence whether per via other
    another same own few several whereas alone were's did't don't""".split()
)
# Control tokens of language models, which no person writes into an answer.
_CONTROL_TOKEN = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?s>|<(?:pad|eos|bos|unk|mask)>|<(?:start|end)_of_(?:turn|image|text)>"
    r"|<unused\d+>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"
    r"|</?(?:think|tool_call|tool_response)>|\[(?:CLS|SEP|PAD|MASK|UNK)\]"
)
_LEFT_OUT = re.compile(r"\[?(?:\.\s?\.\s?\.|…)\]?")
# Words of a quote that may differ: a slip in a short one, one in ten of a long one.
_SLIPS = 0.1
_SHORTEST_WITH_SLIP = 4
# Pairs of equal words of a quote and a text: more of them are a text of one word, and comparing takes their number.
_MOST_EQUAL = 400_000
# Words beside which white space is free.
_FREE = regex.compile(rf"[{UNSPACED}\p{{Hangul}}]")


def encodable(text: str) -> bool:
    """False for a text with half of a surrogate pair (a cut emoji), which cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def control_token(text: str) -> str | None:
    """The first control token of any family of language models in a text, or None."""
    match = _CONTROL_TOKEN.search(text)
    return None if match is None else match.group()


def is_quoted(quote: str, text: str) -> bool:
    """Whether a text contains a quote, with the usual deviations.

    Case, white space, punctuation and typographic signs may differ, an ellipsis may replace stretches, and one word in
    ten may differ. Words scattered over the text make no quote.

    Example:
        >>> text = 'He wrote: "Copper conducts heat well, and iron less so."'
        >>> is_quoted("copper conducts heat well … iron less so", text), is_quoted("iron conducts heat well", text)
        (True, False)
    """
    if normalized(quote) in normalized(text):
        return True
    source = words_of(text)
    joined = "".join(source)
    parts = [words for part in _LEFT_OUT.split(quote) if (words := words_of(part))]
    return bool(parts) and all("".join(words) in joined or _nearly_in(words, source) for words in parts)


def as_written(quote: str, text: str) -> str:
    r"""The stretch of a text with the words of a quote; the quote itself where other words stand between or instead.

    Example:
        >>> as_written("the rate | 1899 | 7.1", "The rate | 1899 |\n| 7.1 |")
        'The rate | 1899 |\n| 7.1'
    """
    words = words_in(quote)
    parts = [regex.escape(word) for word in words]
    for place in range(len(words) - 1, 0, -1):
        free = any(_FREE.match(word) for word in words[place - 1 : place + 1])
        parts.insert(place, r"\W*" if free else r"\W+")
    stretch = regex.search("".join(parts), text, regex.IGNORECASE) if words else None
    if stretch is None:
        return quote
    # The full stop of a whole sentence belongs to it.
    end = stretch.end() + (quote.rstrip()[-1:] in ".!?" and text[stretch.end() : stretch.end() + 1] in (".", "!", "?"))
    return text[stretch.start() : end]


def _nearly_in(words: list[str], source: list[str]) -> bool:
    """Whether some stretch of the source has these words in this order, but for a few."""
    if len(words) > len(source):
        return False
    counts = Counter(source)
    if sum(counts[word] for word in words) > _MOST_EQUAL:
        return False
    allowed = max(int(_SLIPS * len(words)), int(len(words) > _SHORTEST_WITH_SLIP))
    longest = difflib.SequenceMatcher(None, words, source, autojunk=False).find_longest_match()
    if not longest.size:
        return False
    start = longest.b - longest.a
    stretch = source[max(0, start - allowed) : start + len(words) + allowed]
    matches = difflib.SequenceMatcher(None, words, stretch, autojunk=False).get_matching_blocks()
    return sum(block.size for block in matches) >= len(words) - allowed


def stem(word: str) -> str:
    """A rough English stem: "flies" and "fly" are one word, "war" and "warm" two."""
    for ending, put in (("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("e", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.isdigit():
            return word[: -len(ending)] + put
    return word
