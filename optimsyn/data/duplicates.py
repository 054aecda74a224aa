"""Near-duplicate questions, so that nothing held back is taught and nothing is asked twice."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from optimsyn.data.forms import form_of
from optimsyn.data.records import Pair, Question
from optimsyn.data.text import STOP_WORDS, normalized, words_of

_NUMBER = re.compile(r"\d")
_MIN_CONTENT_WORDS = 4
_ALMOST = 0.999


@dataclass(frozen=True)
class Match:
    """The most alike text of an index: its position and the similarity in [0, 1], 1 for equal texts."""

    index: int
    similarity: float


class NearDuplicates:
    """Finds texts that say almost the same as a given one, exactly (an inverted index, no hashing).

    Similarity is the Jaccard index of the sets of words and of neighbouring word pairs. It is 1 only when the two texts
    are equal but for case, white space and punctuation, and it is raised to the threshold when both have the same four
    or more content words. Texts whose numbers differ are never duplicates: "sales in 2018" and "sales in 2019" are two
    questions.

    Args:
        texts: The texts to search in.
        threshold: Least similarity that counts.

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
        """The most alike text of the index at or above the threshold, the earliest among equals; None without one."""
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
            # Equal sets of words in another order are alike, not equal: that answer was given above.
            similarity = min(_ALMOST, _jaccard(features, self._features[index]))
            if similarity < self.threshold:
                continue
            if best is None or similarity > best.similarity:
                best = Match(index, similarity)
        return best

    def candidates(self, features: frozenset[str]) -> set[int]:
        """All texts that can be alike: who shares a share of these features shares one of the rarest of them.

        Of n features an alike text has at least threshold * n, so it lacks too few to lack all of the others. Stock
        phrases, which most texts share, are then never looked at.
        """
        needed = max(1, math.ceil(self.threshold * len(features) - 1e-9))
        rarest = sorted(features, key=lambda feature: (len(self._postings.get(feature, ())), feature))
        return {index for feature in rarest[: len(features) - needed + 1] for index in self._postings.get(feature, ())}


def question_text(item: Question | Pair) -> str:
    """What two questions are compared by: their words and, as many stems are stock phrases, options and the like."""
    return "\n".join(form_of(item).parts(item))


def question_scope(item: Question) -> str:
    """Questions can only be the same within one scope: asked about the same text, or both asked closed book."""
    return normalized(item.context) if item.context is not None else ""


def overlap(
    first: Sequence[Question], second: Sequence[Question], threshold: float = 0.8
) -> list[tuple[int, int, bool]]:
    """Which questions of `second` are already in `first`, word for word or nearly.

    Returns:
        Triples `(index in second, index in first, word for word)`, in the order of `second`.
    """
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


def unique_pairs(pairs: Sequence[Pair], threshold: float = 0.8) -> list[int]:
    """The pairs that are left when repeated ones are taken out, the earliest of each kind kept.

    A pair is repeated when an earlier one asks the same question of the same text word for word, or nearly the same
    question with the same answer; near questions with different answers are different facts.

    Returns:
        Indices into `pairs`, ascending.
    """
    by_scope: dict[tuple[str, str], NearDuplicates] = {}
    asked: set[tuple[str, str]] = set()
    positions = []
    for position, pair in enumerate(pairs):
        scope = normalized(pair.context) if pair.context is not None else ""
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
    return Counter(word for word in words if _NUMBER.search(word))


def _content(words: list[str]) -> tuple[str, ...] | None:
    content = sorted(word for word in words if word not in STOP_WORDS)
    return tuple(content) if len(content) >= _MIN_CONTENT_WORDS else None


def _plain(text: str, words: list[str]) -> str:
    # Texts of symbols only have no words; they are compared as they are.
    return " ".join(words) or normalized(text)
