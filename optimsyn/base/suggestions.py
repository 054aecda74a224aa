"""Suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def alike(name: str, known: Iterable[str], *, most: int, cutoff: float = 0.6) -> list[str]:
    """The known names that are similar to another, the most similar first.

    Args:
        name: The name as written.
        known: The existing names.
        most: Return at most so many.
        cutoff: Least similarity, from 0 (anything) to 1 (the same).
    """
    return difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The most similar known name, or None; arguments as for `alike`."""
    return next(iter(alike(name, known, most=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str, *, cutoff: float = 0.6) -> str:
    """The end of a message about an unknown name: a suggestion, else `otherwise`.

    Args:
        name: The name as written.
        known: The existing names.
        otherwise: The text when no name is similar.
        cutoff: As for `alike`.

    Example:
        >>> did_you_mean("tinny", ("full", "tiny"), "choose one of full, tiny")
        'did you mean `tiny`?'
        >>> did_you_mean("huge", ("full", "tiny"), "choose one of full, tiny")
        'choose one of full, tiny'
    """
    near = nearest(name, known, cutoff=cutoff)
    return f"did you mean `{near}`?" if near is not None else otherwise


def nearest_value(value: object, known: Iterable[str]) -> str:
    """For a value that is none of a fixed set: `; did you mean ...?`, to append to a message, or nothing.

    Example:
        >>> nearest_value("randm", ("influence", "random"))
        '; did you mean `random`?'
    """
    near = nearest(value, known) if isinstance(value, str) else None
    return f"; did you mean `{near}`?" if near is not None else ""


def file_beside(path: Path, pattern: str = "*") -> str:
    """For a missing file: ` Did you mean folder/name?`, to append to a sentence, or nothing.

    Args:
        path: The missing file.
        pattern: The files of its folder to suggest from.
    """
    near = nearest(path.name, (file.name for file in path.parent.glob(pattern)))
    return f" Did you mean {path.parent / near}?" if near is not None else ""
