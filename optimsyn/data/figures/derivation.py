"""Derivations: a figure as arithmetic over others, such as `(1,452.4 - 1,146.2) / 1,146.2 * 100`.

The expression is parsed by Python's grammar and evaluated here, exactly and never by `eval`: numbers, + - * / and
brackets.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from fractions import Fraction

from optimsyn.data.figures.numerals import NO_BREAK, plain, read
from optimsyn.data.figures.parse import Figure, convention, parse
from optimsyn.data.figures.units import BEFORE, SCALE

LONGEST = 300
_MOST_OPERANDS = 40
_OPERAND = re.compile(
    rf"[1-9]\d{{0,2}}(?:[ {NO_BREAK}]\d{{3}})+(?:[.,]\d+)?(?!\d)|\d+(?:[.,']\d+)*|\.\d+",
)
_SIGNS = str.maketrans(
    {"[": "(", "]": ")", "{": "(", "}": ")", "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/"}
)
_SCALE = re.compile(
    rf"[ -]?({'|'.join(sorted(map(re.escape, SCALE), key=len, reverse=True))})(?![^\W\d_])", re.IGNORECASE
)
# May stand in a derivation though the passage does not print them: counts of items averaged, months, factors of units.
_CONSTANTS = frozenset(map(Fraction, (*range(1, 13), 100, 1000, 1_000_000)))


class DerivationError(ValueError):
    """A derivation cannot be read; the message says why."""


@dataclass(frozen=True)
class Derivation:
    """An evaluated expression.

    Attributes:
        value: Its exact value, where 6.3 % is 0.063.
        operands: Its figures but for constants.
        in_percent: Its value is a share: 0.267 is 26.7 %.
        in_doubt: It may be a share or not, since all that it divides by are counts: (6.3 + 5.1) / 2, (17 - 8) / 8.
        scaled: An operand has a scale word.
    """

    value: Fraction
    operands: tuple[Figure, ...]
    in_percent: bool
    in_doubt: bool
    scaled: bool

    @classmethod
    def read(cls, text: str, *, decimal_comma: bool | None = None, accounting: bool = False) -> Derivation:
        """Reads and evaluates an expression.

        Args:
            text: The expression.
            decimal_comma: How a numeral with two readings is meant; None: as the others in it prove.
            accounting: Whether a figure alone in brackets is negative, as in accounts.

        Raises:
            DerivationError: It is no arithmetic, too long, or divides by zero.

        Example:
            >>> float(Derivation.read("($1,200 - 1,000) / 1,000 * 100").value)
            20.0
        """
        if len(text) > LONGEST:
            raise DerivationError(f"it has {len(text)} characters, more than {LONGEST}")
        reader = _Reader(text, decimal_comma, accounting)
        value = reader.value(reader.tree.body)
        percent = any(figure.percent for figure in reader.figures)
        hundred = any(figure.value == 100 and not figure.percent for figure in reader.figures)
        free = reader.constants | {place for place, figure in enumerate(reader.figures) if reader.is_free(figure)}
        operands = tuple(figure for place, figure in enumerate(reader.figures) if place not in free)
        scaled = any(figure.power for figure in reader.figures)
        plain = not percent and not hundred
        return cls(value, operands, percent or (reader.ratio and plain), reader.counts and plain, scaled)

    @classmethod
    def readings(cls, text: str, *, decimal_comma: bool | None = None) -> list[Derivation]:
        """The expression as it stands and, where a figure stands alone in brackets, as accounts mean that.

        Raises:
            DerivationError: As for `read`.
        """
        as_it_stands = cls.read(text, decimal_comma=decimal_comma)
        if not re.search(r"[(\[][^-+*/()\[\]]*\d[^-+*/()\[\]]*[)\]]", plain(text)):
            return [as_it_stands]
        return [as_it_stands, cls.read(text, decimal_comma=decimal_comma, accounting=True)]

    def gives(self, answer: Figure, powers: frozenset[int] = frozenset()) -> bool:
        """Whether the value is a figure, rounded to its printed decimals.

        Args:
            answer: The figure.
            powers: Scales that the operands may be meant in, those of their passage.
        """
        half = Fraction(1, 2 * 10**answer.decimals)
        if answer.unit in ("%", "pp"):
            factors = (1, 100) if self.in_doubt else (100,) if self.in_percent else (1,)
            return any(abs(factor * self.value - answer.value) <= half for factor in factors)
        if abs(self.value - answer.amount) <= half * 10**answer.power:
            return True
        if self.scaled:
            return False
        scales = {10**power for power in powers} | {10**answer.power}
        return any(abs(self.value * scale - answer.amount) <= half * 10**answer.power for scale in scales)


class _Reader:
    """Turns the text to an expression of names, one an operand."""

    def __init__(self, text: str, comma: bool | None, accounting: bool) -> None:
        folded = plain(text).translate(_SIGNS).strip().rstrip("=").strip()
        self.figures: list[Figure] = []
        self.constants: set[int] = set()
        self.ratio = self.counts = False
        if comma is None:
            comma = convention(re.sub(r"[-+*/()]", " | ", folded)) == "comma"
        parts: list[str] = []
        place = 0
        for match in _OPERAND.finditer(folded):
            if match.start() < place:
                continue
            parts.append(folded[place : match.start()])
            place = match.end()
            scale = _SCALE.match(folded, place)
            place = scale.end() if scale else place
            percent = re.compile(r"\s?(?:%|percent\b)").match(folded, place)
            place = percent.end() if percent else place
            self.figures.append(_operand(match.group(), scale[1] if scale else "", percent is not None, comma))
            parts.append(f" n{len(self.figures) - 1} ")
        parts.append(folded[place:])
        expression = re.sub(rf"{BEFORE}\s?", "", "".join(parts)).replace(" x ", " * ")
        if not self.figures or len(self.figures) > _MOST_OPERANDS:
            raise DerivationError(f"{text!r:.80} holds no figures" if not self.figures else "it has too many figures")
        if accounting:
            expression = re.sub(r"\(\s*(n\d+)\s*\)", r"(-\1)", expression)
        try:
            self.tree = ast.parse(" ".join(expression.split()), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise DerivationError(f"{text!r:.80} is no arithmetic of figures with + - * / and brackets") from None
        self._text = text

    def value(self, node: ast.expr) -> Fraction:
        """The value of a part of the expression."""
        match node:
            case ast.Name(id=name) if re.fullmatch(r"n\d+", name):
                figure = self.figures[int(name[1:])]
                return figure.amount / 100 if figure.percent else figure.amount
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.value(operand)
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
                first, second = self.value(left), self.value(right)
                return first + second if isinstance(op, ast.Add) else first - second
            case ast.BinOp(left=left, op=ast.Mult() | ast.Div() as op, right=right):
                for side in (left, right) if isinstance(op, ast.Mult) else (right,):
                    self._is_constant(side)
                first, second = self.value(left), self.value(right)
                if isinstance(op, ast.Mult):
                    return first * second
                if self._is_count(right):
                    self.counts = True
                else:
                    self.ratio = True
                if second == 0:
                    raise DerivationError("it divides by zero")
                return first / second
        raise DerivationError(f"{self._text!r:.80} is no arithmetic of figures with + - * / and brackets")

    def is_free(self, figure: Figure) -> bool:
        """Whether a figure may stand anywhere: 0, and 1 where shares or counts are calculated."""
        divides = self.ratio or self.counts or any(other.percent for other in self.figures)
        return figure.value == 0 or (figure.value == 1 and not figure.power and divides)

    def _is_count(self, node: ast.expr) -> bool:
        """Whether a divisor is made of small whole numbers, or of years: a number of items that are averaged."""
        names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
        figures = [self.figures[int(name[1:])] for name in names if re.fullmatch(r"n\d+", name)]
        return all(not each.decimals and (each.value in _CONSTANTS or 1900 <= each.value <= 2100) for each in figures)

    def _constant(self, node: ast.expr) -> Fraction | None:
        """The value of an operand that need not be printed, or None."""
        if not isinstance(node, ast.Name) or not re.fullmatch(r"n\d+", node.id):
            return None
        figure = self.figures[int(node.id[1:])]
        return figure.value if figure.value in _CONSTANTS and not figure.power else None

    def _is_constant(self, node: ast.expr) -> None:
        if isinstance(node, ast.Name) and self._constant(node) is not None:
            self.constants.add(int(node.id[1:]))


def _operand(numeral: str, scale: str, percent: bool, comma: bool) -> Figure:
    if read(numeral) is None:
        raise DerivationError(f"{numeral!r:.40} is no number")
    (figure,) = parse(numeral, decimal_comma=comma)
    power = SCALE[scale.lower()] if scale else 0
    return Figure(figure.value, power, "%" if percent else "", decimals=figure.decimals)
