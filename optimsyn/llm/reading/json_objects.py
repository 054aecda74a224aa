"""JSON objects in a text: parsed strictly where possible, else repaired, always within limits.

`json_repair` accepts nearly everything, so it only gets short and shallow input (some inputs take quadratic time or the
whole stack), and none that ends in the middle of a value (it would return half an answer as the answer).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.llm.reading.plain_text import Number

# Objects repaired for one reply, and their total characters and opening brackets. Within these limits the worst known
# input takes some tens of milliseconds.
_OBJECTS = 20
_REPAIRED = 10_000
_BRACKETS = 160
# Positions at which a strict parse is tried, and characters that failed tries may read in total.
_STARTS = 100
_READ = 2_000_000
# The search stops after this many objects that are too deep for the stack.
_TOO_DEEP = 4
# The most nested objects that are searched, and how deep.
_INNER = 200
_DEEPEST = 5
_START = re.compile(r'\{\s*"|\[\s*\{\s*"')
# Tokens outside strings: quotes, brackets, and anything else but white space.
_TOKEN = re.compile(r"[{}\[\]\"'“”]|[^\s{}\[\]\"'“”]+")
_QUOTES = {'"': '"', "'": "'", "“": "”", "”": "”"}
_NEXT = re.compile(r"\s*(.?)", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:[\"\\/]|u[0-9a-fA-F]{4}|(u[0-9a-fA-F]{0,3}(?![0-9A-Za-z])|[A-Za-z]+|.))", re.DOTALL)
# LaTeX commands that begin like a JSON escape. Text rarely follows a tab or carriage return, but a line may well begin
# with `e` or `u`, so the second list counts in formulas only.
_COMMANDS = frozenset(
    "tau theta times text textbf textit textrm texttt textsc textdegree textsuperscript textsubscript textcolor tanh "
    "tilde tfrac triangle triangleq therefore thinspace tbinom trace rho right rightarrow rangle rbrace rbrack rceil "
    "rfloor rvert rightharpoonup rightleftharpoons nabla neq nleq ngeq nless ngtr ncong nsim notin nmid nparallel "
    "nexists nearrow nwarrow natural nonumber notag nolimits nsubseteq nrightarrow".split()
)
_COMMANDS_IN_FORMULAS = frozenset("tan to top rm ref root nu ne ni neg not".split())
_FORMULA = re.compile(
    r"\$|\\\\?[(\[]|[\^_]\{?\\?\w|\\\\?(?:frac|sqrt|alpha|beta|gamma|delta|lambda|mu|pi|sigma|omega)\b"
)
_DECODER = json.JSONDecoder(strict=False, parse_float=Number, parse_int=Number, parse_constant=Number)

Found = tuple[dict[str, Any], int, int]


def mend_escapes(text: str) -> str:
    r"""Doubles the backslashes of a JSON text that are no escapes: `\frac`, `\lambda`, `\(`, `\%`.

    `\b` and `\f` before letters always start a command (no answer holds a backspace or form feed); `\t`, `\r` and `\n`
    do when the word is a LaTeX command.
    """
    if "\\" not in text:
        return text
    formula = _FORMULA.search(text) is not None

    def mended(match: re.Match[str]) -> str:
        word: str | None = match[1]
        if word is None:
            return match[0]
        if word[0] in "nrt":
            command = word in _COMMANDS or (formula and word in _COMMANDS_IN_FORMULAS)
            return f"\\\\{word}" if command else match[0]
        if word in "bf":
            return " "
        if word[0] == "u" and not word.isalpha():
            return ""  # a truncated unicode escape
        return "'" if word == "'" else f"\\\\{word}"

    return _ESCAPE.sub(mended, text)


def strict_objects(text: str) -> Iterator[Found]:
    """The valid JSON objects of a text, each with the start and end of the outermost value that holds it.

    Lists and wrappers are searched in text order; an object comes before those in it.
    """
    position, read = 0, 0
    for _ in range(_STARTS):
        start = _START.search(text, position)
        if start is None or read > _READ:
            return
        begin = start.start()
        try:
            value, end = _DECODER.raw_decode(text, begin)
        except json.JSONDecodeError as error:
            position, read = begin + 1, read + max(0, error.pos - begin)
        except RecursionError:
            position, read = begin + 1, read + _READ // _TOO_DEEP
        else:
            for inner in _inner(value):
                yield inner, begin, end
            position = end


def repaired_objects(text: str) -> Iterator[dict[str, Any]]:
    """The objects of a text that are JSON after repair of quotes, commas, comments or missing ends.

    Raises:
        ReplyError: The text ends inside a value: the outcome is `cut`.
    """
    spent = brackets = objects = 0
    for span in _spans(text):
        if ":" not in span:
            continue
        spent += len(span)
        objects += 1
        brackets += span.count("{") + span.count("[") + span.count("(")
        if objects > _OBJECTS or spent > _REPAIRED or brackets > _BRACKETS:
            return
        yield from _inner(_repaired(span))


def inner_text(text: str) -> str | None:
    """The JSON text of a reply that is one JSON string, or has all its quotes escaped; None for any other reply."""
    body = text.strip()
    if body.startswith('"') and body.endswith('"'):
        try:
            value = json.loads(body, strict=False)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, str) and "{" in value else None
    if re.match(r'\{\s*\\"', body):
        return body.replace('\\"', '"')
    return None


def _inner(value: Any) -> list[dict[str, Any]]:
    """A value's objects in text order, each before those in it, within limits on number and depth."""
    objects: list[dict[str, Any]] = []
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting and len(objects) < _INNER:
        item, depth = waiting.pop()
        if isinstance(item, dict):
            objects.append({str(key): inner for key, inner in item.items()})
            parts = list(item.values())
        elif isinstance(item, list):
            parts = item
        else:
            continue
        if depth < _DEEPEST:
            waiting.extend((part, depth + 1) for part in reversed(parts[:_INNER]))
    return objects


def _repaired(span: str) -> Any:
    import json_repair

    try:
        value = json_repair.loads(span, skip_json_loads=True)
    except Exception:  # noqa: BLE001 - any failure of the repair means that there is no object
        return None
    return _with_numbers(value, span)


def _with_numbers(value: Any, span: str) -> Any:
    """Restores an object's numbers as they were written, where they can be found in the text."""
    if not isinstance(value, dict):
        return value
    exact = {}
    for key, item in value.items():
        if isinstance(item, int | float) and not isinstance(item, bool):
            for written in re.finditer(
                rf"{re.escape(str(key))}[\"'”]?\s{{0,20}}:\s{{0,20}}([-+]?[\d.][\d.eE+-]*)", span
            ):
                try:
                    if float(written[1]) == float(item):
                        item = Number(written[1])
                        break
                except (ValueError, OverflowError):
                    continue
        exact[key] = item
    return exact


def _spans(text: str) -> Iterator[str]:
    """The outermost `{…}` of a text; the last one may lack its closing bracket.

    Raises:
        ReplyError: The last one ends inside a string, a list or a bare word.
    """
    position = text.find("{")
    while position >= 0:
        end, broken_off = _end_of_object(text, position)
        if end is not None:
            yield text[position:end]
            position = text.find("{", end)
            continue
        if broken_off is None or ":" not in text[position:]:
            return
        if not broken_off:
            yield text[position:]
        raise ReplyError(f"the reply breaks off inside of {broken_off or 'an object'}", Outcome.CUT)


def _end_of_object(text: str, start: int) -> tuple[int | None, str | None]:
    """The end of the object that begins at `start`; or None, and what it is cut inside of.

    That is "" between two fields, and None for an object that is too deep.

    Unescaped quotes do not end a string, unless a comma, a colon, a closing bracket or nothing follows.
    """
    stack: list[str] = []
    position, last = start, ""
    while (token := _TOKEN.search(text, position)) is not None:
        symbol = token[0]
        position = token.end()
        if symbol in _QUOTES and (symbol == '"' or last in ("", "{", "[") or last[-1] in ",:"):
            closed = _end_of_string(text, position, _QUOTES[symbol])
            if closed is None:
                return None, "a string"
            position, last = closed, '"'
            continue
        if symbol in "{[":
            stack.append(symbol)
            if len(stack) > _BRACKETS:
                return None, None
        elif symbol in "}]":
            # A wrong closing bracket closes the open one; the repair decides.
            stack.pop()
            if not stack:
                return position, ""
        last = symbol
    if "[" in stack:
        return None, "a list"
    return None, "" if last in ('"', ",", "}", "]") else "a value"


def _end_of_string(text: str, position: int, quote: str) -> int | None:
    while True:
        end = text.find(quote, position)
        if end < 0:
            return None
        slashes = end
        while slashes > position and text[slashes - 1] == "\\":
            slashes -= 1
        following = _NEXT.match(text, end + 1)
        assert following is not None
        if (end - slashes) % 2 == 0 and (not following[1] or following[1] in ",:}]"):
            return end + 1
        position = end + 1
