"""Compares figures, and answers that hold some."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from optimsyn.data.figures.numerals import written
from optimsyn.data.figures.parse import Figure, convention, parse

_NUMBER = re.compile(r"-?\d+(?:\.\d+|/\d+)?")


def same(one: Figure, other: Figure, tolerance: float = 0.0) -> bool:
    """Whether two figures have the same unit and, within a relative tolerance, the same amount."""
    return one.unit == other.unit and _close(one.amount, other.amount, tolerance)


def compare(prediction: str, gold: str, tolerance: float = 0.0) -> bool:
    """Whether two texts give the same figures, with their units, in the same order; False if the gold one has none.

    Other words do not count. A numeral with two readings is read as the other text's numerals prove it.

    Args:
        prediction: One text.
        gold: The other.
        tolerance: Largest difference, as a share of the larger amount.

    Example:
        >>> compare("about $1.4524 billion", "$1,452.4 million"), compare("26.7", "26.7 %"), compare("1.452,0", "1.452")
        (True, False, True)
    """
    comma = decimal_comma(prediction, gold)
    said, wanted = parse(prediction, decimal_comma=comma), parse(gold, decimal_comma=comma)
    if not wanted or len(said) != len(wanted):
        return False
    return all(same(one, other, tolerance) for one, other in zip(said, wanted, strict=True))


def decimal_comma(*texts: str) -> bool:
    """Whether numerals with two readings have a decimal comma in texts that are compared."""
    return {convention(text) for text in texts} - {None} == {"comma"}


def with_figures(text: str, words: Callable[[str], list[str]], *, comma: bool = False) -> list[str]:
    """The tokens of a text in which each figure is one token, its amount as a plain numeral, followed by its unit.

    Args:
        text: The text.
        words: The tokens of what stands between figures.
        comma: Whether numerals with two readings have a decimal comma.

    Example:
        >>> with_figures("$1,452.4 million in all", str.split)
        ['1452400000', '$', 'in', 'all']
    """
    tokens: list[str] = []
    place = 0
    for figure in parse(text, decimal_comma=comma):
        tokens += [*words(text[place : figure.start]), written(figure.amount), *filter(None, [figure.unit])]
        place = figure.end
    return tokens + words(text[place:])


def tokens_match(one: str, other: str, tolerance: float = 0.0) -> bool:
    """Whether two tokens of answers are equal, or two numbers within a relative tolerance."""
    if one == other:
        return True
    if not tolerance or not (_NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)):
        return False
    return _close(Fraction(one), Fraction(other), tolerance)


def _close(one: Fraction, other: Fraction, tolerance: float) -> bool:
    if one == other:
        return True
    # The sign is never within the tolerance.
    return one * other > 0 and abs(one - other) <= Fraction(tolerance) * max(abs(one), abs(other))
