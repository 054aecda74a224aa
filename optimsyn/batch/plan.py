"""What a batch will do: its recipes are read and checked, all of them, before anything starts or is bought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimsyn.base.errors import OptimsynError
from optimsyn.base.secrets.redaction import SHOWN_INSTEAD, find_secret, redact
from optimsyn.batch.memory import Need
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
        name: What it is called in tables: the name of its recipe, told apart from others where several have it.
        state: What `batch.json` says about it.
        run: Its run folder; None when the recipe was refused.
        need: The memory that it will take.
        embedded: A role that writes text is the embedded model, for which the runs can share one server.
        gpu: A model is loaded on a GPU where there is one.
        warnings: What the check found that would not stop it.
        until: Its last stage.
    """

    name: str
    state: RunState
    run: Run | None = None
    need: Need = field(default_factory=Need)
    embedded: bool = False
    gpu: bool = False
    warnings: tuple[str, ...] = ()
    until: str = STAGES[-1]

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it is to go through."""
        names: list[str] = [*STAGES]
        return tuple(names[: names.index(self.until) + 1])

    def finished(self) -> bool:
        """Whether all its stages have finished."""
        if self.run is None:
            return False
        manifest = self.run.manifest
        return all(manifest.stage(stage).status == "finished" for stage in self.stages)


def plan(
    recipes: Sequence[str],
    root: Path,
    *,
    size: str = "full",
    changes: Mapping[str, Any] | None = None,
    until: str = STAGES[-1],
    here: bool = True,
    money: bool = False,
    told: Callable[[str], None] = lambda text: None,
) -> list[Job]:
    """The runs of a batch, in the order of their recipes.

    A recipe that is wrong or lacks something on this machine, or whose run folder cannot be used, becomes a refused
    run with its reason. Recipes that mean the same run folder become one run.

    Args:
        recipes: Recipe files, or names of recipes that come with optimsyn.
        root: Folder of the run folders.
        size: `full` or `tiny`, for all of them.
        changes: Recipe fields to change in all of them.
        until: The last stage to run.
        here: The runs will work on this machine, so its memory counts.
        money: They share a cap on money, which needs the price of every service.
        told: Called with a line for a person before each check, which can take seconds.

    Raises:
        StageError: There is no stage `until`.
    """
    notebook_name(until)
    jobs: list[Job] = []
    by_folder: dict[Path, Job] = {}
    for number, recipe in enumerate(recipes, 1):
        told(f"Checking {recipe} ({number} of {len(recipes)}) …")
        try:
            chosen = chosen_recipe(recipe, size=size, changes=changes)
            folder = Run.folder_of(chosen, root)
            if folder in by_folder:
                by_folder[folder].state.also.append(recipe)
                continue
            job = _checked(recipe, chosen, root, until, here, money)
            by_folder[folder] = job
        except (OptimsynError, OSError) as error:
            # A run folder that cannot be read or written is the trouble of its recipe alone.
            given = recipe if find_secret(recipe) is None else SHOWN_INSTEAD
            state = RunState(recipe=given, state="refused", kind=type(error).__name__, reason=redact(str(error)))
            job = Job(Path(given).stem, state, until=until)
        jobs.append(job)
    counts = Counter(job.name for job in jobs)
    for job in jobs:
        if counts[job.name] > 1:
            job.name = job.run.name if job.run is not None else job.state.recipe
    return jobs


def _checked(given: str, recipe: Recipe, root: Path, until: str, here: bool, money: bool) -> Job:
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
    found = checked(recipe, root, deep=not (known and Run.load(folder).done(STAGES[0])), here=here, ask=False)
    if money:
        found.problems += price_problems(recipe, "--cost-usd")
    found.raise_if_refused()
    models = recipe.models
    writers = [spec for spec in (models.generator, models.rubric, models.reflection) if spec is not None]
    roles = [*writers, models.target]
    return Job(
        recipe.name,
        state,
        Run.open(recipe, root),
        need=Need(
            found.gpu_bytes,
            found.main_bytes,
            pinned=any(spec.device.startswith("cuda:") for spec in roles),
        ),
        embedded=any(spec.provider == "embedded" for spec in writers),
        gpu=any(spec.provider in ("embedded", "local") and spec.device.startswith(("auto", "cuda")) for spec in roles),
        warnings=tuple(found.warnings),
        until=until,
    )
