"""What a misspelled name was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def alike(name: str, known: Iterable[str], *, most: int, cutoff: float = 0.6) -> list[str]:
    """The known names that are like another, the likest first.

    Args:
        name: What somebody wrote.
        known: What there is.
        most: How many to give at most.
        cutoff: How like they must be, from 0 (anything) to 1 (the same).
    """
    return difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that is most like another, or None when none is like it; arguments as for `alike`."""
    return next(iter(alike(name, known, most=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str, *, cutoff: float = 0.6) -> str:
    """The end of a message about an unknown name: what was probably meant, else what there is.

    Args:
        name: What somebody wrote.
        known: What there is.
        otherwise: What to say when nothing is like it.
        cutoff: As for `alike`.

    Example:
        >>> did_you_mean("tinny", ("full", "tiny"), "choose one of full, tiny")
        'did you mean `tiny`?'
        >>> did_you_mean("huge", ("full", "tiny"), "choose one of full, tiny")
        'choose one of full, tiny'
    """
    near = nearest(name, known, cutoff=cutoff)
    return f"did you mean `{near}`?" if near is not None else otherwise


def file_beside(path: Path, pattern: str = "*") -> str:
    """The same for a file that is not there: ` Did you mean folder/name?` after a whole sentence, or nothing.

    Args:
        path: Where it was looked for.
        pattern: Which files of that folder may have been meant.
    """
    near = nearest(path.name, (file.name for file in path.parent.glob(pattern)))
    return f" Did you mean {path.parent / near}?" if near is not None else ""
