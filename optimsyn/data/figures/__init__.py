"""Figures in texts: their value, scale and unit, whether two are the same, and arithmetic over them."""

from optimsyn.data.figures.compare import compare, decimal_comma, same, tokens_match, with_figures
from optimsyn.data.figures.derivation import Derivation, DerivationError
from optimsyn.data.figures.parse import Figure, convention, parse
from optimsyn.data.figures.printed import Printed

__all__ = [
    "Derivation",
    "DerivationError",
    "Figure",
    "Printed",
    "compare",
    "convention",
    "decimal_comma",
    "parse",
    "same",
    "tokens_match",
    "with_figures",
]
