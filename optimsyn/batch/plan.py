"""Plans a batch: reads and checks all recipes before anything starts or is bought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optimsyn.base.errors import OptimsynError
from optimsyn.base.secrets.redaction import SHOWN_INSTEAD, find_secret, redact
from optimsyn.batch.memory import Need
from optimsyn.batch.state import RunState
from optimsyn.execution.parameters import chosen_recipe
from optimsyn.llm.local.loading import on_gpu
from optimsyn.llm.shared_budget import Caps
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES
from optimsyn.runs.resources import notebook_name


@dataclass(frozen=True)
class RunOptions:
    """Options of every run of a batch: size, recipe fields to change, and the last stage to run, if not the last."""

    size: str = "full"
    changes: Mapping[str, Any] = field(default_factory=dict)
    until: str | None = None


@dataclass(frozen=True)
class BatchLimits:
    """Limits of all runs of a batch together.

    Attributes:
        jobs: How many run at once.
        caps: What they may buy, including what they bought in earlier starts.
        gpu_memory_gb: Of the concurrent runs; None: all that the machine's GPUs have.
    """

    jobs: int = 1
    caps: Caps = field(default_factory=Caps)
    gpu_memory_gb: float | None = None


@dataclass
class Job:
    """One run of a batch.

    Attributes:
        name: Its name in tables: the recipe's name, or the run's where several recipes have the same name.
        state: Its entry in `batch.json`.
        run: Its run folder; None when the recipe was refused.
        embedded: It writes text with the embedded model on the CPU, whose server the runs can share.
        gpu: It loads a model on a GPU if there is one.
        until: Its last stage; None: the run's last stage.
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
    def opened(self) -> Run:
        """The run of a job that was not refused."""
        assert self.run is not None
        return self.run

    @property
    def stages(self) -> tuple[str, ...]:
        """Its stages, up to the last one to run."""
        names = self.run.recipe.stage_names if self.run is not None else STAGES
        return names if self.until is None else names[: names.index(self.until) + 1]

    def finished(self) -> bool:
        """Whether all its stages have finished."""
        return self.run is not None and all(map(self.run.done, self.stages))


def known_stages(recipes: Sequence[str], size: str, changes: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The built-in stages, and the custom stages of all valid recipes."""
    stages = dict.fromkeys(STAGES)
    for recipe in recipes:
        with suppress(OptimsynError, OSError):
            stages.update(dict.fromkeys(chosen_recipe(recipe, size=size, changes=changes).stage_names))
    return tuple(stages)


def plan(
    recipes: Sequence[str],
    root: Path,
    options: RunOptions = RunOptions(),
    *,
    here: bool = True,
    money: bool = False,
    report: Callable[[str], None] | None = None,
) -> list[Job]:
    """The runs of a batch, in the order of their recipes.

    A recipe that is invalid, cannot run on this machine, or whose run folder cannot be used, becomes a refused run with
    its reason. Recipes with the same run folder become one run.

    Args:
        recipes: Recipe files, or names of recipes that come with optimsyn.
        root: Folder of the run folders.
        options: Of all runs.
        here: The runs will work on this machine, so its memory counts.
        money: They share a cap on money, which needs the price of every service.
        report: Called with a line of text before each check, which can take seconds.

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
            job = by_folder[folder] = _checked(recipe, chosen, root, until, here, money)
        except (OptimsynError, OSError) as error:
            # An unusable run folder refuses only its own recipe.
            label = recipe if find_secret(recipe) is None else SHOWN_INSTEAD
            state = RunState(recipe=label, state="refused", kind=type(error).__name__, reason=redact(str(error)))
            job = Job(Path(label).stem, state, until=until)
        jobs.append(job)
    counts = Counter(job.name for job in jobs)
    for job in jobs:
        if counts[job.name] > 1:
            job.name = job.run.name if job.run is not None else job.state.recipe
    return jobs


def _checked(label: str, recipe: Recipe, root: Path, until: str | None, here: bool, money: bool) -> Job:
    """A run whose recipe has passed the checks; a finished run is not checked again."""
    from optimsyn.machine.preflight import checked, price_problems

    folder = Run.folder_of(recipe, root)
    state = RunState(recipe=label, folder=str(folder))
    earlier = Run.load(folder) if (folder / "manifest.json").is_file() else None
    job = Job(recipe.name, state, earlier, until=until)
    if job.finished():
        state.state, state.earlier = "finished", True
        return job
    # A run that has read its data need not check every row again. Each run asks its services itself and pays for that.
    deep = earlier is None or not earlier.done(STAGES[0])
    preflight = checked(recipe, root, deep=deep, here=here, ask=False)
    if money:
        preflight.problems += price_problems(recipe, "--cost-usd")
    preflight.raise_if_refused()
    models = recipe.models
    writers = list(models.writers.values())
    roles = [*writers, models.target, recipe.trained_target]
    pinned = any(spec.device.startswith("cuda:") for spec in roles)
    return replace(
        job,
        run=Run.open(recipe, root),
        need=Need(preflight.gpu_bytes, preflight.main_bytes, pinned),
        embedded=any(spec.provider == "embedded" and not on_gpu(spec) for spec in writers),
        gpu=any(spec.provider in ("embedded", "local") and spec.device.startswith(("auto", "cuda")) for spec in roles),
        warnings=tuple(preflight.warnings),
    )
