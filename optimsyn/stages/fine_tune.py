"""Stage 6, fine-tuning: trains the target from its start on each variant's pairs, with equal pairs and steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimsyn.runs.results.built_in import FineTuned, FineTuneResult
from optimsyn.stages.shared import Tools

if TYPE_CHECKING:
    from optimsyn.data.records import Pair, Question
    from optimsyn.runs.folder import Run


def run(run: Run) -> FineTuneResult:
    """Fine-tunes a new adapter for each variant; skips variants that are done.

    Raises:
        StageError: `synthesize` has not finished.
    """
    from optimsyn.training.fine_tuning import fine_tune

    recipe = run.recipe
    with run.stage("fine_tune") as stage:
        if stage.finished:
            return FineTuneResult.load(run)
        tuned: dict[str, FineTuned] = {}
        for position, variant in enumerate(recipe.fine_tuned):
            steps = recipe.fine_tune.steps
            total = steps * len(recipe.fine_tuned)
            stage.progress(position * steps, total)

            def report(step: int, _: int, before: int = position * steps, total: int = total) -> None:
                stage.progress(before + step, total)

            pairs = items_of(run, variant)
            folder = run.path("fine_tune", variant)
            fine_tune(recipe.models.target, pairs, recipe.fine_tune, folder, recipe.seed_of("fine_tune"), report=report)
            history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
            losses = [row["loss"] for row in history if row.get("loss") is not None]
            tuned[variant] = FineTuned(pairs=len(pairs), steps=steps, loss_first=losses[0], loss_last=losses[-1])
        return FineTuneResult(variants=tuned).save(run)


def items_of(run: Run, variant: str) -> Sequence[Pair | Question]:
    """What the target is fine-tuned on: a variant's pairs; for the ceiling `validation` the validation questions."""
    return Tools(run).validation if variant == "validation" else run.pairs(variant)
