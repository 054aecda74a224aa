"""What a batch will do: its recipes are read and checked, all of them, before anything starts or is bought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimsyn.base.errors import OptimsynError
from optimsyn.base.secrets.redaction import SHOWN_INSTEAD, find_secret, redact
from optimsyn.batch.memory import Need
from optimsyn.batch.options import RunOptions
from optimsyn.batch.state import RunState
from optimsyn.execution.parameters import chosen_recipe
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES
from optimsyn.runs.resources import notebook_name


@dataclass
class Job:
    """One run of a batch.

    Attributes:
        name: What it is called in tables: the name of its recipe; of its run, where several recipes have that name.
        state: What `batch.json` says about it.
        run: Its run folder; None when the recipe was refused.
        need: The memory that it will take.
        embedded: A role that writes text is the embedded model, for which the runs can share one server.
        gpu: A model is loaded on a GPU where there is one.
        warnings: What the check found that would not stop it.
        until: Its last stage; None is the last one of the run.
    """

    name: str
    state: RunState
    run: Run | None = None
    need: Need = field(default_factory=Need)
    embedded: bool = False
    gpu: bool = False
    warnings: tuple[str, ...] = ()
    until: str | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it is to go through."""
        names = self.run.recipe.stage_names if self.run is not None else STAGES
        return names if self.until is None else names[: names.index(self.until) + 1]

    def finished(self) -> bool:
        """Whether all its stages have finished."""
        if self.run is None:
            return False
        manifest = self.run.manifest
        return all(manifest.stage(stage).status == "finished" for stage in self.stages)


def known_stages(recipes: Sequence[str], size: str, changes: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The built-in stages, and those that any of the recipes has beside them; a recipe that is wrong has none."""
    found = dict.fromkeys(STAGES)
    for recipe in recipes:
        with suppress(OptimsynError, OSError):
            found.update(dict.fromkeys(chosen_recipe(recipe, size=size, changes=changes).stage_names))
    return tuple(found)


def plan(
    recipes: Sequence[str],
    root: Path,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    here: bool = True,
    money: bool = False,
    report: Callable[[str], None] | None = None,
) -> list[Job]:
    """The runs of a batch, in the order of their recipes.

    A recipe that is wrong or lacks something on this machine, or whose run folder cannot be used, becomes a refused
    run with its reason. Recipes that mean the same run folder become one run.

    Args:
        recipes: Recipe files, or names of recipes that come with optimsyn.
        root: Folder of the run folders.
        options: Size, changes and last stage of all of them.
        here: The runs will work on this machine, so its memory counts.
        money: They share a cap on money, which needs the price of every service.
        report: Called with a line for a person before each check, which can take seconds.

    Raises:
        StageError: None of the recipes has the last stage.
    """
    until = options.until
    if until is not None and until not in STAGES:
        notebook_name(until, known_stages(recipes, options.size, options.changes))
    jobs: list[Job] = []
    by_folder: dict[Path, Job] = {}
    for number, recipe in enumerate(recipes, 1):
        if report is not None:
            report(f"Checking {recipe} ({number} of {len(recipes)}) …")
        try:
            chosen = chosen_recipe(recipe, size=options.size, changes=options.changes)
            if until is not None:
                notebook_name(until, chosen.stage_names)
            folder = Run.folder_of(chosen, root)
            if folder in by_folder:
                by_folder[folder].state.also.append(recipe)
                continue
            job = _checked(recipe, chosen, root, until, here, money)
            by_folder[folder] = job
        except (OptimsynError, OSError) as error:
            # A run folder that cannot be read or written refuses that recipe alone.
            given = recipe if find_secret(recipe) is None else SHOWN_INSTEAD
            state = RunState(recipe=given, state="refused", kind=type(error).__name__, reason=redact(str(error)))
            job = Job(Path(given).stem, state, until=until)
        jobs.append(job)
    counts = Counter(job.name for job in jobs)
    for job in jobs:
        if counts[job.name] > 1:
            job.name = job.run.name if job.run is not None else job.state.recipe
    return jobs


def _checked(given: str, recipe: Recipe, root: Path, until: str | None, here: bool, money: bool) -> Job:
    """A run whose recipe would not fail on this machine; one that has finished is not looked at again."""
    from optimsyn.machine.preflight import checked, price_problems

    folder = Run.folder_of(recipe, root)
    state = RunState(recipe=given, folder=str(folder))
    known = (folder / "manifest.json").is_file()
    if known:
        job = Job(recipe.name, state, Run.load(folder), until=until)
        if job.finished():
            state.state, state.earlier = "finished", True
            return job
    # A run that has read its data needs no second look at every row of it.
    # Each run asks its services itself, where the answers are counted.
    preflight = checked(recipe, root, deep=not (known and Run.load(folder).done(STAGES[0])), here=here, ask=False)
    if money:
        preflight.problems += price_problems(recipe, "--cost-usd")
    preflight.raise_if_refused()
    models = recipe.models
    writers = [spec for spec in (models.generator, models.rubric, models.reflection) if spec is not None]
    roles = [*writers, models.target]
    return Job(
        recipe.name,
        state,
        Run.open(recipe, root),
        need=Need(
            preflight.gpu_bytes,
            preflight.main_bytes,
            pinned=any(spec.device.startswith("cuda:") for spec in roles),
        ),
        embedded=any(spec.provider == "embedded" for spec in writers),
        gpu=any(spec.provider in ("embedded", "local") and spec.device.startswith(("auto", "cuda")) for spec in roles),
        warnings=tuple(preflight.warnings),
        until=until,
    )
