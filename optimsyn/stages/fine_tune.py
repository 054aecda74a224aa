"""Stage 6, fine-tuning: trains the target from its start on each variant's pairs, with equal pairs and steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import ModelError
from optimsyn.base.terminal.labels import variant_label
from optimsyn.runs.results.built_in import FineTuned, FineTuneResult
from optimsyn.stages.shared import Tools

if TYPE_CHECKING:
    from optimsyn.data.records import Pair, Question
    from optimsyn.recipe.recipe import TargetSpec
    from optimsyn.runs.folder import Run


def run(run: Run) -> FineTuneResult:
    """Fine-tunes a new adapter for each variant; skips variants that are done.

    Of variants with the same training set (an optimised text that is the recipe's own gives the same pairs), the first
    is trained, and the others take its adapter over.

    Raises:
        StageError: `synthesize` has not finished.
        ModelError: `fine_tune.target` cannot be asked a test question.
    """
    from optimsyn.training.fine_tuning import adopt, fine_tune, training_set

    recipe = run.recipe
    with run.stage("fine_tune") as stage:
        if stage.finished:
            return FineTuneResult.load(run)
        _refuse_unfit(run)
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
                    recipe.trained_target, pairs, recipe.fine_tune, folder, recipe.seed_of("fine_tune"), report=report
                )
            else:
                trained_at = run.path("fine_tune", twin)
                adopt(recipe.trained_target, pairs, recipe.fine_tune, folder, recipe.seed_of("fine_tune"), trained_at)
            history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
            losses = [row["loss"] for row in history if row.get("loss") is not None]
            tuned[variant] = FineTuned(
                pairs=len(pairs), steps=steps, loss_first=losses[0], loss_last=losses[-1], same_as=twin
            )
        return FineTuneResult(variants=tuned, notes=_twin_notes(tuned)).save(run)


def unfit(spec: TargetSpec, items: Sequence[Pair | Question], what: str = "test question") -> list[str]:
    """What another model to fine-tune (`fine_tune.target`) cannot be asked or taught, a sentence each.

    All targets answer the same questions and learn the same pairs, so nothing is left out for one of them.
    """
    from jinja2 import TemplateError

    from optimsyn.llm.local.loading import load_tokenizer
    from optimsyn.target.encoding import as_sample, encode

    problems = []
    try:
        tokenizer = load_tokenizer(spec)
    except ModelError as error:
        return [f"fine_tune.target: {error}"]
    for item in items:
        try:
            encode(tokenizer, as_sample(item), spec.max_length)
        except (ModelError, TemplateError) as error:
            why = str(error).partition(";")[0]
            problems.append(
                f"fine_tune.target: {spec.name} cannot read the {what} {item.id!r}, which all targets get ({why}); "
                "raise fine_tune.target.max_length, or name another model"
            )
    return problems


def _refuse_unfit(run: Run) -> None:
    """Refuses another target that cannot read a test question or a pair, before it is trained.

    Raises:
        ModelError: Names the first.
    """
    spec = run.recipe.fine_tune.target
    if spec is None:
        return
    problems = unfit(spec, Tools(run).test)
    for variant in run.recipe.fine_tuned:
        problems += unfit(spec, items_of(run, variant), f"pair of {variant_label(variant)}")
    if problems:
        more = f" There are {len(problems) - 1} more." if len(problems) > 1 else ""
        raise ModelError(f"{problems[0]}.{more}")


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
