"""The recipes, documents and questions that come along, in a source checkout or inside an installed wheel."""

from __future__ import annotations

import shlex
from pathlib import Path

from optimsyn.base.errors import RecipeError
from optimsyn.base.suggestions import did_you_mean

EMBEDDED_PREFIX = "embedded:"

PACKAGE = Path(__file__).resolve().parents[1]
BUNDLED = PACKAGE / "data" / "bundled"


def bundled_domains() -> tuple[str, ...]:
    """The domains with bundled documents and questions: what may follow `embedded:`."""
    return tuple(sorted(folder.parent.name for folder in BUNDLED.glob("*/documents.jsonl")))


def checkout() -> Path | None:
    """The source checkout of this package, or None for an installed wheel."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "notebooks").is_dir() else None


def recipes_folder() -> Path:
    """The folder of the recipes that come with optimsyn."""
    root = checkout()
    return root / "recipes" if root is not None else PACKAGE / "_recipes"


def is_recipe(name: str | Path) -> bool:
    """Whether a name means a recipe: a file, or one that comes with optimsyn."""
    path = Path(name).expanduser()
    is_run = (path / "manifest.json").is_file()
    return not is_run and (_is_file(path) or (recipes_folder() / f"{name}.yaml").is_file())


def _is_file(path: Path) -> bool:
    return path.suffix in {".yaml", ".yml"} or path.is_file()


def no_recipe_to_copy(name: str) -> RecipeError:
    """The error for a name that is no recipe file, such as that of the copy in the recipe's place."""
    shipped = ", ".join(_shipped())
    if (Path(name).expanduser() / "manifest.json").is_file():
        return RecipeError(f"{name}: is a run; copy its recipe.yaml, or name one of {shipped}")
    copied = f"optimsyn new quickstart {shlex.quote(name)}"
    return RecipeError(f"{name}: there is no such recipe to copy; name one of {shipped} before it, as in `{copied}`")


def _shipped() -> list[str]:
    return sorted(file.stem for file in recipes_folder().glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe that is given as a path, as a run folder or as the name of one that comes with optimsyn."""
    path = Path(name).expanduser()
    if _is_file(path) or (path / "manifest.json").is_file():
        return path
    shipped = _shipped()
    if name in shipped:
        return recipes_folder() / f"{name}.yaml"
    if path.is_dir():
        raise RecipeError(f"{path}: is a folder; name the recipe file in it")
    hint = did_you_mean(path.name, shipped, f"give a .yaml file or one of {', '.join(shipped)}")
    raise RecipeError(f"{name}: there is no such recipe; {hint}")
