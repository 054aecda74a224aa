"""Validation problems of a recipe as sentences."""

from __future__ import annotations

import re
import types
from datetime import date
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from optimsyn.base.suggestions import did_you_mean, nearest_value

_CONTAINERS = {
    "tuple_type": "must be a list, in brackets: [one, another]",
    "dict_type": "must be a mapping of names to values: {name: value}",
}


def faults(error: ValidationError) -> list[Any]:
    """Its problems, without "too short" for a list whose items were refused: pydantic counts only the good ones."""
    items = error.errors()
    return [
        item
        for item in items
        if item["type"] != "too_short"
        or not any(other["loc"][: len(item["loc"])] == item["loc"] and other is not item for other in items)
    ]


def explain(item: Any, model: type[BaseModel]) -> str:
    """One validation problem as a sentence with the field and what to do."""
    location = tuple(item["loc"])
    where = "".join(f"[{part!r}]" if "." in str(part) else f".{part}" for part in location)[1:] or "recipe"
    if item["type"] == "extra_forbidden":
        names = _fields_at(model, location)
        hint = did_you_mean(str(location[-1]), names, f"known here: {', '.join(names)}", cutoff=0.5)
        return f"{where}: unknown field; {hint}"
    if item["type"] == "missing":
        return f"{where}: required field is missing"
    if item["type"] in ("model_type", "model_attributes_type"):
        names = _fields_at(model, (*location, ""))
        if item.get("input") is None:
            return f"{where}: is empty; give it a value or remove the line (fields: {', '.join(names)})"
        return f"{where}: must be a section with the fields {', '.join(names)}"
    if item["type"] == "string_type" and isinstance(item.get("input"), int | float | date):
        return f"{where}: must be text, and YAML reads {item['input']} as something else; put it in quotes"
    if item["type"] in _CONTAINERS:
        return f"{where}: {_CONTAINERS[item['type']]} (got {item['input']!r})"
    if item["type"] == "string_type":
        return f"{where}: must be text (got {item['input']!r})"
    message = str(item["msg"]).removeprefix("Value error, ")
    value = item.get("input")
    if item["type"] == "value_error" or isinstance(value, dict | list):
        return f"{where}: {message}" if location else message
    return f"{where}: {message} (got {value!r}){nearest_value(value, _values(item))}"


def _values(item: Any) -> list[str]:
    """All values of a field that has a fixed set of them; nothing for any other field."""
    if item["type"] == "literal_error":
        return re.findall(r"'([^']*)'", item["ctx"]["expected"])
    return ["true", "false"] if item["type"] == "bool_parsing" else []


def in_a_line(error: Exception) -> str:
    """An error's text; of pydantic's only the first problem, with its place."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the section that `location` (without its last part) leads to."""
    current: type[BaseModel] | None = model
    for part in location[:-1]:
        if current is None or str(part) not in current.model_fields:
            continue
        current = _section_in(current.model_fields[str(part)].annotation)
    return list(current.model_fields) if current is not None else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class of an annotation, or of its list items."""
    if get_origin(annotation) in (tuple, list):
        return section_of(get_args(annotation)[0])
    return section_of(annotation)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `Annotated[Source | None, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        for argument in get_args(annotation):
            section = section_of(argument)
            if section is not None:
                return section
    return None
