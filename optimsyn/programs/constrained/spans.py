"""Sentences of a passage and the stretches of a sentence that can be an answer.

A 270M base model that answers freely invents. Constrained to stretches of its quote, it is right far more often.
English is recognised by its function words; in other languages any stretch is of the sort `any`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from optimsyn.programs.constrained.verbs import is_past

_SENTENCE_END = re.compile(r"(?<=[.!?;])[\"'”’)\]]*\s+(?=[\"'“‘(\[•|]*[^\Wa-z_])|(?<=[。！？；])|\n+")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|Gen|Col|Lt|No|vs|cf|e\.g|i\.e|approx|ca|Inc|Ltd|Co)|\b[A-Z])\.$"
)
_YEAR = re.compile(r"^(?:1\d{3}|20\d{2})s?$")
_MONTH = re.compile(r"^(?:January|February|March|April|May|June|July|August|September|October|November|December)$")
_DIGIT = re.compile(r"\d")
_DAY = re.compile(r"^(?:\d{1,2}(?:st|nd|rd|th)?|early|late)$")
_FIGURE = re.compile(r"^[$€£¥]?\d[\d,.]*%?$")
_SCALES = frozenset("percent million billion trillion thousand hundred".split())
_NUMBER_WORDS = _SCALES | frozenset("two three four five six seven eight nine ten eleven twelve twenty thirty".split())
# Function words that an answer may contain: "the fall of the Yuan dynasty", "salt and pepper".
_INSIDE = frozenset("of the a an and".split())
_EDGES = " ,;:.!?\"'‘’“”()[]{}*_•|<>«»。，、；：！？"
_CLOSERS = tuple(',;:.!?)]}"”。，、；：！？')
_OPENING = tuple('([{"“|')
_DASHES = frozenset("- – — | /".split())

FUNCTION_WORDS = frozenset(
    """a an the of in on at by for to from with without within and or but nor as is are was were be been being am it
    its this that these those which who whom whose what he she they them him her their his we our us you your i my not
    no so if than then there here has have had having do does did doing done will would can could may might must should
    shall also into onto over under after before between among during about against through upon toward towards across
    along all some any each every both either neither more most much many such only very just too even still yet when
    where while why how because until unless since although though however therefore thus hence whether per via other
    another same own few several were's did't don't""".split()
)
# A stretch never starts or ends with these either: "called X", "including Y".
_WEAK = frozenset(
    """called named known including considered based according used using thereafter then later soon once now today
    often ago however himself herself itself themselves somewhat quite rather sometimes always never again back
    given""".split()
)


def sentences(text: str, longest: int = 240) -> list[str]:
    """The sentences of a text, each an exact stretch of it; longer ones are cut at `;`, else `,`, else a space.

    Args:
        text: The text.
        longest: Most characters of a sentence.
    """
    parts: list[str] = []
    for start, end in _sentence_ranges(text):
        piece = text[start:end].strip()
        while len(piece) > longest:
            cut = next((at for mark in ";, " if (at := piece.rfind(mark, longest // 4, longest)) > 0), longest - 1)
            parts.append(piece[: cut + 1].strip())
            piece = piece[cut + 1 :].strip()
        parts.append(piece)
    complete = [piece for piece in dict.fromkeys(parts) if len(piece.split()) >= 5 or len(piece) >= 30]
    return complete or [piece for piece in dict.fromkeys(parts) if piece]


def _sentence_ranges(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if "\n" not in match.group() and _ABBREVIATION.search(text[start : match.start()]):
            continue
        yield start, match.end()
        start = match.end()
    yield start, len(text)


def is_english(text: str) -> bool:
    """Whether at least a sixth of the words are English function words."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return bool(words) and sum(word in FUNCTION_WORDS for word in words) * 6 >= len(words)


@dataclass(frozen=True)
class Answer:
    """A stretch of a sentence that can be an answer.

    Attributes:
        text: The stretch.
        sort: time, share, number, name, phrase, or any (when the language is not English).
        before: Words of the sentence before it, with their punctuation.
        after: Words of the sentence after it, with their punctuation; none when punctuation follows at once.
    """

    text: str
    sort: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def answers_in(sentence: str, *, english: bool, longest: int = 6) -> list[Answer]:
    """The stretches of a sentence that can be answers, in its order, each text once.

    Args:
        sentence: One sentence, as `sentences` gives it.
        english: Tell dates, figures and names apart; otherwise all are of the sort `any`.
        longest: Most words of a stretch.
    """
    tokens = sentence.split()
    bare = [token.strip(_EDGES) for token in tokens]
    answers: dict[str, Answer] = {}
    for start, stop in _stretches(tokens, bare, longest):
        words = bare[start:stop]
        text = " ".join(tokens[start:stop]).strip(_EDGES)
        sort = _sort_of(words, sentence_start=start == 0) if english else "any"
        if sort == "number" and start > 1 and _capital(bare[start - 1]):
            continue  # "Note 6", "January 1": a label, not a quantity.
        if sort and text:
            cut = stop < len(tokens) and _breaks(tokens[stop - 1], tokens[stop])
            answers.setdefault(text, Answer(text, sort, tuple(tokens[:start]), () if cut else tuple(tokens[stop:])))
    return list(answers.values())


def _stretches(tokens: list[str], bare: list[str], longest: int) -> Iterator[tuple[int, int]]:
    """Stretches that start and end where a phrase may, beside a function word or punctuation, and cross none."""
    lower = [word.lower() for word in bare]
    weak = [not word or word in FUNCTION_WORDS or word in _WEAK or _adverb(word) for word in lower]
    # Whether a word continues a name: names are never split.
    run = [
        at > 0
        and _capital(bare[at - 1])
        and _capital(bare[at])
        and not weak[at - 1]
        and not _breaks(tokens[at - 1], tokens[at])
        for at in range(len(tokens))
    ]
    for start in range(len(tokens)):
        if weak[start] or run[start] or is_past(bare[start]):
            continue
        if not (
            start == 0
            or _breaks(tokens[start - 1], tokens[start])
            or lower[start - 1] in FUNCTION_WORDS
            or is_past(bare[start - 1])
            or _digits(bare[start])
        ):
            continue
        for stop in range(start + 1, min(start + longest, len(tokens)) + 1):
            if stop > start + 1 and _breaks(tokens[stop - 2], tokens[stop - 1]):
                break
            if lower[stop - 1] in FUNCTION_WORDS - _INSIDE or is_past(bare[stop - 1]):
                break
            closes = (
                stop == len(tokens)
                or _breaks(tokens[stop - 1], tokens[stop])
                or lower[stop] in FUNCTION_WORDS
                or is_past(bare[stop])
                or _adverb(lower[stop])
                or _digits(bare[stop - 1])
                or lower[stop - 1] in _NUMBER_WORDS
            )
            if closes and not weak[stop - 1] and not (stop < len(tokens) and run[stop]):
                yield start, stop


def _breaks(left: str, right: str) -> bool:
    """Whether punctuation stands between two neighbouring words."""
    return left[-1:] in _CLOSERS or right[:1] in _OPENING or left in _DASHES or right in _DASHES


def _sort_of(stretch: list[str], *, sentence_start: bool) -> str:
    """The sort of a stretch of English, "" when it makes no good answer."""
    lower = [word.lower() for word in stretch]
    if any(_YEAR.match(word) or _MONTH.match(word) for word in stretch):
        return "time" if all(_YEAR.match(w) or _MONTH.match(w) or _DAY.match(w) for w in stretch) else ""
    if any(_DIGIT.search(word) for word in stretch):
        # A figure and its scale; what is counted belongs to the question ("How many ships ...").
        if not _FIGURE.match(stretch[0]) or any(word not in _SCALES for word in lower[1:]):
            return ""
        return "share" if lower[-1] == "percent" or stretch[0].endswith("%") else "number"
    if lower[0] in _NUMBER_WORDS:
        return "number" if all(word in _NUMBER_WORDS for word in lower) and lower != ["one"] else ""
    if _capital(stretch[0]) and _capital(stretch[-1]):
        return "" if sentence_start and len(stretch) == 1 and not stretch[0][1:].islower() else "name"
    if len(stretch) == 1 and (len(lower[0]) < 4 or lower[0].endswith(("ed", "ing"))):
        return ""
    verb = len(lower) > 1 and (lower[-1].endswith("ed") or any(w.endswith("ed") for w in lower[1:-1]))
    return "" if verb else "phrase"


def _digits(word: str) -> bool:
    return bool(_FIGURE.match(word) or _YEAR.match(word))


def _capital(word: str) -> bool:
    return bool(word) and word[0].isupper()


def _adverb(word: str) -> bool:
    return word.endswith("ly") and len(word) > 4
