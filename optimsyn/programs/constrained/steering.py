"""How a rubric steers a constrained generator: the sentences that it may quote and the sort of answer.

A 270M base model hardly follows criteria in its prompt: under most rubrics the same seed gives the same pair, and then
no reward can distinguish rubrics. So the schema of its replies follows the rubric too. Strong models do not need this.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from optimsyn.data.records import Rubric
from optimsyn.data.text import stem, words_of
from optimsyn.programs.constrained.spans import FUNCTION_WORDS

# Words of a rubric's question type that name a sort of answer (see `spans.Answer.sort`).
_SORTS: dict[str, frozenset[str]] = {
    "time": frozenset("when year years date dates month day decade century period era".split()),
    "number": frozenset("many much number numbers amount figure figures quantity dose count size price".split()),
    "share": frozenset("percent percentage share proportion rate fraction amount figure figures".split()),
    "name": frozenset("who whom whose name person people author city town country place company".split()),
}


@dataclass(frozen=True)
class Steer:
    """What a rubric asks for.

    Attributes:
        words: Stems of its content words.
        sorts: Sorts of answer that its question type names; none when it names none.
    """

    words: frozenset[str] = frozenset()
    sorts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rubric: Rubric | None) -> Steer:
        """Reads a rubric; without one nothing is steered."""
        if rubric is None:
            return cls()
        words = words_of(rubric.question_type)
        return cls(
            words=_stems(" ".join(rubric.model_dump().values())),
            sorts=frozenset(sort for sort, names in _SORTS.items() if names.intersection(words)),
        )

    def pick(self, sentences: Sequence[str], count: int, draw: random.Random) -> list[str]:
        """The sentences nearest to the rubric, in the order of the text.

        Nearness is the sum, over the stems that rubric and sentence share, of log((1 + n) / (1 + sentences with the
        stem)) + 1 (a smoothed inverse document frequency), so that common words count least. `draw` breaks ties, and
        decides alone without a rubric.
        """
        stems = [_stems(sentence) for sentence in sentences]
        spread = Counter(word for words in stems for word in words)
        weight = {word: math.log((1 + len(sentences)) / (1 + number)) + 1 for word, number in spread.items()}
        order = draw.sample(range(len(sentences)), k=len(sentences))
        order.sort(key=lambda i: -sum(weight[word] for word in sorted(stems[i] & self.words)))
        return [sentences[i] for i in sorted(order[:count])]


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in words_of(text) if word not in FUNCTION_WORDS)
