"""Cleans the text of replies: removes unstorable characters, and joins fields into one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from optimsyn.data.text import BIDI_CONTROLS

# Lists and objects nested deeper than this are no answer.
_DEEPEST = 3
# Keys of the text in an answer that is an object.
_TEXT_KEYS = ("text", "answer", "value", "content", "question")
_DROPPED: dict[int, str | None] = {
    # C0 and C1 controls; line and page separators become line breaks.
    **dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)]),
    **{ord(char): char for char in "\t\n\r"},
    **dict.fromkeys((0x0B, 0x0C, 0x85, 0x2028, 0x2029), "\n"),
    **dict.fromkeys(BIDI_CONTROLS),
    # Byte order marks, annotations, invisible tags, and non-characters.
    **dict.fromkeys([0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080), *range(0xFDD0, 0xFDF0)]),
    **dict.fromkeys(plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF)),
}


# LaTeX in JSON whose backslash was not doubled: `\frac` is read as a form feed and `rac`. The commands whose escape is
# a letter of JSON; after a line break only those that begin no word.
_HALF_COMMANDS = re.compile(
    "\f(?=[a-z])|\x08(?=[a-z])|\t(?=(?:imes|ext\\w*|heta|au|frac|ilde|riangle|an|anh|op|o)\\b)"
    "|\r(?=(?:ho|ight\\w*|angle|m|floor|ceil)\\b)|\n(?=(?:abla|eq)\\b)"
)
_LETTERS = {"\f": "\\f", "\x08": "\\b", "\t": "\\t", "\r": "\\r", "\n": "\\n"}


class Number(str):
    """A number as written in the JSON text: 1e16 stays `1e16`, 0.10 keeps its last digit."""

    __slots__ = ()


def storable(text: str) -> str:
    """A text that every file and terminal can hold.

    Joins surrogate pairs, and removes lone surrogates, control characters, marks of text direction, invisible tags and
    non-characters.
    """
    if text.isascii() and text.isprintable():
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return joined.translate(_DROPPED)


def beginning(text: str, limit: int = 100) -> str:
    """The start of a reply, on one line, for an error message."""
    # Only a prefix is cleaned, because a reply may be megabytes of blanks.
    line = " ".join(storable(text[: 10 * limit]).split())
    return repr(line[:limit] + ("…" if len(line) > limit or len(text) > 10 * limit else ""))


def one_line(value: Any, *, several: bool = False, depth: int = 0) -> str:
    """A reply's field as one line of text; "" if it has no sensible text.

    Args:
        value: The field's JSON value. A list of one item is that item; an object is its text, or its value with its
            unit.
        several: Whether a list of several texts is an answer; they are joined by commas.
        depth: Nesting depth of this value.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return " ".join(storable(value).split())
    if depth >= _DEEPEST:
        return ""
    if isinstance(value, Mapping):
        return _of_object(value, several, depth)
    if isinstance(value, list | tuple):
        lines = [line for item in value if (line := one_line(item, several=several, depth=depth + 1))]
        return lines[0] if len(lines) == 1 else ", ".join(lines) if several else ""
    return ""


def many_lines(value: Any) -> str:
    """A reply's field as a text with its own line breaks and blanks; "" if it has no sensible text.

    A list of texts is one paragraph or line each. LaTeX commands that JSON has cut are mended.
    """
    if isinstance(value, str):
        mended = _HALF_COMMANDS.sub(lambda match: _LETTERS[match.group()], value)
        text = storable(mended.replace("\r\n", "\n").replace("\r", "\n"))
        return re.sub(r"\A(?:[^\S\n]*\n)+|\s+\Z", "", text)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return "\n".join(filter(None, map(many_lines, value)))
    return one_line(value, several=True)


def item_lines(value: Any) -> str:
    """A reply's list of items, one a line; a text stays as it is."""
    if isinstance(value, list | tuple):
        return "\n".join(filter(None, (one_line(item, several=True) for item in value)))
    return many_lines(value)


def _of_object(value: Mapping[Any, Any], several: bool, depth: int) -> str:
    lines = {
        str(key).strip().lower(): line
        for key, item in value.items()
        if (line := one_line(item, several=several, depth=depth + 1))
    }
    if len(lines) == 1:
        return next(iter(lines.values()))
    unit = lines.get("unit") or lines.get("units")
    if unit and len(lines) == 2:
        amount = next(line for key, line in lines.items() if key not in ("unit", "units"))
        return f"{amount} {unit}"
    for key in _TEXT_KEYS:
        if key in lines:
            return lines[key]
    return "; ".join(f"{key}: {line}" for key, line in lines.items()) if several else ""
