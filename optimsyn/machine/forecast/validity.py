"""How many drafts of pairs are valid, and how many a pair takes, before a run has shown it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.runs.forecast import Range

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import Recipe

_VALID = Range(low=0.95, expected=0.8, high=0.3)
# Of two rounds over five domains: nine in ten of the first drafts of finance and humanities, a third of those with
# options.
_EMBEDDED_VALID = Range(low=0.9, expected=0.55, high=0.1)


def valid_at_last(recipe: Recipe) -> Range:
    """The share of valid pairs before any is known; of those that may be written again, after the last draft."""
    tries = _tries(recipe)
    first = valid_at_first(recipe)
    low, expected, high = (1 - (1 - share) ** tries for share in (first.low, first.expected, first.high))
    return Range(low=low, expected=expected, high=high)


def valid_at_first(recipe: Recipe) -> Range:
    """The share of valid first drafts of pairs before any is known."""
    return _EMBEDDED_VALID if recipe.models.generator.provider == "embedded" else _VALID


def _tries(recipe: Recipe) -> int:
    """The most drafts of a pair; a writer that is told nothing and is greedy has one."""
    generator = recipe.models.generator
    greedy = generator.provider == "embedded" and generator.temperature == 0
    return 1 if greedy else recipe.checks.redrafts + 1


def drafts_a_pair(recipe: Recipe, known: float | None) -> Range:
    """Drafts of a pair, where one that is not valid is written again: each one more only if all before it failed.

    `known` is their mean in the first draft; None where there is none yet.
    """
    tries = _tries(recipe)
    first = valid_at_first(recipe)
    low, expected = (sum((1 - share) ** n for n in range(tries)) for share in (first.low, first.expected))
    if known is not None:
        low, expected = 0.5 * (1 + known), known
    return Range(low=low, expected=expected, high=float(tries))
