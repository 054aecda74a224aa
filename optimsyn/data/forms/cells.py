"""Reads cells of a question file: an answer or a list of answers."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from optimsyn.base.errors import DataError
from optimsyn.base.suggestions import did_you_mean
from optimsyn.base.values import kind_of
from optimsyn.data.figures import Figure, parse
from optimsyn.data.figures.units import CURRENCIES

_T = TypeVar("_T")
_YEAR = re.compile(r"1\d{3}|20\d\d")
_MULTI_SPAN = ("multi-span", "multi_span", "multispan")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


AND = "; and "
"""Between the faults of one row."""


class Faults:
    """Collects all faults of one row."""

    def __init__(self) -> None:
        self.found: list[DataError] = []

    def part(self, read: Callable[[], _T]) -> _T | None:
        """Calls `read`; None if it raises a DataError, which is collected."""
        try:
            return read()
        except DataError as error:
            self.found.append(error)
        return None

    def raise_all(self) -> None:
        """Raises all collected faults, if any; a single one as it is."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise DataError(AND.join(dict.fromkeys(map(str, self.found))))


def written(value: Any) -> str:
    """A single answer or option as text; "" for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(value)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"an answer or option is {kind_of(value)}, it must be text")
    return value.strip()


def parsed(text: str, cure: str) -> Any:
    """The value of a cell that is JSON, or what Python prints.

    Args:
        text: The cell.
        cure: What a message says if it is neither.

    Raises:
        DataError: It is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise DataError(cure) from None


def list_cell(value: Any, field: str) -> list[Any]:
    """A list cell; in CSV it is JSON, or what Python prints for a list."""
    if isinstance(value, str) and value.strip().startswith(("[", "{")):
        value = parsed(value, f'`{field}` is not valid JSON; write a list as ["first", "second"]')
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if not isinstance(value, list | tuple):
        raise DataError(f'`{field}` is {kind_of(value)}, it must be a list (in CSV: ["first", "second"])')
    return [item.get("text") if isinstance(item, dict) else item for item in value]


def accepted_answers(values: Mapping[str, Any]) -> list[str]:
    """All accepted answers of a row, the gold one first."""
    cells: list[Any] = []
    for field in ("answer", "answers"):
        value = values.get(field)
        if isinstance(value, list | tuple | dict) or (field == "answers" and isinstance(value, str)):
            plain = isinstance(value, str) and not value.strip().startswith(("[", "{"))
            cells += [value] if plain else list_cell(value, field)
        else:
            cells.append(value)
    return [text for text in map(written, cells) if text]


def needed_answers(values: Mapping[str, Any]) -> list[str]:
    """The items of a row's answer that has several, all of which count; empty for a row with one answer.

    They are the list `spans`, or the list `answer` where `answer_type` is multi-span, as in TAT-QA.
    """
    field = "spans" if values.get("spans") not in (None, "", [], ()) else "answer"
    if field == "answer":
        kind = values.get("answer_type")
        answer = values.get("answer")
        listed = isinstance(answer, list | tuple) or (isinstance(answer, str) and answer.strip().startswith("["))
        if not (isinstance(kind, str) and kind.strip().lower() in _MULTI_SPAN and listed):
            return []
    spans = [text for text in map(written, list_cell(values[field], field)) if text]
    if not spans:
        raise DataError(f"`{field}` has no text; give the items of the answer, or remove the row")
    return spans if len(spans) > 1 or field == "spans" else []


def with_scale(answer: str, values: Mapping[str, Any]) -> str:
    """An answer with the row's `scale` written out: `1,452.4` in `million` is `1,452.4 million`, `percent` a sign.

    So do all figures of an answer that has several (`1.2 and 1.4`), but for years and counts. One that says the same
    scale stays as it is.

    Raises:
        DataError: The scale is unknown, or the answer says another one.
    """
    scale = written(values.get("scale")).lower().removesuffix("s")
    if scale in ("", "none", "1"):
        return answer
    percent = scale in ("percent", "%")
    if not percent and scale not in _SCALES:
        hint = did_you_mean(scale, [*_SCALES, "percent"], f"known: {', '.join(_SCALES)}, percent", cutoff=0.6)
        raise DataError(f"`scale` is {values['scale']!r}, which is no scale of figures; {hint}, or leave it empty")
    figures = parse(answer)
    if len(figures) > 1:
        figures = [figure for figure in figures if _takes_scale(figure, answer)]
    for figure in reversed(figures):
        if (percent and figure.percent) or (not percent and figure.power == _SCALES[scale]):
            continue
        if figure.power or figure.percent or (percent and figure.unit):
            raise DataError(f"answer {answer!r} says another scale than `scale`, {scale!r}; make them agree")
        shown = answer[figure.start : figure.end]
        numeric = [place for place, char in enumerate(shown) if char.isnumeric() or char == ")"]
        place = figure.start + (numeric[-1] if any(map(str.isnumeric, shown)) else len(shown) - 1) + 1
        answer = f"{answer[:place]}{'%' if percent else ' ' + scale}{answer[place:]}"
    return answer


def _takes_scale(figure: Figure, answer: str) -> bool:
    """Whether one of several figures of an answer may be an amount: no year, no spelled count, no duration."""
    if _YEAR.fullmatch(answer[figure.start : figure.end]):
        return False
    return not figure.in_words and figure.unit in ("", "%", *CURRENCIES)
