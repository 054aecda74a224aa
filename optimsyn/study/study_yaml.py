"""Reads the file of a study, whichever kind of study it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optimsyn.base.errors import DataError, RecipeError
from optimsyn.base.suggestions import file_beside
from optimsyn.base.text_files import decode

TRANSFER = "transfer"


def read_study(path: str | Path) -> dict[str, Any]:
    """The fields of a study file as they are written.

    Raises:
        RecipeError: The file is missing, or is not a mapping in YAML.
    """
    import yaml

    from optimsyn.recipe.yaml_text import no_mapping, parse_yaml, said_of_yaml

    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"{file}: there is no such study file.{file_beside(file, '*.y*ml')}")
    try:
        text = decode(file.read_bytes(), str(file))
        raw = parse_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{file}: not valid YAML: {said_of_yaml(error, text)}") from None
    except DataError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{file}: a study is a mapping of fields (`name: mine` ...), {no_mapping(raw, text)}")
    return raw


def is_transfer(raw: dict[str, Any]) -> bool:
    """Whether a study file compares targets and generators (`transfer`), not arms."""
    return TRANSFER in raw


def in_folder(recipe: str, folder: Path) -> str:
    """The file beside the study file if there is one, else the name as it stands."""
    path = Path(recipe).expanduser()
    if path.suffix in (".yaml", ".yml") or (folder / path).is_file():
        return str((folder / path).resolve())
    return recipe
