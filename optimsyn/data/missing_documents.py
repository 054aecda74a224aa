"""Questions that name a missing document: how many, which, and suggestions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from optimsyn.base.suggestions import nearest

_EXAMPLES = 3
# Fuzzy matching is slow.
_COMPARED = 2000
_ENDING = re.compile(r"\.[a-z]{1,8}$")


class Names:
    """The ids of documents, to find the one closest to a wrong id.

    Example:
        >>> Names(["texts/scurvy.md", "rickets.md"]).closest("Scurvy")
        'texts/scurvy.md'
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = list(ids)
        self._plain: dict[str, str] = {}
        for name in self._ids:
            for form in (_plain(name), _plain(PurePath(name).name)):
                self._plain.setdefault(form, name)

    def closest(self, wrong: str) -> str | None:
        """The closest id: equal except for case, folder, ending, signs and leading zeros, else similar; or None."""
        for form in (_plain(wrong), _plain(PurePath(wrong).name)):
            if form and form in self._plain:
                return self._plain[form]
        ids = self._ids
        if len(ids) > _COMPARED:
            ids = [name for name in ids if name[:1].casefold() == wrong[:1].casefold()][:_COMPARED]
        return nearest(wrong, ids)


def _plain(name: str) -> str:
    words = re.findall(r"[^\W_]+", _ENDING.sub("", name.casefold()))
    return " ".join(word.lstrip("0") or "0" for word in words)


def note(source: str, total: int, wrong: Mapping[str, str], ids: Iterable[str], *, used: bool) -> str:
    """A note on questions whose document is missing.

    `wrong` maps the place of each such question to the id that it names; `used` says whether they are used without.
    """
    names = Names(ids)
    first: dict[str, str] = {}
    for where, name in wrong.items():
        first.setdefault(name, where)
    examples = []
    for name, where in list(first.items())[:_EXAMPLES]:
        near = names.closest(name)
        examples.append(f"{name!r} ({PurePath(where).name}{f', did you mean {near!r}?' if near is not None else ''})")
    more = len(first) - len(examples)
    listed = ", ".join(examples) + (f" and {more} more" if more > 0 else "")
    meaning = (
        "they are used, but no document tells which of them belong together, so questions on the same text may end up "
        "on both sides of the split"
        if used
        else "they are asked with its text, so they are left out"
    )
    return (
        f"{source}: {len(wrong)} of {total} questions name a document_id that no document has: {listed}; {meaning}; "
        "fix their document_id or add the documents"
    )
