"""Stage 6, fine-tuning: trains the target from its start on each variant's pairs, with equal pairs and steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimsyn.base.terminal.labels import variant_label
from optimsyn.runs.results.built_in import FineTuned, FineTuneResult
from optimsyn.stages.shared import Tools

if TYPE_CHECKING:
    from optimsyn.data.records import Pair, Question
    from optimsyn.runs.folder import Run


def run(run: Run) -> FineTuneResult:
    """Fine-tunes a new adapter for each variant; skips variants that are done.

    Of variants with the same training set (an optimised text that is the recipe's own gives the same pairs), the first
    is trained, and the others take its adapter over.

    Raises:
        StageError: `synthesize` has not finished.
    """
    from optimsyn.training.fine_tuning import adopt, fine_tune, training_set

    recipe = run.recipe
    with run.stage("fine_tune") as stage:
        if stage.finished:
            return FineTuneResult.load(run)
        tuned: dict[str, FineTuned] = {}
        trained: dict[str, list[dict[str, Any]]] = {}
        for position, variant in enumerate(recipe.fine_tuned):
            steps = recipe.fine_tune.steps
            total = steps * len(recipe.fine_tuned)
            stage.progress(position * steps, total)

            def report(step: int, _: int, before: int = position * steps, total: int = total) -> None:
                stage.progress(before + step, total)

            pairs = items_of(run, variant)
            folder = run.path("fine_tune", variant)
            learned = training_set(pairs)
            twin = next((name for name, others in trained.items() if others == learned), None)
            if twin is None:
                trained[variant] = learned
                fine_tune(
                    recipe.models.target, pairs, recipe.fine_tune, folder, recipe.seed_of("fine_tune"), report=report
                )
            else:
                trained_at = run.path("fine_tune", twin)
                adopt(recipe.models.target, pairs, recipe.fine_tune, folder, recipe.seed_of("fine_tune"), trained_at)
            history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
            losses = [row["loss"] for row in history if row.get("loss") is not None]
            tuned[variant] = FineTuned(
                pairs=len(pairs), steps=steps, loss_first=losses[0], loss_last=losses[-1], same_as=twin
            )
        return FineTuneResult(variants=tuned, notes=_twin_notes(tuned)).save(run)


def items_of(run: Run, variant: str) -> Sequence[Pair | Question]:
    """What the target is fine-tuned on: a variant's pairs; for the ceiling `validation` the validation questions."""
    return Tools(run).validation if variant == "validation" else run.pairs(variant)


def _twin_notes(tuned: Mapping[str, FineTuned]) -> tuple[str, ...]:
    """A sentence for each variant that has the pairs of another one."""
    return tuple(
        f"{variant_label(name).capitalize()}: same pairs as {variant_label(each.same_as)}, so both are one training "
        "and one result."
        for name, each in tuned.items()
        if each.same_as is not None
    )
