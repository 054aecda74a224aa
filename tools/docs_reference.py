"""Reference pages generated from the code: the recipe, the command line, the recipes that come with optimsyn."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from optimsyn.recipe.recipe import Recipe

# On a phone, the rows of the tables inside become paragraphs.
STACKED = '<div class="stacked" markdown>'
# Shown where there is no heading above the cell, on a phone.
_LABEL = '<span class="label">default: </span>'
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def recipe_page() -> str:
    """Every field of a recipe: type, default, range and description; one table per section."""
    lines = [_RECIPE_HEAD]
    for name, model, fields in _sections(Recipe):
        lines += [f"## {name} {{ #{_anchor(name)} }}", "", _prose(model), ""]
        rows = [_row(name, key, field) for key, field in fields.items()]
        lines += [STACKED, "", "| field | type | default | what it is |", "|---|---|---|---|", *rows, "", "</div>", ""]
    return "\n".join(lines)


def undescribed_fields() -> list[str]:
    """Fields without a description whose type is not a section."""
    return [
        f"{name}.{key}"
        for name, _, fields in _sections(Recipe)
        for key, field in fields.items()
        if not field.description and _section_of(field.annotation) is None
    ]


def _sections(top: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel], dict[str, FieldInfo]]]:
    """The recipe, then every section type once, at its first place."""
    yield "recipe", top, dict(top.model_fields)
    seen: set[type[BaseModel]] = set()
    waiting = [(key, _section_of(field.annotation)) for key, field in top.model_fields.items()]
    while waiting:
        name, model = waiting.pop(0)
        if model is None or model in seen:
            continue
        seen.add(model)
        fields = dict(model.model_fields)
        yield _SHARED.get(model.__name__, name), model, fields
        inner = [(f"{name}.{key}", _section_of(field.annotation)) for key, field in fields.items()]
        waiting = inner + waiting


# Names of sections that occur in several places.
_SHARED = {"Source": "a source", "ModelSpec": "a model", "Lora": "a LoRA"}


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section type in an annotation, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple):
        sections = [_section_of(part) for part in get_args(annotation)]
        return next((section for section in sections if section is not None), None)
    return None


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _prose(model: type[BaseModel]) -> str:
    text = " ".join((model.__doc__ or "").split())
    return _linked(text)


def _row(section: str, key: str, field: FieldInfo) -> str:
    inner = _section_of(field.annotation)
    anchor = f'<span id="{_anchor(f"{section}-{key}")}"></span>'
    if inner is None:
        kind, description = _type(field.annotation, field), field.description or ""
    else:
        title = _SHARED.get(inner.__name__, key if section == "recipe" else f"{section}.{key}")
        kind = f"{'list of ' if get_origin(field.annotation) is tuple else ''}[{title}](#{_anchor(title)})"
        description = field.description or (inner.__doc__ or "").strip().split("\n")[0]
    default = _default(field) if field.is_required() else f"{_LABEL}{_default(field)}"
    return f"| {anchor}`{key}` | {kind} | {default} | {_cell(description)} |"


def _linked(text: str) -> str:
    """Turns names of docs pages in the code into links."""
    text = text.replace("docs/influence.md has the table", "[the table](../influence.md#is-the-number-true)")
    return text.replace("docs/influence.md", "[influence](../influence.md#the-estimators)")


def _cell(text: str) -> str:
    return _linked(" ".join(text.split()).replace("|", "\\|"))


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0], field)
    if origin is Literal:
        return " · ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return _type(next(part for part in parts if part is not type(None)), field)
    if origin is tuple:
        return f"list of {_type(parts[0])}"
    if origin is dict and parts[1] is Any:
        return "mapping"
    if origin is dict:
        return "mapping of text to text"
    return f"{_WORDS.get(annotation, str(annotation))}{_range(field)}"


def _range(field: FieldInfo | None) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "at least {} characters", "pattern": "{}"}
    bounds = []
    for constraint in field.metadata if field is not None else []:
        for name, sign in signs.items():
            value = getattr(constraint, name, None)
            if value is None:
                continue
            if name == "pattern":
                bounds.append("letters, digits, `_` and `-`")
            else:
                bounds.append(sign.format(value) if "{}" in sign else f"{sign} {value:g}")
    return f", {' and '.join(bounds)}" if bounds else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        values = value.model_dump(mode="json", exclude_defaults=True)
        return "its defaults" if not values else f"`{_flow(values)}`"
    if value is None:
        return "none"
    if value == "":
        return "empty"
    if isinstance(value, tuple):
        value = [part.model_dump(exclude_defaults=True) if isinstance(part, BaseModel) else part for part in value]
    return f"`{_flow(value)}`"


def _flow(value: Any) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{value:g}"
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()


def cli_page() -> str:
    """Every command with its arguments and options, from typer itself."""
    import typer

    from optimsyn.cli import app

    group: Any = typer.main.get_command(app)
    lines = [_CLI_HEAD]
    for name, command in sorted(group.commands.items()):
        context = command.make_context(f"optimsyn {name}", [], resilient_parsing=True)
        usage = re.sub(r"\{(.*?)\}(?:\.\.\.)?", r"\1", " ".join(command.collect_usage_pieces(context)))
        lines += [f"## optimsyn {name} {{ #{name} }}", "", f"```text\noptimsyn {name} {usage}\n```", ""]
        lines += [_paragraphs(command.help or ""), ""]
        rows = [row for parameter in command.params if (row := _parameter(parameter, context)) is not None]
        if rows:
            lines += [
                STACKED,
                "",
                "| argument or option | default | what it is |",
                "|---|---|---|",
                *rows,
                "",
                "</div>",
                "",
            ]
    return "\n".join(lines)


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(block.split()) for block in re.split(r"\n\s*\n", text.strip()))


def _parameter(parameter: Any, context: Any) -> str | None:
    """A row from what `--help` says: `('--pairs <int range>', 'How many.  [default: 3; 1<=x<=20]')`."""
    record = parameter.get_help_record(context)
    if record is None or parameter.name == "help":
        return None
    names, description = record
    names = names.removesuffix(" <str>").replace(" range>", ">").replace(" <list[str]>", "").replace("|", ", ")
    notes = re.search(r"\s*\[([^\]]+)\]$", description)
    default, ranges = "", []
    for note in notes[1].split("; ") if notes else []:
        if note == "required":
            default = "**required**"
        elif note.startswith("default: "):
            default = f"`{note.removeprefix('default: ')}`"
        else:
            ranges.append(note.replace("<=", " ≤ ").replace(">=", " ≥ ").strip())
    text = description[: notes.start()] if notes else description
    more = f" ({', '.join(ranges)})" if ranges else ""
    return f"| `{names}` | {default} | {_cell(text)}{more} |"


def recipes_page(folder: Path) -> str:
    """The recipes that come with optimsyn, in full."""
    names = sorted(folder.glob("*.yaml"), key=lambda path: (path.stem != "quickstart", path.stem))
    lines = [_RECIPES_HEAD]
    for path in names:
        text = path.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
        lines += [f"## {path.stem}", "", str(raw.get("description", "")).strip(), ""]
        lines += [f"```yaml\n{text.rstrip()}\n```", ""]
    return "\n".join(lines)


def checks_table() -> str:
    """A table of the validity checks, from their docstrings."""
    from optimsyn.programs.checks import BUILT_IN

    rows = [f"| `{name}` | {_cell(_lead(check.__doc__))} |" for name, check in BUILT_IN.items()]
    return "\n".join(["| check | a pair passes when |", "|---|---|", *rows])


def _lead(docstring: str | None) -> str:
    """The first paragraph of a docstring."""
    return " ".join((docstring or "").strip().split("\n\n")[0].split())


def schema_json() -> str:
    """The recipe's JSON schema, for editors that complete and check YAML."""
    return json.dumps(Recipe.model_json_schema(), indent=1) + "\n"


_RECIPE_HEAD = """\
# Recipe reference

A recipe is one YAML file. This page is written from the types that check it, so it is complete: an unknown field is
refused with "did you mean", and a value outside its range with the range. What you leave out keeps its default, and
`recipe.yaml` in the run folder spells every default out.

Relative paths count from the recipe's own folder. Where a source or a model is asked for, a bare text is short for its
`path` or `name`.

Editors that check YAML against a schema can use [recipe.schema.json](recipe.schema.json): put
`# yaml-language-server: $schema=recipe.schema.json` into the first line of a recipe.
"""

_CLI_HEAD = """\
# Command line

Exit codes: 0 done, 1 something failed, 2 the recipe or the command line is wrong, 130 interrupted. Wherever `RECIPE` is
asked for, a file or the bare name of a [recipe that comes with optimsyn](recipes.md) will do. `optimsyn --version` says
which version this is, `optimsyn COMMAND --help` the same as this page.
"""

_RECIPES_HEAD = """\
# Recipes that come with optimsyn

`optimsyn new NAME` copies one of them, to change it. `quickstart` runs anywhere; the five domains name hub data sets, a
hosted generator and a GPU. At `--size tiny` every one of them runs on a laptop, offline: the models become the embedded
one, and documents and questions a handful that come with optimsyn.
"""
