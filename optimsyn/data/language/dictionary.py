"""Where words begin and end in scripts without spaces, by the dictionaries of ICU."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

import regex

from optimsyn.data.language.known import words
from optimsyn.data.language.segment import UNSPACED

LIBRARY = "icu4py"
"""The distribution that carries ICU and its dictionaries; other versions may part words at other places."""
PARTED = frozenset("zh ja th lo km my".split())
"""Languages that ICU has a dictionary or a model for."""
_UNSPACED = regex.compile(rf"[{UNSPACED}\p{{M}}]")
# A letter behind a figure counts something, and is a word of its own.
_COUNTED = regex.compile(r"\d\p{L}$")


def cut_word(start: int, end: int, text: str, language: str) -> str | None:
    """The word of a text inside which a stretch begins or ends; None where it has whole words.

    What stands before or behind the stretch in that word may be a word without content of its own: then the dictionary
    has joined what does not belong together.

    Args:
        start: Of the stretch, by letters.
        end: Of the stretch.
        text: The normalised text.
        language: Its ISO 639-1 code; only `PARTED` are parted.

    Example:
        >>> text = "壊血病はビタミンの欠乏で起こる。"
        >>> cut_word(4, 8, text, "ja"), cut_word(4, 6, text, "ja")
        (None, 'ビタミン')
    """
    if language not in PARTED:
        return None
    empty = words(language, "empty")
    first, last = word_at(start, text, language), word_at(end, text, language)
    if first is not None and text[first[0] : start] not in empty:
        return text[first[0] : first[1]]
    if last is not None and text[end : last[1]] not in empty and not _COUNTED.search(text[start:end]):
        return text[last[0] : last[1]]
    return None


def word_at(place: int, text: str, language: str) -> tuple[int, int] | None:
    """Start and end of the word that has a place inside it; None between words and between scripts with spaces."""
    if not 0 < place < len(text) or not (_UNSPACED.match(text[place - 1]) and _UNSPACED.match(text[place])):
        return None
    bounds = _bounds(text, language)
    number = bisect_right(bounds, place)
    start, end = bounds[number - 1], bounds[number]
    return None if start == place else (start, end)


@lru_cache(maxsize=64)
def _bounds(text: str, language: str) -> tuple[int, ...]:
    """Where words begin, and the end of the text."""
    # Loads ICU, which no other check needs.
    from icu4py.breakers import WordBreaker

    bounds = [0]
    # `segments` of icu4py 1.2 counts a letter outside the basic plane twice; the words themselves are right.
    for word in WordBreaker(text, language):
        bounds.append(bounds[-1] + len(word))
    return tuple(bounds)
