"""Finds the figures of a text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from optimsyn.data.figures.numerals import NUMERAL, SPELLED, Reading, plain, read, spelled, written
from optimsyn.data.figures.units import (
    BEFORE,
    BEHIND_LETTER,
    BEHIND_SCALE,
    BEHIND_UNIT,
    CURRENCIES,
    SCALE,
    SCALE_LETTER,
    UNIT,
)

_LEFT = re.compile(
    rf"(?P<word>\b(?:minus|negative) )?(?P<sign>[-+])?(?P<bracket>\()?[ \u00a0]?(?P<currency>{BEFORE})?[ \u00a0]?"
    r"(?P<inner>\()?(?P<nearer>[-+])?$",
    re.IGNORECASE,
)
_REACH = 24
# Between the last two of some listed figures, and between others.
_JOINED = re.compile(r",?\s+(?:and|or|to|und|oder|bis|et|ou|y|o|e)\s+|\s*&\s*", re.IGNORECASE)
_LISTED = re.compile(r",\s+")
# A letter that makes a code of the digits beside it (B12, 20th); scripts without spaces have none.
_LETTER = re.compile(r"[A-Za-zÀ-ʯͰ-ӿ_]")


@dataclass(frozen=True)
class Figure:
    """A number with its scale and unit, and its place in the text.

    Attributes:
        value: The number as printed, with its sign.
        power: The power of ten that scale words stand for: 6 for `million`.
        unit: A sign for the unit (`$`, `%`, `kg`), or "".
        start: Where it begins in the text, with sign and currency.
        end: Where it ends, with scale and unit.
        decimals: Digits behind the decimal separator.
        bracketed: It stands in brackets, as tables print negative numbers.
        in_words: It is spelled.
    """

    value: Fraction
    power: int = 0
    unit: str = ""
    start: int = 0
    end: int = 0
    decimals: int = 0
    bracketed: bool = False
    in_words: bool = False

    @property
    def amount(self) -> Fraction:
        """The value with its scale."""
        return self.value * Fraction(10) ** self.power

    @property
    def percent(self) -> bool:
        """Whether its unit is the percent sign."""
        return self.unit == "%"

    @property
    def negated(self) -> Figure:
        """The same figure with the other sign."""
        return replace(self, value=-self.value)

    def __str__(self) -> str:
        return " ".join(filter(None, (written(self.amount), self.unit)))


@dataclass(frozen=True)
class _Scanned:
    reading: Reading
    figure: Figure
    negative: bool
    numeral: str


def parse(text: str, *, decimal_comma: bool | None = None) -> list[Figure]:
    """The figures of a text, in order.

    Dates, times, ranges, versions, ordinals and codes (2019-03-04, 10:30, 1990-95, 1.2.3, 20th, B12, 007) are none. A
    figure in brackets is negative, as in accounts, if it is the whole text and does not look like a year. Listed
    figures share the scale and the unit of the last one (`$1.2 and 1.4 million`), unless one may be a count or a year.

    Args:
        text: Any text.
        decimal_comma: How a numeral with two readings (1,452 or 1.452) is meant; None: as the text's other numerals
            prove, else the English way.

    Example:
        >>> [str(figure) for figure in parse("It rose by 26.7 % to $1,452.4 million.")]
        ['26.7 %', '1452400000 $']
        >>> [str(figure) for figure in parse("$1.2 and 1.4 million")]
        ['1200000 $', '1400000 $']
    """
    if decimal_comma is None:
        decimal_comma = convention(text) == "comma"
    figures = []
    for scanned in _scan(text):
        point, comma = scanned.reading
        value = (comma if decimal_comma else point) if None not in (point, comma) else point if comma is None else comma
        assert value is not None
        mark = r",(\d+)$" if point is None or (decimal_comma and comma is not None) else r"\.(\d+)$"
        decimals = re.search(mark, scanned.numeral)
        figure = scanned.figure
        alone = figure.bracketed and text.strip(" \t\n.") == text[figure.start : figure.end].strip(" .")
        year = re.fullmatch(r"1\d{3}|20\d\d", scanned.numeral) and not figure.unit
        negative = scanned.negative or (alone and not year)
        figures.append(
            Figure(
                -value if negative else value,
                figure.power,
                figure.unit,
                figure.start,
                figure.end,
                len(decimals[1]) if decimals else 0,
                figure.bracketed,
                figure.in_words,
            )
        )
    return _with_shared(figures, text)


def _with_shared(figures: list[Figure], text: str) -> list[Figure]:
    """Figures that are listed, with the scale and the unit that are written once for all of them."""
    shared = list(figures)
    # The last figure of the list that goes on to the left.
    end = 0
    for place in range(len(figures) - 2, -1, -1):
        one, last = shared[place], shared[place + 1]
        between = text[one.end : last.start]
        if not _share(one, last) or not (_JOINED.fullmatch(between) or (end and _LISTED.fullmatch(between))):
            end = 0
            continue
        end = end or place + 1
        shared[place] = replace(one, power=last.power, unit=one.unit or last.unit)
        for later in range(place + 1, end + 1):
            shared[later] = replace(shared[later], unit=shared[later].unit or shared[place].unit)
    return shared


def _share(one: Figure, last: Figure) -> bool:
    """Whether what is written behind the last of two listed figures may be meant for the first one too."""
    if one.in_words or last.in_words or one.power or not (last.power or last.percent):
        return False
    # "In 2018 and 1.4 million" and "5 and 3 million" are two things.
    return (one.unit in CURRENCIES or (not one.unit and one.decimals > 0)) and last.unit in ("", one.unit or last.unit)


def convention(text: str) -> str | None:
    """`comma` or `point`, where the decimals of a text begin, if its numerals prove it and agree."""
    proven = {scanned.reading.convention for scanned in _scan(text)} - {None}
    return proven.pop() if len(proven) == 1 else None


@functools.lru_cache(maxsize=1024)
def _scan(text: str) -> tuple[_Scanned, ...]:
    folded = plain(text)
    found: list[_Scanned] = []
    taken = 0
    for start, end, reading, in_words in _numerals(folded):
        left = _LEFT.search(folded, max(taken, start - _REACH), start)
        assert left is not None
        begin = left.start()
        before = folded[begin - 1 : begin]
        bare = begin == start
        signs = (left["sign"] or "") + (left["nearer"] or "")
        if not in_words:
            if bare and _LETTER.match(before):
                continue
            if left["sign"] and not (left["currency"] or left["bracket"]) and _LETTER.match(before):
                continue  # COVID-19
        if signs and left["sign"] and (before.isalnum() or before in (")", "-", ".")):
            begin, signs = begin + 1, left["nearer"] or ""  # a hyphen
        power, unit, stop = _behind(folded, end, currency=left["currency"] is not None)
        bracket = bool(left["bracket"] or left["inner"])
        bracketed = bracket and folded[stop : stop + 1] == ")"
        if bracketed:
            stop += 1
            more, other, stop = _behind(folded, stop, currency=left["currency"] is not None)
            power, unit = power or more, unit or other
        elif bracket:
            begin = left.end("bracket") if left["bracket"] else begin
        if not in_words and stop == end and _LETTER.match(folded[end : end + 1]):
            continue  # 20th
        if left["currency"]:
            unit = UNIT[left["currency"].lower()]
        # The left part may begin with a blank that belongs to nothing.
        begin += len(folded[begin:start]) - len(folded[begin:start].lstrip(" \u00a0"))
        figure = Figure(Fraction(0), power, unit, begin, stop, bracketed=bracketed, in_words=in_words)
        negative = ("-" in signs) != bool(left["word"])
        found.append(_Scanned(reading, figure, negative, folded[start:end]))
        taken = stop
    return tuple(found)


def _numerals(text: str) -> Iterator[tuple[int, int, Reading, bool]]:
    """Start, end and value of the numerals, in order, and whether they are spelled."""
    found: list[tuple[int, int, Reading, bool]] = []
    for match in NUMERAL.finditer(text):
        reading = read(match.group())
        if reading is not None:
            found.append((match.start(), match.end(), reading, False))
        elif re.fullmatch(r"\d+(?:,\d+)+", match.group()):
            # A list without blanks: 3,5,8.
            start = match.start()
            parts = [(part, read(part.group())) for part in re.finditer(r"\d+", match.group())]
            found += [(start + part.start(), start + part.end(), one, False) for part, one in parts if one is not None]
    for match in SPELLED.finditer(text):
        value = Fraction(spelled(match.group()))
        found.append((match.start(), match.end(), Reading(value, value), True))
    last = 0
    for item in sorted(found):
        if item[0] >= last:
            yield item
            last = item[1]


def _behind(text: str, place: int, *, currency: bool) -> tuple[int, str, int]:
    """Power of ten, unit and end of what stands behind a numeral."""
    power = 0
    scale = BEHIND_SCALE.match(text, place)
    letter = BEHIND_LETTER.match(text, place) if currency else None
    if scale is not None:
        power, place = SCALE[scale["scale"].lower()], scale.end()
    elif letter is not None:
        power, place = SCALE_LETTER[letter["scale"].lower()], letter.end()
    unit = BEHIND_UNIT.match(text, place)
    if unit is None or (currency and UNIT[unit["unit"].lower()] not in CURRENCIES):
        return power, "", place
    return power, UNIT[unit["unit"].lower()], unit.end()
