"""One synthesized dataset, several targets: a run takes over the pairs that another run has finished.

Everything before `fine_tune` is copied from the run of the same recipe without `fine_tune.target`, so that another
target is fine-tuned on the same pairs and asked the same test questions, and nothing is bought or computed again. What
only the scoring needed (checkpoints, directions, replies) stays where it is.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from optimsyn.base.errors import StageError
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.datasets.pairs import LAST
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES

TAKEN_OVER = "taken_over_from"
"""The note of a stage that was taken over: name of the run that did it."""
# What later stages and the pages read of the built-in stages; the rest are weights.
_READ = frozenset({".json", ".jsonl", ".txt", ".md", ".csv", ".parquet", ".yaml", ".png"})


def source_recipe(recipe: Recipe, name: str | None = None) -> Recipe:
    """The recipe whose run synthesizes the pairs of a recipe with `fine_tune.target`; under another name, if given."""
    return changed(recipe, {"fine_tune.target": None, "name": recipe.name if name is None else name})


def before_fine_tuning(run: Run) -> tuple[str, ...]:
    """The stages of a run whose results another target can take over."""
    names = run.stages
    return names[: names.index(LAST)]


def has_pairs(run: Run) -> bool:
    """Whether all stages before `fine_tune` have finished."""
    return all(map(run.done, before_fine_tuning(run)))


def take_over(run: Run, source: Run) -> bool:
    """Gives a run all that another one did before `fine_tune`; a killed call starts again.

    Args:
        run: Of a recipe with `fine_tune.target`; one that has its pairs is left as it is.
        source: Of the same recipe without it, apart from name, description and limits.

    Returns:
        Whether it was done now.

    Raises:
        StageError: The source has no pairs yet, or is of another recipe.
    """
    if has_pairs(run):
        return False
    if source_recipe(run.recipe, source.recipe.name).fingerprint != source.recipe.fingerprint:
        raise StageError(
            f"{run.name}: the pairs of {source.name} cannot be taken over, since its recipe differs in more than "
            "fine_tune.target"
        )
    if not has_pairs(source):
        raise StageError(f"{source.name}: has not finished its pairs, which {run.name} is to take over; run it first")
    stages = before_fine_tuning(run)
    for stage in stages:
        _copy(source.folder / stage, run.folder / stage, everything=stage not in STAGES)
    shutil.copytree(source.folder / "dataset", run.folder / "dataset", dirs_exist_ok=True)
    records = {record.name: record for record in source.manifest.stages}
    with run.changed_manifest() as manifest:
        for stage in stages:
            theirs, mine = records[stage], manifest.stage(stage)
            mine.status, mine.attempts, mine.started, mine.finished = "finished", 1, theirs.started, theirs.finished
            mine.notes = {**theirs.notes, TAKEN_OVER: source.name}
            # Time and money are the source's.
            mine.seconds, mine.error, mine.failure, mine.pid = None, None, None, None
    return True


def take_over_beside(run: Run) -> Run | None:
    """Takes over the pairs of the run of the same recipe without `fine_tune.target` in the same root, if it has them.

    Returns:
        That run; None if there is nothing to take over.

    Raises:
        StageError: That run cannot be read.
    """
    if run.recipe.fine_tune.target is None or has_pairs(run):
        return None
    folder = Run.folder_of(source_recipe(run.recipe), run.folder.parent)
    if not (folder / "manifest.json").is_file():
        return None
    source = Run.load(folder)
    return source if has_pairs(source) and take_over(run, source) else None


def taken_from(run: Run) -> str | None:
    """Name of the run whose pairs a run has taken over; None if they are its own."""
    noted = run.manifest.stage(before_fine_tuning(run)[-1]).notes.get(TAKEN_OVER)
    return None if noted is None else str(noted)


def _copy(source: Path, folder: Path, *, everything: bool) -> None:
    """Copies a stage's folder: of a built-in stage what is read later, of a custom one all."""
    for file in sorted(source.rglob("*")):
        place = folder / file.relative_to(source)
        if file.is_file() and (everything or file.suffix in _READ):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
