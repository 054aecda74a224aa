"""Reads the file of a study, whichever kind of study it describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from optimsyn.base.errors import RecipeError
from optimsyn.base.secrets.redaction import find_secret
from optimsyn.recipe.bundled import recipes_folder

TRANSFER = "transfer"
_NO_STUDY = "is a recipe, not a study; use `optimsyn run {path}`, or name it in a study file (docs/howto/study.md)"
ModelT = TypeVar("ModelT", bound=BaseModel)


def read_study(path: str | Path) -> dict[str, Any]:
    """The fields of a study file as they are written.

    Raises:
        RecipeError: The file is missing, is not a mapping in YAML, or is a recipe.
    """
    from optimsyn.recipe.yaml_text import described_by, read_mapping

    file = Path(path)
    named = not file.exists() and (recipes_folder() / f"{path}.yaml").is_file()
    if named or (file / "manifest.json").is_file():
        raise RecipeError(f"{path}: {_NO_STUDY.format(path=path)}")
    raw = read_mapping(file, "study")[0]
    if described_by(raw) == "recipe":
        raise RecipeError(f"{path}: {_NO_STUDY.format(path=path)}")
    return raw


@contextmanager
def in_file(path: str | Path) -> Iterator[None]:
    """Names the study file in errors about its runs, whose messages begin with fields of that file."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{path}:\n  " + "\n  ".join(str(error).splitlines())) from None


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
