"""What the verdict of a set of checks depends on: a reward that was given under other checks is not their reward."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from optimsyn.data.records import Question
from optimsyn.errors import RecipeError

# The code and the word lists that the built-in checks are made of.
BUILT_IN = (
    "optimsyn.programs.checks",
    "optimsyn.programs.demos",
    "optimsyn.programs.prompts.spans",
    "optimsyn.data.dedup",
    "optimsyn.data.text",
)
# Plugins that this process has loaded, with their source as it was then: the file may be edited afterwards, but what
# runs is what was loaded.
_LOADED: dict[str, tuple[object, str]] = {}


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
        "the built-in checks": _digest([_source_of(importlib.import_module(name)) for name in BUILT_IN]),
        "which checks run": _digest([list(built_in), list(plugins)]),
        "checks.unsafe_words": _digest(list(unsafe_words)),
        "the validation and test questions": _digest([question.model_dump(mode="json") for question in questions]),
    }
    return parts | {f"the plugin {name}": _digest(_plugin_source(name, check)) for name, check in plugins.items()}


def fingerprint_of(parts: Mapping[str, str]) -> str:
    """The parts in one."""
    return f"checks-{_digest(dict(parts))}"


def _plugin_source(reference: str, check: object) -> str:
    """Source of the module that a plugin stands in, and of the one that it was imported from, as they were loaded."""
    known = _LOADED.get(reference)
    if known is not None and known[0] is check:
        return known[1]
    named = reference.partition(":")[0]
    inner = inspect.unwrap(getattr(check, "func", check))  # type: ignore[arg-type]
    defined = getattr(inner, "__module__", None) or type(inner).__module__
    names = [named] if defined.partition(".")[0] in sys.stdlib_module_names else list(dict.fromkeys([named, defined]))
    sources = []
    for name in names:
        source = _source_of(importlib.import_module(name))
        if source is None:
            raise RecipeError(
                f"checks.plugins: {reference!r} has no source that could be read (module {name}), so nobody could tell "
                "when it is edited, and its old verdicts would be taken for new ones; put it into a module file (.py)"
            )
        sources.append(source)
    text = "\n".join(sources)
    _LOADED[reference] = (check, text)
    return text


def _source_of(module: ModuleType) -> str | None:
    """A module's source, or the bytes of its file in hex where it comes without; None where it has neither."""
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        path = getattr(module, "__file__", None)
        return Path(path).read_bytes().hex() if path is not None and Path(path).is_file() else None


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
