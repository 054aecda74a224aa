"""A number with its noun."""

from __future__ import annotations


def plural(number: int, one: str, many: str | None = None) -> str:
    """A count with its noun in the right number.

    Args:
        number: The count.
        one: The noun in the singular.
        many: Its plural; None: with an s.

    Example:
        >>> plural(1, "pair"), plural(1200, "pair"), plural(0, "reply", "replies")
        ('1 pair', '1,200 pairs', '0 replies')
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
