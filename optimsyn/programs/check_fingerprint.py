"""What the verdict of a set of checks depends on: a reward that was given under other checks is not their reward."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from optimsyn.base.errors import RecipeError
from optimsyn.data.records import Question

# The code and the word lists that the built-in checks are made of.
BUILT_IN = (
    "optimsyn.programs.checks",
    "optimsyn.programs.demonstrations",
    "optimsyn.programs.constrained.spans",
    "optimsyn.data.duplicates",
    "optimsyn.data.text",
)
# Plugins that this process has loaded, with their source as it was then: the file may be edited afterwards, but what
# runs is what was loaded.
_LOADED: dict[str, tuple[object, dict[str, str]]] = {}


def check_parts(
    built_in: Sequence[str], plugins: Mapping[str, object], unsafe_words: Sequence[str], questions: Sequence[Question]
) -> dict[str, str]:
    """Digests of all that a verdict depends on, by what they are digests of, so that a change can be named.

    Args:
        built_in: Names of the built-in checks that run, in order.
        plugins: The plugins by reference, in order.
        unsafe_words: The recipe's.
        questions: Those that no pair may repeat.

    Raises:
        RecipeError: A plugin has neither source nor a file.
    """
    parts = {
        "the built-in checks": _digest([_source_of(name, "the built-in checks")[1] for name in BUILT_IN]),
        "which checks run": _digest([list(built_in), list(plugins)]),
        "checks.unsafe_words": _digest(list(unsafe_words)),
        "the validation and test questions": _digest([question.model_dump(mode="json") for question in questions]),
    }
    return parts | {f"the plugin {name}": _digest(_plugin_source(name, check)) for name, check in plugins.items()}


def fingerprint_of(parts: Mapping[str, str]) -> str:
    """The parts in one."""
    return f"checks-{_digest(dict(parts))}"


def _plugin_source(reference: str, check: object) -> dict[str, str]:
    """Sources by module: of where a plugin stands, where it was imported from, and what they use from beside them."""
    known = _LOADED.get(reference)
    if known is not None and known[0] is check:
        return known[1]
    inner = inspect.unwrap(getattr(check, "func", check))  # type: ignore[arg-type]
    wanted = [reference.partition(":")[0], getattr(inner, "__module__", None) or type(inner).__module__]
    found: dict[str, str] = {}
    while wanted:
        name = wanted.pop()
        if name not in found and name.partition(".")[0] not in sys.stdlib_module_names:
            spec, found[name] = _source_of(name, f"checks.plugins: {reference!r}")
            wanted += _used_beside(spec, found[name])
    _LOADED[reference] = (check, found)
    return found


def _source_of(name: str, whose: str) -> tuple[ModuleSpec, str]:
    """Where a module was found, and its source or, where it comes without, the bytes of its file in hex.

    Raises:
        RecipeError: It has neither.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # made at run time, or the program itself
        spec = None
    if spec is not None and (source := getattr(spec.loader, "get_source", lambda _: None)(name)) is not None:
        return spec, source
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise RecipeError(
            f"{whose}: the module {name} has neither source nor a file, so nobody could tell when it is edited, and "
            "old verdicts would be taken for new ones; put the check into a module file (.py)"
        )
    return spec, Path(spec.origin).read_bytes().hex()


def _used_beside(spec: ModuleSpec, source: str) -> list[str]:
    """Modules that a module imports and that come with it: from its package, or the folder that it was found in."""
    own = spec.name.partition(".")[0]
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a file without source
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in names if _comes_with(own, name.partition(".")[0]) and _is_module(name)]


def _comes_with(own: str, other: str) -> bool:
    """Whether two top-level modules lie in one folder, and not merely because everything is installed there."""
    if other in sys.stdlib_module_names or other == "optimsyn":
        return False
    places = [_folder_of(own), _folder_of(other)]
    return own == other or (
        places[0] is not None and places[0] == places[1] and places[0].name not in ("site-packages", "dist-packages")
    )


def _folder_of(name: str) -> Path | None:
    """The folder that a top-level module or package was found in."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.has_location:
        return None
    file = Path(spec.origin)
    return file.parent.parent if spec.submodule_search_locations is not None else file.parent


def _is_module(name: str) -> bool:
    """Whether this is a module, rather than a function or a value in one."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
