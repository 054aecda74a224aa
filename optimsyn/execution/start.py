"""Starts a run from a notebook's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optimsyn.base.errors import RecipeError
from optimsyn.execution.parameters import chosen_recipe
from optimsyn.machine.preflight import checked
from optimsyn.machine.preflight_services import open_asked
from optimsyn.recipe.bundled import is_recipe
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run as RunFolder
from optimsyn.runs.lookup import run_folder as folder_named
from optimsyn.runs.manifest import STAGES
from optimsyn.runs.resources import default_root


class Run(RunFolder):
    """A run folder that can be started; see `optimsyn.runs.folder.Run`."""

    @classmethod
    def open(
        cls,
        recipe: Recipe | Path | str,
        root: Path | str | None = None,
        *,
        size: str = "full",
        changes: Mapping[str, Any] | Iterable[str] = (),
    ) -> RunFolder:
        """Opens a run by what the command line takes, without checking or buying anything.

        Args:
            recipe: A run folder, the name of a run, or the name of a recipe that has one run in `root`. A recipe, its
                file, or the name of one that comes with optimsyn opens the run of that recipe, and creates it if there
                is none; `Run.start` checks it first.
            root: Folder of the run folders; None means `runs` in the working directory.
            size: Of a recipe, as for `Recipe.load`.
            changes: Of a recipe, as for `Recipe.load`.

        Raises:
            StageError: There is no such run; suggests names.
            RecipeError: The recipe is wrong, or a run is to be changed.

        Example:
            >>> run = Run.open("runs/quickstart-0f1e2d3c4b")                             # doctest: +SKIP
        """
        place = Path(root) if root is not None else default_root()
        if isinstance(recipe, Recipe):
            chosen = recipe.resized(size).changed(changes)
        elif is_recipe(recipe):
            chosen = Recipe.load(recipe, size=size, changes=changes)
        elif changes or size != "full":
            raise RecipeError(f"{recipe} is a run, whose recipe stays as it is; give size and changes with a recipe")
        else:
            return cls.load(folder_named(str(recipe), place))
        return super().open(chosen, place)

    @classmethod
    def start(
        cls,
        recipe: str = "quickstart",
        *,
        size: str = "full",
        generator: str = "",
        changes: Mapping[str, Any] | None = None,
        run_folder: Path | str = "",
        root: Path | str | None = None,
    ) -> RunFolder:
        """The run that a notebook's parameters choose, checked before anything is bought.

        Args:
            recipe: A recipe file, or the name of a recipe that comes with optimsyn.
            size: `full`, or `tiny` for the embedded model and a handful of documents.
            generator: Another model that writes the pairs, such as `openai/gpt-6-luna`.
            changes: Further recipe fields, such as `{"synthesis.pairs": 20}`.
            run_folder: An existing run; the parameters above are then ignored.
            root: Folder of the run folders; None means `runs` in the working directory.

        Raises:
            RecipeError: A parameter is wrong, or this machine lacks something that the recipe needs.
            StageError: `run_folder` is not a run folder.

        Example:
            >>> run = Run.start("quickstart", size="tiny")                                   # doctest: +SKIP
        """
        if str(run_folder):
            return cls.load(run_folder)

        chosen = chosen_recipe(recipe, size=size, generator=generator, changes=changes)
        place = Path(root) if root is not None else default_root()
        folder = cls.folder_of(chosen, place)
        # A run that has read its data need not check every row again.
        prepared = (folder / "manifest.json").is_file() and cls(folder, chosen).done(STAGES[0])
        preflight = checked(chosen, place, deep=not prepared, ask=False)
        preflight.raise_if_refused()
        run = open_asked(chosen, place)
        run.foresee(preflight.forecast)
        run.warnings = (*preflight.warnings, *run.warnings)
        return run
