"""Overrides of recipe fields: `--set synthesis.pairs=20`, or a notebook's `changes`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from optimsyn.base.errors import RecipeError
from optimsyn.base.secrets.redaction import KEY_CURE, find_secret, redact
from optimsyn.base.suggestions import did_you_mean, nearest
from optimsyn.recipe.problems import explain, faults, section_of
from optimsyn.recipe.whole import WholeT

# The field that a bare string sets where a section is expected: a model's name, a source's path.
_SHORT_FORMS = ("name", "path")
# A mapping with one of these fields replaces the model or source.
_IDENTITY = ("name", "plugin", "path", "hub")
_SHOWN_OPTION = 100


class SetOptions(dict[str, Any]):
    """Field to value of `--set` options; messages quote the option as it was typed.

    Attributes:
        typed: Field to option, such as `--set synthesis.pairs=20`.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        super().__init__()
        self.typed: dict[str, str] = {}
        for text in texts:
            field, value = parse_change(text)
            self[field] = value
            option = f"--set {shlex.quote(text)}"
            self.typed[field] = option if len(option) <= _SHOWN_OPTION else f"{option[:_SHOWN_OPTION]} ..."


def word_for(changes: Mapping[str, Any] | None, otherwise: str = "changes") -> str:
    """The caller's name for changes, for messages: the option, or the parameter."""
    return "--set" if isinstance(changes, SetOptions) else otherwise


def changed(recipe: WholeT, changes: Mapping[str, Any] | Iterable[str], called: str = "changes") -> WholeT:
    """The recipe with some fields overridden; all checks of a recipe file apply.

    A mapping as value changes only the fields that it names. A bare string for a model or a source, or a mapping with
    its name, path or hub id, replaces it, with defaults, as in a recipe. Relative paths start at the working directory.

    Args:
        recipe: The recipe to start from; not modified.
        changes: Dotted field (`synthesis.pairs`, `models.generator`) to value; or texts as `--set` takes them,
            `synthesis.pairs=20`.
        called: The caller's name for them, for messages; `--set` options are quoted as typed.

    Raises:
        RecipeError: A field is unknown (with a suggestion), or a value is of a wrong type or out of range; names all.

    Example:
        >>> from optimsyn import Recipe
        >>> raw = {"documents": {"source": "embedded:quickstart"}, "questions": {"validation": "embedded:quickstart"}}
        >>> recipe = Recipe.parse({**raw, "name": "mine", "guiding_text": "Ask for one certain fact."})
        >>> changed(recipe, {"synthesis.pairs": 20, "models.generator": "openai/gpt-6-luna"}).synthesis.pairs
        20
    """
    changes = changes if isinstance(changes, Mapping) else SetOptions(changes)
    if not changes:
        return recipe
    secret = find_secret(dict(changes))
    if secret is not None:
        raise RecipeError(f"{word_for(changes, called)}: {secret}, and would be written into the run; {KEY_CURE}")
    raw = recipe.model_dump(mode="json")
    problems = []
    # A section before its fields, and a plugin before its name, so that the order of changes does not matter.
    for name in sorted(changes, key=lambda name: (str(name).count("."), not str(name).endswith(".plugin"))):
        trial = deepcopy(raw)
        try:
            _set(type(recipe), trial, str(name), changes[name])
            raw = trial
        except RecipeError as error:
            problem = str(error).removeprefix(f"{name}: ") if isinstance(changes, SetOptions) else str(error)
            problems.append(f"{_named(changes, [str(name)], called)}: {problem}")
    try:
        found = type(recipe).model_validate(raw)
    except ValidationError as error:
        # How fields fit together is told once all of them are known.
        wrong = [item for item in faults(error) if not problems or item["type"] != "value_error"]
        if wrong:
            about = _named(changes, _concerned(changes, wrong), called)
            problems.append("\n  ".join([f"{about}:", *(explain(item, type(recipe)) for item in wrong)]))
    if problems:
        raise RecipeError("\n".join(problems))
    return found.with_paths_from(Path.cwd())


def _named(changes: Mapping[str, Any], fields: Sequence[str], called: str) -> str:
    """The caller's name for the changes of these fields."""
    return redact(" ".join(changes.typed[name] for name in fields)) if isinstance(changes, SetOptions) else called


def _concerned(changes: Mapping[str, Any], wrong: Sequence[Any]) -> list[str]:
    """The changed fields that have problems; all fields if a problem concerns several together."""
    places = [".".join(map(str, item["loc"])) + "." for item in wrong]
    names = [
        name
        for name in changes
        if any(place.startswith(f"{name}.") or (place != "." and f"{name}.".startswith(place)) for place in places)
    ]
    return names if names and "." not in places else list(changes)


def parse_change(text: str) -> tuple[str, Any]:
    """Field and value of `FIELD=VALUE`; the value is read as YAML."""
    import yaml

    from optimsyn.recipe.yaml_text import parse_yaml

    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        is_clean = find_secret({"--set": text}) is None
        option = f"--set {shlex.quote(text)}" if is_clean else "--set"
        raise RecipeError(f"{option}: write FIELD=VALUE, such as --set synthesis.pairs=20")
    try:
        return name.strip(), parse_yaml(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {name.strip()}: the value is not valid YAML; put it in quotes") from None


def _set(recipe: type[BaseModel], raw: dict[str, Any], name: str, value: Any) -> None:
    """Puts one value into the plain form of a recipe."""
    parts = name.split(".")
    place: Any = raw
    section: type[BaseModel] | None = recipe
    for depth, part in enumerate(parts):
        if section is not None and part not in section.model_fields:
            raise RecipeError(f"{name}: unknown field; {_hint(recipe, name, parts[:depth], section)}")
        inner = section_of(section.model_fields[part].annotation) if section is not None else None
        if depth + 1 == len(parts):
            if part == "plugin":  # the old model's name does not fit it
                place.pop("name", None)
            place[part] = _merged(recipe, place.get(part), value, inner, name)
            return
        if isinstance(place.get(part), str):
            short = next(field for field in _SHORT_FORMS if inner is None or field in inner.model_fields)
            place[part] = {short: place[part]}
        elif place.get(part) is None:
            place[part] = {}
        if not isinstance(place[part], dict):
            prefix = ".".join(parts[: depth + 1])
            raise RecipeError(f"{name}: {prefix} is a value without fields; change {prefix} itself")
        place, section = place[part], inner


def _merged(recipe: type[BaseModel], old: Any, new: Any, section: type[BaseModel] | None, name: str) -> Any:
    """The new value of a field: a mapping for a section changes only the fields that it names."""
    if section is None or not isinstance(new, Mapping):
        return new
    # Another model or source keeps nothing of the old one.
    another = any(field in new and field in section.model_fields for field in _IDENTITY)
    merged: dict[str, Any] = dict(old) if isinstance(old, dict) and not another else {}
    for field, value in new.items():
        if field not in section.model_fields:
            hint = _hint(recipe, f"{name}.{field}", name.split("."), section)
            raise RecipeError(f"{name}.{field}: unknown field; {hint}")
        inner = section_of(section.model_fields[field].annotation)
        merged[field] = _merged(recipe, merged.get(field), value, inner, f"{name}.{field}")
    return merged


def _hint(recipe: type[BaseModel], name: str, before: list[str], section: type[BaseModel]) -> str:
    """A suggestion: a field of the same section, else one of the same or a similar name anywhere."""
    prefix = "".join(f"{part}." for part in before)
    wrong = name.removeprefix(prefix).split(".")[0]
    near = nearest(wrong, section.model_fields)
    if near is not None:
        return f"did you mean `{prefix}{near}`?"
    all_fields = _all_fields(recipe)
    last = name.rpartition(".")[2]
    same = [field for field in all_fields if field.rpartition(".")[2] == last]
    if same:
        return f"did you mean {' or '.join(f'`{field}`' for field in same[:3])}?"
    fields = ", ".join(f"{prefix}{field}" for field in section.model_fields)
    return did_you_mean(name, all_fields, f"known here: {fields}")


def _all_fields(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all fields, sections included."""
    names = []
    for field, info in section.model_fields.items():
        names.append(prefix + field)
        inner = section_of(info.annotation)
        if inner is not None:
            names += _all_fields(inner, f"{prefix}{field}.")
    return names
