"""Parts that a recipe names and that exist in this process only: from a notebook cell, or registered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import REGISTRIES
from optimsyn.recipe.recipe import Recipe


def refuse_parts_of_this_process(recipe: Recipe) -> None:
    """Refuses a recipe whose stages cannot run in other processes, as `optimsyn run` does."""
    raw = recipe.model_dump(mode="json")
    for registry in REGISTRIES.values():
        for reference in _texts_at(raw, registry.field.split(".")):
            if registry.only_here(reference):
                raise RecipeError(
                    f"{registry.field}: {reference!r} is known only in this notebook or script, and each stage runs in "
                    f"a process of its own; put the {registry.label} into a module file (.py) on PYTHONPATH and write "
                    "package.module:name, or step through the stages in this notebook"
                )


def own_parts(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The field and the reference of every part that names code, `package.module:name`."""
    raw = recipe.model_dump(mode="json")
    raw["stages"] = [stage.reference for stage in recipe.stages]
    raw["documents"]["readers"] = list(recipe.documents.readers.values())
    for role, spec in raw["models"].items():
        if spec and (plugin := spec.get("plugin")) is not None and ":" in plugin:
            yield f"models.{role}.plugin", plugin
    for registry in REGISTRIES.values():
        if not registry.field.startswith("models."):
            yield from ((registry.field, text) for text in _texts_at(raw, registry.field.split(".")) if ":" in text)


def _texts_at(value: Any, path: list[str]) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _texts_at(each, path)
    elif isinstance(value, dict) and path:
        yield from _texts_at(value.get(path[0]), path[1:])
    elif isinstance(value, str) and not path:
        yield value
