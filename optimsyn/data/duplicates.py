"""Near-duplicate questions: keeps test questions out of the pairs, and pairs unique."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from optimsyn.data.figures.compare import compare
from optimsyn.data.forms import form_of
from optimsyn.data.language.segment import has_unspaced
from optimsyn.data.records import Pair, Question
from optimsyn.data.text import STOP_WORDS, normalized, words_of

_NUMBER = re.compile(r"\d")
_MIN_CONTENT_WORDS = 4
_ALMOST = 0.999


@dataclass(frozen=True)
class Match:
    """The most similar text of an index: its position and the similarity in [0, 1], 1 for equal texts."""

    index: int
    similarity: float


class NearDuplicates:
    """Finds near-duplicates of a text exactly (an inverted index, no hashing).

    Similarity is the Jaccard index of the sets of words and of neighbouring word pairs. It is 1 only if the texts are
    equal except for case, white space and punctuation, and at least the threshold if both have the same four or more
    content words. Texts with different numbers are never duplicates ("sales in 2018", "sales in 2019").

    Example:
        >>> index = NearDuplicates(["Which vitamin prevents scurvy?"])
        >>> index.match("which vitamin  prevents scurvy")
        Match(index=0, similarity=1.0)
    """

    def __init__(self, texts: Sequence[str], threshold: float = 0.8) -> None:
        self.threshold = threshold
        self._features: list[frozenset[str]] = []
        self._numbers: list[Counter[str]] = []
        self._exact: dict[str, int] = {}
        self._content: dict[tuple[str, ...], int] = {}
        self._postings: defaultdict[str, list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._features)

    def add(self, text: str) -> None:
        """Adds one text at the next position."""
        index = len(self._features)
        words = words_of(text)
        features = _features(words)
        self._features.append(features)
        self._numbers.append(_numbers(words))
        self._exact.setdefault(_plain(text, words), index)
        content = _content(words)
        if content is not None:
            self._content.setdefault(content, index)
        for feature in features:
            self._postings[feature].append(index)

    def match(self, text: str) -> Match | None:
        """The most similar text at or above the threshold, the earliest among equals; None without one."""
        words = words_of(text)
        equal = self._exact.get(_plain(text, words))
        if equal is not None:
            return Match(equal, 1.0)
        features = _features(words)
        content = _content(words)
        if content is not None and content in self._content:
            index = self._content[content]
            return Match(index, max(self.threshold, min(_ALMOST, _jaccard(features, self._features[index]))))
        numbers = _numbers(words)
        best: Match | None = None
        for index in sorted(self.candidates(features)):
            if numbers != self._numbers[index]:
                continue
            # Equal sets of words in another order are similar, not equal.
            similarity = min(_ALMOST, _jaccard(features, self._features[index]))
            if similarity < self.threshold:
                continue
            if best is None or similarity > best.similarity:
                best = Match(index, similarity)
        return best

    def candidates(self, features: frozenset[str]) -> set[int]:
        """All texts that can be similar, found by the rarest features.

        A similar text has at least threshold * n of the n features, so it has at least one of the rarest
        n - threshold * n + 1. Common phrases are then never looked up.
        """
        needed = max(1, math.ceil(self.threshold * len(features) - 1e-9))
        rarest = sorted(features, key=lambda feature: (len(self._postings.get(feature, ())), feature))
        return {index for feature in rarest[: len(features) - needed + 1] for index in self._postings.get(feature, ())}


def question_text(item: Question | Pair) -> str:
    """The text to compare questions by: question and, since many stems are stock phrases, options and the like."""
    return "\n".join(form_of(item).parts(item))


def question_scope(item: Question | Pair) -> str:
    """Only questions of one scope can be the same: on the same text, or both closed book."""
    return normalized(item.context) if item.context is not None else ""


def overlap(
    first: Sequence[Question], second: Sequence[Question], threshold: float = 0.8
) -> list[tuple[int, int, bool]]:
    """`(index in second, index in first, word for word)` of the questions that are, nearly, in both."""
    by_scope: dict[str, tuple[NearDuplicates, list[int]]] = {}
    for position, question in enumerate(first):
        index, positions = by_scope.setdefault(question_scope(question), (NearDuplicates([], threshold), []))
        index.add(question_text(question))
        positions.append(position)
    matches = []
    for position, question in enumerate(second):
        entry = by_scope.get(question_scope(question))
        match = entry[0].match(question_text(question)) if entry is not None else None
        if entry is not None and match is not None:
            matches.append((position, entry[1][match.index], match.similarity == 1.0))
    return matches


def contradicting(questions: Sequence[Question]) -> list[tuple[int, int]]:
    """Indices `(earlier, later)` of equal questions of one scope where neither accepts the other's answer."""
    asked: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    found = []
    for position, question in enumerate(questions):
        same = asked[question_scope(question), " ".join(words_of(question_text(question)))]
        earlier = next((each for each in same if not _agree(questions[each], question)), None)
        if earlier is not None:
            found.append((earlier, position))
        same.append(position)
    return found


def _agree(first: Question, second: Question) -> bool:
    gold, other = ({normalized(text) for text in (each.answer, *each.answers)} for each in (first, second))
    if normalized(first.answer) in other or normalized(second.answer) in gold:
        return True
    # "1.4524 billion dollars" is "$1,452.4 million".
    return first.kind == "figure" and compare(first.answer, second.answer)


def unique_pairs(pairs: Sequence[Pair], threshold: float = 0.8) -> list[int]:
    """Indices of the pairs without repeated ones, ascending; the earliest is kept.

    A pair is repeated if an earlier one asks the same question on the same text word for word, or nearly the same
    question with the same answer; similar questions with different answers are different facts.
    """
    by_scope: dict[tuple[str, str], NearDuplicates] = {}
    asked: set[tuple[str, str]] = set()
    positions = []
    for position, pair in enumerate(pairs):
        scope = question_scope(pair)
        text = question_text(pair)
        words = (scope, " ".join(words_of(text)))
        near = by_scope.setdefault((scope, normalized(pair.answer)), NearDuplicates([], threshold))
        if words in asked or near.match(text) is not None:
            continue
        asked.add(words)
        near.add(text)
        positions.append(position)
    return positions


def _jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    return len(first & second) / len(first | second)


def _features(words: list[str]) -> frozenset[str]:
    return frozenset(words) | {f"{a} {b}" for a, b in pairwise(words)}


def _numbers(words: list[str]) -> Counter[str]:
    # Between letters of a script without spaces an abbreviation tells as much apart as a number (维生素A, 维生素C).
    unspaced = sum(map(has_unspaced, words)) > len(words) / 2
    return Counter(word for word in words if _NUMBER.search(word) or (unspaced and word.isascii()))


def _content(words: list[str]) -> tuple[str, ...] | None:
    content = sorted(word for word in words if word not in STOP_WORDS)
    return tuple(content) if len(content) >= _MIN_CONTENT_WORDS else None


def _plain(text: str, words: list[str]) -> str:
    # Texts of symbols only have no words.
    return " ".join(words) or normalized(text)
