"""What an author can look up: the other passages of a run, and what kinds of questions its experts ask."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import ModelError
from optimsyn.programs.prompts.fence import fenced_result

if TYPE_CHECKING:
    from optimsyn.data.records import Passage, Question

# Passages that a search shows, and characters of each.
_FOUND = 3
_SHOWN = 240
# Ways to begin a question that are shown, and how many questions must share one.
_OPENINGS = 8
_SHARED = 2
_WORD = re.compile(r"\w+")
MISSING = "the author searches passages with the package bm25s; pip install 'optimsyn[author]'"


def search_problem() -> str | None:
    """What the installation lacks."""
    return MISSING if find_spec("bm25s") is None else None


class Library:
    """The passages of a run, found by their words.

    Args:
        passages: All of them; their numbers count from 1 in this order.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages

    def read(self, number: int) -> Passage | None:
        """A passage by its number."""
        return self.passages[number - 1] if 1 <= number <= len(self.passages) else None

    def search(self, words: str, besides: str) -> list[tuple[int, str]]:
        """Numbers and beginnings of the passages that fit best, best first; without one of an id.

        BM25 in Lucene's variant, over lower-cased runs of letters and digits: any language is treated alike.

        Raises:
            ModelError: bm25s is not installed.
        """
        asked = [word for word in _words(words) if word in self._index.vocab_dict]
        if not asked:
            return []
        scores = self._index.get_scores(asked).tolist()
        best = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
        places = [place for place in best if scores[place] > 0 and self.passages[place].id != besides][:_FOUND]
        return [(place + 1, _beginning(self.passages[place].text)) for place in places]

    @cached_property
    def _index(self) -> Any:
        if (lacking := search_problem()) is not None:
            raise ModelError(lacking)
        import bm25s

        index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        index.index([_words(passage.text) or ["-"] for passage in self.passages], show_progress=False)
        return index


def kinds_of(questions: Sequence[Question]) -> str:
    """What kinds of questions these are, in sentences, without a question or an answer.

    Their texts stay hidden: an author who has read them would be as good as the arm `insider`.

    Args:
        questions: The validation questions. Test questions are never passed here.
    """
    if not questions:
        return "There are no questions."
    forms = Counter(question.kind.replace("_", " ") for question in questions)
    subtasks = Counter(question.subtask for question in questions if question.subtask)
    openings = Counter(" ".join(_words(question.question)[:2]) for question in questions)
    often = [(text, count) for text, count in openings.most_common(_OPENINGS) if count >= _SHARED]
    answers = [len(question.answer.split()) for question in questions]
    figures = sum(any(character.isdigit() for character in question.answer) for question in questions)
    said = [f"{len(questions)} questions: {_counted(forms.most_common())}."]
    if len(subtasks) > 1:
        said.append(f"Subtasks: {_counted(subtasks.most_common())}.")
    if often:
        said.append(f"They often begin: {_counted(often)}.")
    asked = median(len(question.question.split()) for question in questions)
    said.append(f"A question has {asked:g} words, an answer {median(answers):g} (medians).")
    said.append(f"{figures} answers have a figure in them.")
    return fenced_result(" ".join(said))


def _counted(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _beginning(text: str) -> str:
    line = fenced_result(text)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
