"""Reads the file of a study, whichever kind of study it describes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from optimsyn.base.errors import RecipeError
from optimsyn.base.secrets.redaction import find_secret
from optimsyn.recipe.bundled import recipes_folder
from optimsyn.recipe.problems import faults

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
        raise RecipeError(f"{path}: {_NO_STUDY.format(path=shlex.quote(str(path)))}")
    raw = read_mapping(file, "study")[0]
    if described_by(raw) == "recipe":
        raise RecipeError(f"{path}: {_NO_STUDY.format(path=shlex.quote(str(path)))}")
    return raw


@contextmanager
def in_file(path: str | Path) -> Iterator[None]:
    """Names the study file in errors about its runs, whose messages begin with fields of that file."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{path}:\n  " + "\n  ".join(str(error).splitlines())) from None


def merged(problems: Iterable[tuple[str, str]]) -> list[str]:
    """Problems with their places as lines; one that several places have is told once, after all of them.

    Example:
        >>> merged([("recipes.a", "x"), ("recipes.a with controls.random", "x"), ("recipes.b", "x")])
        ['recipes.a, recipes.b: x']
    """
    places: dict[str, list[str]] = {}
    for place, problem in problems:
        where = places.setdefault(problem, [])
        if place not in where and place.partition(" with ")[0] not in where:
            where.append(place)
    return [f"{', '.join(where)}: " + problem.replace("\n", "\n  ") for problem, where in places.items()]


def refuse(path: str | Path, problems: Sequence[str]) -> None:
    """Names all problems, after the study file.

    Raises:
        RecipeError: There is at least one.
    """
    if problems:
        with in_file(path):
            raise RecipeError("\n".join(problems))


def as_far_as_read(
    model: type[ModelT], rest: type[ModelT], raw: dict[str, Any], name: str, said: Callable[[Any], str]
) -> tuple[ModelT, list[str], frozenset[str]]:
    """A study file as far as it can be read, so that the faults of its recipes are told with its own.

    Args:
        model: The kind of study.
        rest: The same kind, in which no field is required.
        raw: Field to value.
        name: Its name in messages.
        said: One problem as a sentence.

    Returns:
        The study, its faults, and the fields that are left out of it for theirs.

    Raises:
        RecipeError: It holds a key.
    """
    _refuse_secret(raw, name)
    try:
        return model.model_validate(raw), [], frozenset()
    except ValidationError as error:
        wrong = faults(error)
    problems = [said(item) for item in wrong]
    left = {field: dict(value) if isinstance(value, dict) else value for field, value in raw.items()}
    for item in wrong:
        field, inner = "".join(map(str, item["loc"][:1])), item["loc"][1:]
        section = left.get(field)
        if inner and field in ("recipes", TRANSFER) and isinstance(section, dict):
            section.pop(inner[0], None)
        elif field != TRANSFER or not isinstance(section, dict):
            left.pop(field, None)
    fields = frozenset(str(item["loc"][0]) for item in wrong if item["loc"])
    try:
        return built(rest, left, name, said), problems, fields
    except RecipeError:
        return rest(), problems, fields


def _refuse_secret(raw: dict[str, Any], name: str) -> None:
    secret = find_secret(raw)
    if secret is not None:
        raise RecipeError(f"{name}: {secret}; keys belong into environment variables")


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
    _refuse_secret(raw, name)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{name}:\n  " + "\n  ".join(said(item) for item in faults(error))) from None


def is_transfer(raw: dict[str, Any]) -> bool:
    """Whether a study file compares targets and generators (`transfer`), not arms."""
    return TRANSFER in raw


def in_folder(recipe: str, folder: Path) -> str:
    """The file beside the study file if there is one, else the name as it stands."""
    path = Path(recipe).expanduser()
    if path.suffix in (".yaml", ".yml") or (folder / path).is_file():
        return str((folder / path).resolve())
    return recipe
