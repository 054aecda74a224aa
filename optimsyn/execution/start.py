"""A run, and how one is started from what a notebook's parameters mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimsyn.execution.parameters import chosen_recipe
from optimsyn.machine.preflight import checked
from optimsyn.machine.preflight_services import open_asked
from optimsyn.runs.folder import Run as RunFolder
from optimsyn.runs.manifest import STAGES
from optimsyn.runs.resources import default_root


class Run(RunFolder):
    """A run folder that can be started; see `optimsyn.runs.folder.Run`."""

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
        """The run that a notebook's parameters mean; everything about it is checked before anything is bought.

        Args:
            recipe: A recipe file, or the name of a recipe that comes with optimsyn.
            size: `full`, or `tiny` for the embedded model and a handful of documents.
            generator: Another model that writes the pairs, such as `openai/gpt-6-luna`.
            changes: Further recipe fields, such as `{"synthesis.pairs": 20}`.
            run_folder: An existing run; all before it is then ignored.
            root: Folder of the run folders; None means `runs` in the working directory.

        Raises:
            RecipeError: A parameter does not fit, or something that the recipe needs is missing on this machine.
            StageError: `run_folder` is not a run folder.

        Example:
            >>> run = Run.start("quickstart", size="tiny")                                   # doctest: +SKIP
        """
        if str(run_folder):
            return cls.load(run_folder)

        chosen = chosen_recipe(recipe, size=size, generator=generator, changes=changes)
        place = Path(root) if root is not None else default_root()
        # A run that has read its data needs no second look at every row of it.
        known = cls.folder_of(chosen, place)
        read = (known / "manifest.json").is_file() and cls(known, chosen).done(STAGES[0])
        found = checked(chosen, place, deep=not read, ask=False)
        found.raise_if_refused()
        run = open_asked(chosen, place)
        run.foresee(found.forecast)
        run.warnings = (*found.warnings, *run.warnings)
        return run
