"""Runs any stage of a run: a built-in one, or a custom one that the recipe names under `stages`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

from optimsyn.base.errors import StageError
from optimsyn.base.files import read_jsonl
from optimsyn.data.records import Document
from optimsyn.runs.datasets.pairs import between, judged_of, pairs_file
from optimsyn.runs.manifest import STAGES
from optimsyn.runs.results.built_in import SynthesizeResult
from optimsyn.runs.results.stage_result import StageResult, TableResult
from optimsyn.runs.stage_functions import SOURCE, digests, function_of, own_stage, refuse_edited

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import OwnStage
    from optimsyn.runs.folder import Run
    from optimsyn.runs.stage_handle import StageHandle


class Stage(Protocol):
    """A custom stage: a function that a recipe puts between two other stages.

    It is called once, when all earlier stages have finished. It may read everything in the run folder and write into
    `run.path(stage.name, ...)`. When it returns, the stage has finished and is not called again; when it raises, the
    run stops, everything is kept, and the next start calls it again from the beginning. So save whatever takes long or
    costs money as it comes, and look for it first.

    Between `synthesize` and `fine_tune` it may change the training pairs: `run.pairs(variant)` returns the pairs of a
    variant after the earlier stages, `stage.hand_on(variant, pairs)` replaces them for the later ones.
    """

    def __call__(self, run: Run, stage: StageHandle, /) -> StageResult | None:
        """Does the work of the stage.

        Args:
            run: The run: its `recipe`, `path`, `pairs`, `candidates` and `dataset`.
            stage: Its handle: `options` from the recipe, `progress` and `count` report progress, `note` puts a fact
                into the manifest, `hand_on` replaces pairs.

        Returns:
            Its result, a `StageResult` subclass or a `TableResult`; None shows only the stage's name.
        """


def run_stage(run: Run, name: str) -> StageResult:
    """Runs a stage of a run, or shows the result of one that has finished.

    Raises:
        StageError: There is no such stage, an earlier one has not finished, or it was edited since it finished.
        RecipeError: The function of a custom stage cannot be found.
    """
    if name in STAGES:
        result: StageResult = importlib.import_module(f"optimsyn.stages.{name}").run(run)
        return result
    own = own_stage(run.recipe, name)
    with run.stage(name) as stage:
        assert own is not None, "a run has the stages of its recipe"
        if stage.finished:
            refuse_edited(run)
            return TableResult.load(run, name)
        return _run(run, stage, own)


def _run(run: Run, stage: StageHandle, own: OwnStage) -> StageResult:
    function = function_of(run.recipe, own)
    stage.note(**{SOURCE: digests(run.recipe, own)})
    for variant in run.recipe.variants:
        # From an attempt that did not finish.
        pairs_file(run.folder, stage.name, variant).unlink(missing_ok=True)
    result = function(run, stage)
    if result is None:
        result = TableResult()
    if not isinstance(result, StageResult):
        raise StageError(
            f"stage {stage.name}: {own.reference} returned {type(result).__name__}; it returns a StageResult, such as "
            "TableResult(numbers={...}), or None"
        )
    result = result.model_copy(update={"stage": stage.name, "notes": (*result.notes, *_uneven(run, stage))})
    if stage.handed_on:
        stage.note(handed_on=stage.handed_on)
        _export_again(run, stage)
    return result.save(run)


def _uneven(run: Run, stage: StageHandle) -> list[str]:
    """A note if the variants have different numbers of pairs after this stage."""
    if not stage.handed_on:
        return []
    counts = {variant: stage.handed_on.get(variant, len(run.pairs(variant))) for variant in run.recipe.variants}
    if len(set(counts.values())) == 1:
        return []
    listed = ", ".join(f"{variant} {count}" for variant, count in counts.items())
    return [
        f"After {stage.name} the variants have different numbers of pairs ({listed}), which affects their results "
        "as well."
    ]


def _export_again(run: Run, stage: StageHandle) -> None:
    """Rewrites the dataset if its pairs have changed."""
    from optimsyn.data.records import Pair
    from optimsyn.runs.datasets.export import export_dataset

    chosen = run.recipe.dataset_variant
    if chosen not in stage.handed_on:
        return
    pairs = read_jsonl(pairs_file(run.folder, stage.name, chosen), Pair)
    export_dataset(
        run.path("dataset"),
        judged_of(run.folder, chosen, pairs),
        recipe=run.recipe,
        variant=chosen,
        losses=_losses(run, stage, chosen),
        documents=read_jsonl(run.folder / "prepare" / "documents.jsonl", Document),
    )


def _losses(run: Run, stage: StageHandle, variant: str) -> dict[str, int]:
    """What became of a variant's candidates, through this stage."""
    losses = SynthesizeResult.load(run).losses or {}
    counts = losses[variant].counts()
    remaining = counts.pop("kept")
    manifest = run.manifest
    for name in between(manifest):
        handed = stage.handed_on if name == stage.name else manifest.stage(name).notes.get("handed_on", {})
        if variant in handed and handed[variant] != remaining:
            label = f"left out by {name}" if handed[variant] < remaining else f"added by {name}"
            counts[label], remaining = abs(remaining - handed[variant]), handed[variant]
    return {**counts, "kept": remaining}
