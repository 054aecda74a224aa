"""Reads the file of a study, whichever kind of study it describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from optimsyn.base.errors import RecipeError
from optimsyn.base.secrets.redaction import find_secret

TRANSFER = "transfer"
ModelT = TypeVar("ModelT", bound=BaseModel)


def read_study(path: str | Path) -> dict[str, Any]:
    """The fields of a study file as they are written.

    Raises:
        RecipeError: The file is missing, or is not a mapping in YAML.
    """
    from optimsyn.recipe.yaml_text import read_mapping

    return read_mapping(Path(path), "study")[0]


def built(model: type[ModelT], raw: dict[str, Any], name: str, said: Callable[[Any], str]) -> ModelT:
    """A study file's fields, checked.

    Args:
        model: The kind of study.
        raw: Field to value.
        name: Its name in messages.
        said: One problem as a sentence.

    Raises:
        RecipeError: With one line per wrong field.
    """
    secret = find_secret(raw)
    if secret is not None:
        raise RecipeError(f"{name}: {secret}; keys belong into environment variables")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{name}:\n  " + "\n  ".join(said(item) for item in error.errors())) from None


def is_transfer(raw: dict[str, Any]) -> bool:
    """Whether a study file compares targets and generators (`transfer`), not arms."""
    return TRANSFER in raw


def in_folder(recipe: str, folder: Path) -> str:
    """The file beside the study file if there is one, else the name as it stands."""
    path = Path(recipe).expanduser()
    if path.suffix in (".yaml", ".yml") or (folder / path).is_file():
        return str((folder / path).resolve())
    return recipe
