"""The reference of what commands print with `--json`, and its JSON schema, from the models that write it."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from optimsyn.agents.analyst.work import Analysis
from optimsyn.base.terminal.json_document import Document, Result
from optimsyn.batch.state import BatchResult
from optimsyn.execution import json_results
from optimsyn.study.arms.study import StudyPage, StudyStatus
from optimsyn.study.transfer.transfer import TransferPage, TransferStatus

RESULTS: dict[str, type[Result]] = {
    "doctor": json_results.DoctorResult,
    "new": json_results.NewResult,
    "validate": json_results.ValidateResult,
    "preview": json_results.PreviewResult,
    "run": json_results.RunResult,
    "report": json_results.ReportResult,
    "compare": json_results.CompareResult,
    "batch": BatchResult,
    "study": StudyPage,
    "study --status": StudyStatus,
    "study of a transfer": TransferPage,
    "study --status of a transfer": TransferStatus,
    "execute": json_results.ExecuteResult,
    "open": json_results.OpenResult,
    "agent": Analysis,
}


def json_schema() -> dict[str, Any]:
    """One JSON schema: the document, the result of each command under `commands`, and every part under `$defs`."""
    models: list[type[BaseModel]] = [Document, *RESULTS.values()]
    references, schema = models_json_schema([(model, "serialization") for model in models], by_alias=True)
    commands = {name: references[(model, "serialization")] for name, model in RESULTS.items()}
    schema["$defs"]["Document"]["properties"]["result"] = {"anyOf": [*commands.values(), {"type": "null"}]}
    return {**references[(Document, "serialization")], "commands": commands, "$defs": schema["$defs"]}


def json_schema_text() -> str:
    """The schema as a file."""
    return json.dumps(json_schema(), indent=1) + "\n"


def json_page() -> str:
    """Every field of every document."""
    schema = json_schema()
    parts: dict[str, dict[str, Any]] = schema["$defs"]
    lines = [_HEAD, "| command | result |", "|---|---|"]
    lines += [f"| `{command}` | {_type(result)} |" for command, result in schema["commands"].items()]
    own = [_name(result) for result in schema["commands"].values()]
    rest = [name for name in parts if name not in ("Document", *own)]
    for name in ("Document", *dict.fromkeys(own), *rest):
        lines += _part(name, parts[name])
    return "\n".join(lines) + "\n"


def _part(name: str, part: dict[str, Any]) -> list[str]:
    prose, _, attributes = inspect.cleandoc(part.get("description", "")).partition("Attributes:")
    told = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE))
    lines = ["", f"## {name} {{ #{name.lower()} }}", "", " ".join(prose.split())]
    fields = part.get("properties", {})
    if fields:
        lines += ["", "| field | type | what it is |", "|---|---|---|"]
    for field, facts in fields.items():
        text = " ".join((facts.get("description") or told.get(field, "")).split()).replace("|", "\\|")
        lines.append(f"| `{field}` | {_type(facts)} | {text} |")
    return lines


def _name(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _type(facts: dict[str, Any]) -> str:
    if "$ref" in facts:
        return f"[{_name(facts)}](#{_name(facts).lower()})"
    if "anyOf" in facts:
        return " or ".join(dict.fromkeys(map(_type, facts["anyOf"])))
    if "const" in facts or "enum" in facts:
        return " · ".join(f"`{json.dumps(value)}`" for value in facts.get("enum", [facts.get("const")]))
    kind = str(facts.get("type", "any"))
    if kind == "array":
        inner = facts.get("items")
        return f"array of {_type(inner)}" if inner else "array"
    if kind == "object" and isinstance(facts.get("additionalProperties"), dict):
        return f"object of {_type(facts['additionalProperties'])}"
    return kind


_HEAD = """\
# JSON of the commands

With `--json` a command prints one [Document](#document) on standard output, and everything else on standard error; see
[Let a coding agent drive it](../howto/agents.md). This page is written from the types that the commands print, and
[json.schema.json](json.schema.json) is the same for programs.
"""
