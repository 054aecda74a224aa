"""What a value is called in a message."""

from __future__ import annotations

_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "text"),
    ((list, tuple), "a list"),
    (dict, "an object"),
    (type(None), "empty"),
)


def kind_of(value: object) -> str:
    """What a wrong cell is, in a person's words: `a number`, `a list` ..."""
    for kinds, name in _KINDS:
        if isinstance(value, kinds):
            return name
    return f"a {type(value).__name__}"
