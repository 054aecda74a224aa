"""What the recipes of a person say: which test questions they hold back, and what their services cost."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import RecipeError
from optimsyn.recipe.bundled import EMBEDDED_PREFIX, recipes_folder
from optimsyn.recipe.recipe import Recipe

if TYPE_CHECKING:
    from optimsyn.recipe.sections.data import Source
    from optimsyn.recipe.sections.models import ModelSpec

# A folder of a person may hold very many YAML files that are no recipes.
_MOST_FILES = 2000
_SHOWN = "holds the test questions of a recipe, which only the evaluation may read; name other data"
_MIXED = "holds questions of which the recipe {name} keeps a part as test questions; name other data"
_OF_RUN = (
    "is in the folder of a run, which holds the test questions of a recipe and the answers to them; name other data"
)


@dataclass(frozen=True)
class _Known:
    """What a recipe says about its test questions."""

    name: str
    documents: Source
    validation: Source
    test: Source | None
    fraction: float
    seed: int
    limit: int | None
    prices: frozenset[tuple[str, ...]]

    @classmethod
    def of(cls, recipe: Recipe) -> _Known:
        questions = recipe.questions
        return cls(
            recipe.name,
            recipe.documents.source,
            questions.validation,
            questions.test,
            questions.test_fraction,
            recipe.seed_of("data"),
            questions.test_limit,
            frozenset(_price(spec) for spec in recipe.models.writers.values()),
        )

    @property
    def held_back(self) -> tuple[Any, ...]:
        """All that decides which questions are held back, before a limit draws some of them."""
        if self.test is not None:
            return ("given", _facts(self.test), self.seed if self.test.limit is not None else None)
        return ("drawn", _facts(self.validation), self.fraction, self.seed)

    @property
    def evaluated(self) -> tuple[Any, ...]:
        """All that decides which of them are asked."""
        return (*self.held_back, self.limit, self.seed if self.limit is not None else None)


class KnownRecipes:
    """The recipes in a folder, those of its runs and the bundled ones.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: list[_Known] = list(_bundled())
        # When the recipes that were looked at were last changed.
        self._looked_at: dict[Path, int] = {}

    def note(self, recipe: Recipe) -> None:
        """Remembers what a recipe says."""
        known = _Known.of(recipe)
        if known not in self._known:
            self._known.append(known)

    def look(self) -> None:
        """Notes every recipe that is new or changed."""
        runs = self._root.glob("runs/*/recipe.yaml")
        for file in (*_yaml_files(self._root), *runs):
            changed = file.stat().st_mtime_ns
            if self._looked_at.get(file) != changed:
                self._looked_at[file] = changed
                with suppress(RecipeError):
                    self.note(Recipe.load(file, of_run=(file.parent / "manifest.json").is_file()))

    def shown_by(self, recipe: Recipe, field: str, source: Source) -> str | None:
        """Why a source of documents or questions would show test questions; None where it would not.

        Args:
            recipe: The recipe, which may hold back some of its own.
            field: The recipe's field.
            source: What that names.
        """
        if source.path is not None and not _is_bundled(source) and self._is_of_run(Path(source.path).resolve()):
            return _OF_RUN
        # The bundled documents are no questions, and documents of a hub are public.
        if field == "documents.source" and (source.path is None or _is_bundled(source)):
            return None
        for known in (*self._known, _Known.of(recipe)):
            if known.test is not None and _holds(source, known.test):
                return _SHOWN
            if known.test is None and field != "questions.validation" and _same_data(source, known.validation):
                # A person's own recipe may cut its passages from the rows of its questions.
                mine = field == "documents.source" and any(source == other.documents for other in self._known)
                if not mine:
                    return _MIXED.format(name=known.name)
        return None

    def redrawn(self, recipe: Recipe, base: Recipe | None = None) -> str | None:
        """Why a recipe would be evaluated on other test questions than those of its data; None where it would not.

        Args:
            recipe: The recipe.
            base: What it was changed from.
        """
        now = _Known.of(recipe)
        before = _Known.of(base) if base is not None else None
        if before is not None and _same_data(now.validation, before.validation) and now.evaluated != before.evaluated:
            return _refusal(now, before)
        same = [known for known in self._known if _same_data(now.validation, known.validation)]
        if not same or any(now.held_back == known.held_back for known in same):
            return None
        return _refusal(now, same[0])

    def repriced(self, recipe: Recipe) -> list[str]:
        """The models whose price a recipe states by itself: with a lower one, the budget would hold nothing."""
        stated = {price for known in self._known for price in known.prices}
        return [
            f"models.{role}.{'prices' if spec.prices is not None else 'base_model'}: what {spec.name} costs is for a "
            "person to say, and no recipe of theirs says this; leave the field as it is"
            for role, spec in recipe.models.writers.items()
            if (spec.prices is not None or spec.base_model is not None) and _price(spec) not in stated
        ]

    def _is_of_run(self, path: Path) -> bool:
        """Whether a path is a run's folder, is in one, or holds one."""
        if any((folder / "manifest.json").exists() for folder in (path, *path.parents)) or "prepare" in path.parts[-2:]:
            return True
        runs = self._root / "runs"
        inside = [*runs.glob("*/manifest.json"), *path.glob("*/manifest.json"), *path.glob("*/prepare/test.jsonl")]
        return any(file.is_relative_to(path) for file in inside)


@cache
def _bundled() -> tuple[_Known, ...]:
    return tuple(_Known.of(Recipe.load(file)) for file in sorted(recipes_folder().glob("*.yaml")))


def recipe_files(root: Path) -> list[Path]:
    """The YAML files in a folder and in the folders directly in it, without hidden ones and those of runs."""
    files = [*root.glob("*.y*ml"), *root.glob("*/*.y*ml")]
    inside = [file for file in files if file.is_file() and file.resolve().is_relative_to(root)]
    return sorted(
        file for file in inside if not file.parent.name.startswith(".") and not (file.parent / "manifest.json").exists()
    )


def _yaml_files(root: Path) -> list[Path]:
    """The YAML files in a folder, however deep, without hidden ones and those of runs."""
    found: list[Path] = []
    for place, folders, names in os.walk(root):
        if "manifest.json" in names:
            folders[:] = []
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [file for name in names if name.endswith((".yaml", ".yml")) and (file := Path(place, name)).is_file()]
        if len(found) >= _MOST_FILES:
            break
    return [file for file in found if file.resolve().is_relative_to(root)]


def _refusal(now: _Known, before: _Known) -> str:
    keep = "keep questions.test"
    if before.test is None:
        keep += f" absent, questions.test_fraction {before.fraction:g}"
        if now.seed != before.seed:
            keep += f" and the seed that draws them (seeds.data: {before.seed} beside another `seed`)"
    if now.limit != before.limit:
        keep += f", questions.test_limit {'null' if before.limit is None else before.limit}"
    elif before.test is not None and now.seed != before.seed:
        keep += f", and the seed that draws them (seeds.data: {before.seed} beside another `seed`)"
    return (
        f"other test questions than those of the recipe {before.name}, which an agent may not choose: {keep}, and the "
        "rows and columns of their data as they are"
    )


def _price(spec: ModelSpec) -> tuple[str, ...]:
    """A model, where it is served and what it costs."""
    prices = "" if spec.prices is None else spec.prices.model_dump_json()
    return (spec.name, spec.api_base or "", prices, spec.base_model or "")


def _is_bundled(source: Source) -> bool:
    return source.path is not None and source.path.startswith(EMBEDDED_PREFIX)


def _facts(source: Source) -> str:
    path = source.path if source.path is None or _is_bundled(source) else str(Path(source.path).resolve())
    return source.model_copy(update={"path": path}).model_dump_json()


def _same_data(one: Source, other: Source) -> bool:
    return _holds(one, other) or _holds(other, one)


def _holds(source: Source, test: Source) -> bool:
    """Whether a source may hold rows of another one: the same rows, or a file or folder that they lie in."""
    if source.path is not None and test.path is not None:
        if _is_bundled(source) or _is_bundled(test):
            same = source.path == test.path
        else:
            same = Path(test.path).resolve().is_relative_to(Path(source.path).resolve())
    else:
        same = source.hub is not None and (source.hub, source.config) == (test.hub, test.config)
        # A split may be an expression, such as `train+test`.
        same = same and test.split in source.split
    return same and not any(test.where.get(column, value) != value for column, value in source.where.items())
