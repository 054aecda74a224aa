"""The part of a long document that an open-book question is about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from optimsyn.data.passages import passage_spans
from optimsyn.data.text import normalized, word_count, words_of

EXCERPT_WORDS = 400
_PIECE_WORDS = 80
_ANSWER_WEIGHT = 3.0


def excerpt(text: str, question: str, answers: Sequence[str], words: int = EXCERPT_WORDS) -> str:
    """A stretch of at most `words` words around what the question is about; a shorter text is returned whole.

    An open-book question about a contract of fifty pages cannot be asked with all of it. The stretch is chosen by the
    rare words of the question, and by the gold answer if the text has it. So the model has to find the answer on the
    right page, not the page.
    """
    if word_count(text) <= words:
        return text
    spans, texts, bags = _pieces(text, min(_PIECE_WORDS, words))
    scores = [0.0] * len(texts)
    for word in set(words_of(question)):
        holders = [i for i, bag in enumerate(bags) if word in bag]
        for i in holders:
            scores[i] += math.log(1 + len(texts) / len(holders))
    for answer in {normalized(answer) for answer in answers} - {""}:
        holders = [i for i, piece in enumerate(texts) if f" {answer}" in f" {piece}"]
        for i in holders:
            # An answer such as "2" or "yes" that is everywhere says nothing about the place.
            scores[i] += _ANSWER_WEIGHT * math.log(len(texts) / len(holders))
    first = last = max(range(len(texts)), key=lambda i: (scores[i], -i))
    grown = True
    while grown:
        grown = False
        for low, high in ((first - 1, last), (first, last + 1)):
            inside = low >= 0 and high < len(spans)
            if inside and word_count(text[spans[low][0] : spans[high][1]]) <= words:
                first, last, grown = low, high, True
                break
        # Grow on the other side next, so that the best piece stays in the middle.
        if grown and last + 1 < len(spans) and word_count(text[spans[first][0] : spans[last + 1][1]]) <= words:
            last += 1
    return text[spans[first][0] : spans[last][1]]


@lru_cache(maxsize=64)
def _pieces(text: str, words: int) -> tuple[list[tuple[int, int]], list[str], list[set[str]]]:
    """Spans of a document, normalised texts and word sets; cached, since a document has several questions."""
    spans = passage_spans(text, words)
    texts = [normalized(text[start:end]) for start, end in spans]
    return spans, texts, [set(words_of(piece)) for piece in texts]
