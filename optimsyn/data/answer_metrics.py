"""Comparing a free answer with the accepted ones: exact match and token F1, normalised as for SQuAD, figures by value.

What a figure is worth and which unit it has is decided in `optimsyn.data.figures`: `$1,452.4 million` is
`$1.4524 billion`, and 15 is not 1.5.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from optimsyn.data.figures import decimal_comma, tokens_match, with_figures
from optimsyn.data.figures.numerals import plain
from optimsyn.data.figures.units import UNIT
from optimsyn.data.language.segment import answer_tokens

_ARTICLES = frozenset(("a", "an", "the"))
_UNITS = frozenset(UNIT.values())
_IS_FIGURE = re.compile(r"-?\d[\d./]*")
# Between the items of an answer that has several.
_JOINING = frozenset("and & und et y e ed og och en i и a 和 と 및 และ و".split()) - _ARTICLES


def normalize_answer(text: str, *, comma: bool = False) -> str:
    """Lower case, no punctuation, no English articles, single spaces (Rajpurkar et al. 2016, evaluation script).

    Three differences: punctuation is Unicode's rather than ASCII's; articles stay if nothing else is left (the answer
    "A" names a vitamin or a choice); and figures become plain numerals of their amount, followed by their unit.

    Args:
        text: An answer.
        comma: Whether numerals with two readings, such as 1.452, have a decimal comma.
    """
    return " ".join(_tokens(text, comma=comma))


def exact_match(prediction: str, answers: Sequence[str], *, tolerance: float = 0.0) -> bool:
    """Whether the prediction equals one of the accepted answers after normalisation.

    Args:
        prediction: The answer of a model.
        answers: The accepted ones.
        tolerance: Largest difference of figures, as a share of the larger one.
    """
    return any(_equal(*_both(prediction, answer), tolerance) for answer in answers)


def token_f1(prediction: str, answers: Sequence[str], *, tolerance: float = 0.0) -> float:
    """Largest harmonic mean, over the accepted answers, of precision and recall of the prediction's tokens.

    Between answers with figures a unit counts only beside a figure that both have: two amounts of dollars have
    nothing in common.
    """
    return max((_f1(*_both(prediction, answer), tolerance) for answer in answers), default=0.0)


def all_given(prediction: str, items: Sequence[str], *, tolerance: float = 0.0) -> bool:
    """Whether the prediction gives all of these items, in any order, and nothing else but words that join them."""
    comma = decimal_comma(prediction, *items)
    rest = _tokens(prediction, comma=comma)
    for wanted in sorted((_tokens(item, comma=comma) for item in items), key=len, reverse=True):
        starts = range(len(rest) - len(wanted) + 1)
        start = next((i for i in starts if _equal(rest[i : i + len(wanted)], wanted, tolerance)), None)
        if start is None or not wanted:
            return False
        # A mark in its place, so that no item spans two others.
        rest[start : start + len(wanted)] = [""]
    return all(token in _JOINING for token in rest if token)


def all_given_f1(prediction: str, items: Sequence[str], *, tolerance: float = 0.0) -> float:
    """Token F1 against all items together, as TAT-QA's metric joins them; words that join items do not count."""
    comma = decimal_comma(prediction, *items)
    wanted = [token for item in items for token in _tokens(item, comma=comma)]
    joining = _JOINING - set(wanted)
    return _f1([token for token in _tokens(prediction, comma=comma) if token not in joining], wanted, tolerance)


def _both(one: str, other: str) -> tuple[list[str], list[str]]:
    comma = decimal_comma(one, other)
    return _tokens(one, comma=comma), _tokens(other, comma=comma)


def _tokens(text: str, *, comma: bool) -> list[str]:
    tokens = with_figures(text, _words, comma=comma)
    return [token for token in tokens if token not in _ARTICLES] or tokens


def _equal(one: Sequence[str], other: Sequence[str], tolerance: float) -> bool:
    return len(one) == len(other) and all(tokens_match(a, b, tolerance) for a, b in zip(one, other, strict=True))


def _f1(predicted: list[str], wanted: list[str], tolerance: float) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    left = list(wanted)
    common = []
    for token in predicted:
        place = next((i for i, other in enumerate(left) if tokens_match(token, other, tolerance)), None)
        if place is not None:
            common.append(left.pop(place))
    both = all(any(map(_IS_FIGURE.fullmatch, side)) for side in (predicted, wanted))
    if both and not any(map(_IS_FIGURE.fullmatch, common)):
        common = [token for token in common if token not in _UNITS]
    return 2 * len(common) / (len(predicted) + len(wanted))


def _words(text: str) -> list[str]:
    """The words between figures; marks that tell words or numbers apart stay: C#, C++, A-, 10:30, 1.2.3."""
    folded = unicodedata.normalize("NFKC", plain(text)).lower()
    kept = []
    for place, char in enumerate(folded):
        before, behind = folded[:place][-1:], folded[place + 1 : place + 2]
        between = before.isdecimal() and behind.isdecimal() and char in ".,:/-'"
        sharp = char == "#" and before.isascii() and before.isalnum()  # in no script whose words have no spaces
        # A- is a blood group, Cl- an ion; a longer word that ends so is cut off or joined to the next.
        minus = char == "-" and not behind.strip() and re.search(r"\b[^\W\d_]{1,2}$", folded[:place])
        if between or sharp or minus or not unicodedata.category(char).startswith("P"):
            kept.append(char)
    return answer_tokens("".join(kept))
