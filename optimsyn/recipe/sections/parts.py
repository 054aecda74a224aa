"""Fields of a recipe that name a part of your own: Python code may pass the part itself."""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator

from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import Registry, is_part


def named(registry: Registry[Any]) -> BeforeValidator:
    """Replaces a part that Python code passes by its name in a recipe."""
    return BeforeValidator(lambda value: name_of(value, registry))


def name_of(value: Any, registry: Registry[Any]) -> Any:
    """The name of a part, or the value itself if it is none.

    Raises:
        ValueError: The part has no name.
    """
    if not is_part(value):
        return value
    try:
        return registry.reference(value)
    except RecipeError as error:
        # Whoever reports it puts the field first.
        raise ValueError(str(error).removeprefix(f"{registry.field}: ")) from None
