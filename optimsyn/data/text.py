"""Small helpers on text that the readers, the splits and the duplicate search share."""

from __future__ import annotations

import difflib
import re
import unicodedata

_SPACES = re.compile(r"\s+")
_WORDS = re.compile(r"\w+", re.UNICODE)
# English words that carry no content of a question.
STOP_WORDS = frozenset(
    (
        "a an and are as at be been being by can could did do does for from had has have how in into is it its may "
        "might must of on or our shall should so than that the their them then there these they this those to was we "
        "were what when where which while who whom whose why will with would you your"
    ).split()
)
# A run without spaces that is longer than this is no word of a language written with spaces: a Chinese sentence, a
# table rule, a base64 blob. It counts as several words, so that passages stay passages.
_LONGEST_WORD = 24
_CHARS_A_WORD = 6
# The control tokens of chat models and of older ones, whoever's they are: no person writes them into an answer.
_CONTROL_TOKEN = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?s>|<(?:pad|eos|bos|unk|mask)>|<(?:start|end)_of_(?:turn|image|text)>"
    r"|<unused\d+>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"
    r"|</?(?:think|tool_call|tool_response)>|\[(?:CLS|SEP|PAD|MASK|UNK)\]"
)
# Marks that no eye sees and that turn the direction of writing, or only pin it.
BIDI_CONTROLS = tuple(map(ord, "\u061c\u200e\u200f")) + tuple(range(0x202A, 0x202F)) + tuple(range(0x2066, 0x206A))
_UNMARKED = dict.fromkeys(BIDI_CONTROLS)
_LEFT_OUT = re.compile(r"\[?(?:\.\s?\.\s?\.|…)\]?")
# Words of a quote that may differ: a slip in a short one, one in ten of a long one.
_SLIPS = 0.1
_SHORTEST_WITH_SLIP = 4


def encodable(text: str) -> bool:
    """False for a text with half of a surrogate pair (a cut emoji), which cannot be written to any file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def control_token(text: str) -> str | None:
    """The first string in a text that is a control token to some family of language models, or None."""
    match = _CONTROL_TOKEN.search(text)
    return None if match is None else match.group()


def normalized(text: str) -> str:
    """`text` as it is compared: Unicode NFKC, case folded, no marks of direction, runs of white space as one."""
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text).translate(_UNMARKED).casefold()).strip()


def words_of(text: str) -> list[str]:
    """The words of the normalised text, without punctuation; digits are words."""
    return _WORDS.findall(normalized(text))


def is_quoted(quote: str, text: str) -> bool:
    """Whether a quote stands in a text, as people and models quote.

    Case, white space, punctuation and typographic signs may differ, stretches may be left out with an ellipsis, and
    one word in ten may be another. Words that merely occur somewhere in the text make no quote.

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


def _nearly_in(words: list[str], source: list[str]) -> bool:
    """Whether some stretch of the source has these words in this order, but for a few."""
    if len(words) > len(source):
        return False
    allowed = max(int(_SLIPS * len(words)), int(len(words) > _SHORTEST_WITH_SLIP))
    longest = difflib.SequenceMatcher(None, words, source, autojunk=False).find_longest_match()
    if not longest.size:
        return False
    start = longest.b - longest.a
    stretch = source[max(0, start - allowed) : start + len(words) + allowed]
    matches = difflib.SequenceMatcher(None, words, stretch, autojunk=False).get_matching_blocks()
    return sum(block.size for block in matches) >= len(words) - allowed


def word_count(text: str) -> int:
    """Words by white space; longer unbroken runs count one word per six characters."""
    return sum(1 if len(w) <= _LONGEST_WORD else -(-len(w) // _CHARS_A_WORD) for w in text.split())


def stem(word: str) -> str:
    """A rough English stem: enough to know "flies" from "fly" as one word and "war" from "warm" as two."""
    for ending, put in (("ies", "y"), ("ied", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("e", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.isdigit():
            return word[: -len(ending)] + put
    return word
