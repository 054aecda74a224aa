"""Numerals: which characters are digits, signs and separators, and what a run of them is worth.

A comma or a point may group digits or begin the decimals. A numeral is read in both ways; where only one is possible it
is evidence of its text's convention, and where both are, that evidence decides, or else the English way.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

_MINUS = frozenset("-−﹣－–‐‑‒")
_SEPARATORS = {"٫": ".", "٬": ",", "٪": "%", "’": "'", "‘": "'", "ʼ": "'"}
NO_BREAK = "\u00a0"
_SPACES = frozenset("\u00a0\u202f\u2007\u2009")
# Longer ones are identifiers; Python refuses to convert thousands of digits.
_LONGEST = 60
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
NUMERAL = re.compile(
    rf"(?<![\d.,]) (?: \d+[ {NO_BREAK}]\d+/\d+(?![\d/]) | (?:\d+[ {NO_BREAK}]?)?[{_VULGAR}]"
    rf"  | [1-9]\d{{0,2}}(?:[ {NO_BREAK}]\d{{3}})+(?:[.,]\d+)?(?![\d/:]|[.,'-]\d)"
    r"  | \d+(?:[.,:/'-]\d+)* )"
    r" | (?<![\w.,)]) \.\d+ | (?<=[,.]) \d+ (?:[.,:/'-]\d+)*",
    re.VERBOSE,
)
_POINT = re.compile(r"(?:[1-9]\d{0,2}(?:[,']\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3}|0|[1-9]\d*)?(?:\.\d+)?")
_COMMA = re.compile(r"(?:[1-9]\d{0,2}(?:[.']\d{3})+|0|[1-9]\d*)(?:,\d+)?")
_ONES = "zero one two three four five six seven eight nine ten eleven twelve".split()
_TEENS = "thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SMALL = {word: value for value, word in enumerate([*_ONES, *_TEENS])} | {
    word: 10 * place for place, word in enumerate(_TENS, 2)
}
_DIGITS = "|".join(_ONES[1:10])
_BELOW_100 = rf"(?:{'|'.join(_TENS)})(?:[- ](?:{_DIGITS}))?|{'|'.join(sorted(_SMALL, key=len, reverse=True))}"
SPELLED = re.compile(rf"\b(?:(?:{_DIGITS}) hundred(?: and (?:{_BELOW_100}))?|{_BELOW_100})\b", re.IGNORECASE)


class Reading(NamedTuple):
    """What a numeral is worth where a point begins the decimals, and where a comma does; None: it is none there."""

    point: Fraction | None
    comma: Fraction | None

    @property
    def convention(self) -> str | None:
        """`point` or `comma` if the numeral proves it."""
        if (self.point is None) == (self.comma is None):
            return None
        return "point" if self.comma is None else "comma"


@functools.lru_cache(maxsize=4096)
def _plain(char: str) -> str:
    if char in _MINUS:
        return "-"
    if char in _SPACES:
        return NO_BREAK
    if char in _SEPARATORS:
        return _SEPARATORS[char]
    digit = unicodedata.decimal(char, None)
    if digit is not None:
        return str(digit)
    wide = unicodedata.normalize("NFKC", char)
    # Superscripts and circled digits are no digits of a numeral.
    return wide if len(wide) == 1 and unicodedata.category(char) != "No" else char


def plain(text: str) -> str:
    """The text, of the same length, with ASCII digits, minus signs, separators and currency signs."""
    return text if text.isascii() else "".join(map(_plain, text))


def read(numeral: str) -> Reading | None:
    """The value of a plain numeral; None for a date, time, version, code or range, which is no number."""
    if len(numeral) > _LONGEST:
        return None
    if numeral[-1] in _VULGAR:
        whole = Fraction(int(numeral[:-1])) if numeral[:-1].strip() else Fraction(0)
        value = whole + Fraction(unicodedata.numeric(numeral[-1])).limit_denominator(100)
        return Reading(value, value)
    if "/" in numeral:
        return _fraction(numeral)
    if re.search(rf"[ {NO_BREAK}]", numeral):
        separator = next((char for char in ",." if char in numeral), "")
        value = Fraction(re.sub(r"\s", "", numeral).replace(",", "."))
        return Reading(None if separator == "," else value, None if separator == "." else value)
    point = _POINT.fullmatch(numeral)
    comma = _COMMA.fullmatch(numeral)
    if point is None and comma is None:
        return None
    return Reading(
        None if point is None else Fraction(re.sub(r"[,']", "", numeral)),
        None if comma is None else Fraction(re.sub(r"[.']", "", numeral).replace(",", ".")),
    )


def _fraction(numeral: str) -> Reading | None:
    """A proper fraction, maybe behind a whole number; 9/4, 24/7 and 1/2/2020 are scores, habits and dates."""
    match = re.fullmatch(r"(?:(\d+)\s)?([1-9]\d*)/([1-9]\d*)", numeral)
    if match is None or int(match[2]) >= int(match[3]):
        return None
    value = int(match[1] or 0) + Fraction(int(match[2]), int(match[3]))
    return Reading(value, value)


def spelled(words: str) -> int:
    """The value of simple English number words, such as `one hundred and twenty-one`."""
    hundreds, _, rest = words.lower().rpartition("hundred") if "hundred" in words.lower() else ("", "", words.lower())
    value = 100 * _SMALL[hundreds.strip()] if hundreds else 0
    return value + sum(_SMALL[word] for word in re.split(r"[- ]", rest) if word not in ("", "and"))


def written(value: Fraction) -> str:
    """A value as a plain numeral: `-12.6`, or `1/3` where decimals do not end."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return str(value)
    decimals = max(twos, fives)
    digits = str(abs(value.numerator) * 10**decimals // value.denominator).rjust(decimals + 1, "0")
    number = f"{digits[:-decimals]}.{digits[-decimals:]}" if decimals else digits
    return f"-{number}" if value < 0 else number
