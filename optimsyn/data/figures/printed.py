"""What figures a passage prints."""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from optimsyn.data.figures.numerals import NUMERAL, plain, read
from optimsyn.data.figures.parse import Figure, convention, parse
from optimsyn.data.figures.units import CURRENCIES, SCALE, UNIT

# A negative figure may be written as a fall by the positive one.
_FALL = re.compile(
    r"\b(?:decreas|declin|fell|fall|drop|los[st]|lower|down\b|reduc|deficit|below|less\b|shr[aiu]nk|minus|negative)",
    re.IGNORECASE,
)
_WORDS = re.compile(r"US\$|[%$€£¥₩₹円원万萬만亿億억兆조]|[^\W\d_]+\.?")
# The heads of tables: $'000, (000s), £m.
_OF_TABLES = {3: r"(?<![\d.,])'?000(?:'?s)?\b", 6: r"[$€£] ?[mM]\b", 9: r"[$€£] ?[bB]n?\b"}


class Printed:
    """The figures that a passage prints.

    Args:
        text: Title and text of the passage.

    Attributes:
        decimal_comma: How a numeral with two readings is meant, as the passage's others prove; None: they do not.
        powers: The powers of ten of the scale words in it, such as `in millions` over a table.
    """

    def __init__(self, text: str) -> None:
        proven = convention(text)
        self.decimal_comma = None if proven is None else proven == "comma"
        commas = (False, True) if self.decimal_comma is None else (self.decimal_comma,)
        self._figures = [figure for comma in commas for figure in parse(text, decimal_comma=comma)]
        self._falls = {figure.start for figure in self._figures if _FALL.search(_around(text, figure))}
        # A dash in a table's cell is nothing.
        self._pieces = _pieces(text) | ({Fraction(0)} if re.search(r"\|\s*[-–—]\s*\|", text) else frozenset())
        words = [match.group().casefold() for match in _WORDS.finditer(plain(text))]
        words += [word.rstrip(".") for word in words]
        of_tables = {power for power, pattern in _OF_TABLES.items() if re.search(pattern, plain(text))}
        self.powers = frozenset({SCALE[word] for word in words if word in SCALE} | of_tables)
        self._units = frozenset(UNIT[word] for word in words if word in UNIT)
        if re.search(r"\bper cent\b", text, re.IGNORECASE):
            self._units |= {"%"}

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, text: str) -> Printed:
        """The same, kept for the next pair of the passage."""
        return cls(text)

    def parse(self, text: str) -> list[Figure]:
        """The figures of a text about the passage, with its convention for separators."""
        return parse(text, decimal_comma=self.decimal_comma)

    def missing(self, text: str) -> Figure | None:
        """The first figure of a text that the passage does not print; spelled ones do not count."""
        figures = [figure for figure in self.parse(text) if not figure.in_words]
        return next((figure for figure in figures if not self.gives(figure)), None)

    def rest(self, text: str, *, derived: bool = False) -> str:
        """A text without the figures that the passage prints; without any but spelled ones if they are `derived`."""
        figures = [figure for figure in self.parse(text) if (derived and not figure.in_words) or self.gives(figure)]
        places = [0, *(place for figure in figures for place in (figure.start, figure.end)), len(text)]
        return " ".join(text[start:end] for start, end in zip(places[::2], places[1::2], strict=True))

    def gives(self, figure: Figure) -> bool:
        """Whether the passage prints a figure.

        Scale and currency may stand elsewhere in the passage, as over a table, and may be left out. A table's brackets
        are a minus sign, and `fell by 3 %` prints -3 %.
        """
        if any(self._is(figure, printed) for printed in self._figures):
            return True
        whole = not figure.power and not figure.unit and not figure.decimals and figure.value >= 0
        return whole and figure.value in self._pieces

    def _is(self, figure: Figure, printed: Figure) -> bool:
        told = figure.unit in self._units or figure.unit not in CURRENCIES | {"%"}
        if figure.unit and figure.unit != printed.unit and (printed.unit or not told):
            return False
        lent = not figure.power or (not printed.power and figure.power in self.powers)
        for value in self._signed(printed):
            if figure.amount == value * 10**printed.power or (lent and figure.value == value):
                return True
        return False

    def _signed(self, printed: Figure) -> tuple[Fraction, ...]:
        negative_too = printed.bracketed or printed.start in self._falls
        return (printed.value, -abs(printed.value)) if negative_too else (printed.value,)


def _around(text: str, figure: Figure) -> str:
    """The figure's sentence, as far as it goes."""
    before = re.split(r"[.!?;|\n](?=\s)", text[max(0, figure.start - 120) : figure.start])[-1]
    return before + re.split(r"[.!?;|\n](?=\s|$)", text[figure.end : figure.end + 60])[0]


def _pieces(text: str) -> frozenset[Fraction]:
    """Whole numbers inside of dates, ranges, ordinals, codes and rows of numbers."""
    whole: set[Fraction] = set()
    for match in NUMERAL.finditer(plain(text)):
        numeral = match.group()
        if read(numeral) is None or re.search(r"\s", numeral) or text[match.end() : match.end() + 1].isalpha():
            parts = re.split(r"[^\d.,]+", numeral) if re.search(r"[^\d.,]", numeral) else re.split(r"[.,]", numeral)
            whole |= {Fraction(int(part)) for part in parts if part.isdecimal() and len(part) < 20}
        elif text[match.start() - 1 : match.start()] in ("-", "–", "‑") and match.start():
            whole |= {Fraction(int(numeral))} if numeral.isdecimal() and len(numeral) < 20 else set()
    return frozenset(whole)
