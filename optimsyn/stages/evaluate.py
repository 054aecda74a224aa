"""Stage 7, evaluation: the target before and after fine-tuning on each variant, on held-back test questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.files import iter_json, write_json, write_jsonl
from optimsyn.runs.results.built_in import EvaluateResult, FineTuneResult, MetricValue
from optimsyn.stages.shared import Tools
from optimsyn.training.intervals import UNTUNED

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run
    from optimsyn.runs.stage_handle import StageHandle
    from optimsyn.training.evaluation import QuestionRow


def run(run: Run) -> EvaluateResult:
    """Evaluates every variant, then writes `evaluation.json`, `summary.json` and `summary.png`.

    Raises:
        DataError: An earlier stage has not finished.
    """
    from optimsyn.report.write_summary import write_summary
    from optimsyn.training.intervals import summarize

    recipe = run.recipe
    with run.stage("evaluate") as stage:
        if not stage.finished:
            rows = _evaluate_all(run, stage)
            table = summarize(
                rows, confidence=recipe.evaluation.confidence, resamples=recipe.evaluation.bootstrap, seed=recipe.seed
            )
            write_json(run.path("evaluation.json"), table)
            _against_no_rubric(run, rows)
            write_summary(run)
            _result(run).save(run)
    # Again, now with the stage's time and the final cost.
    write_summary(run)
    return EvaluateResult.load(run)


def _evaluate_all(run: Run, stage: StageHandle) -> dict[str, list[QuestionRow]]:
    from optimsyn.training.evaluation import evaluate

    tools = Tools(run)
    variants: list[tuple[str, Path | None]] = [(UNTUNED, None)]
    variants += [(variant, run.path("fine_tune", variant, "adapter")) for variant in run.recipe.fine_tuned]
    rows_by_variant: dict[str, list[QuestionRow]] = {}
    target = None
    answered = 0
    tuned = FineTuneResult.load(run).variants or {}
    for variant, adapter in variants:
        path = run.path("evaluate", f"{variant}.jsonl")
        twin = tuned[variant].same_as if variant in tuned else None
        if not path.is_file() and twin is not None:
            write_jsonl(path, [dict(row) for row in rows_by_variant[twin]])
        elif not path.is_file():
            total = len(variants) * len(tools.test)
            stage.progress(answered, total, "answers")
            if target is None:
                from optimsyn.target.target import Target

                target = Target.load(run.recipe.trained_target, seed=run.recipe.seed)

            def report(done: int, _: int, before: int = answered, total: int = total) -> None:
                stage.progress(before + done, total, "answers")

            rows = evaluate(
                target,
                tools.test,
                run.recipe.evaluation,
                adapter=adapter,
                tokens=run.recipe.influence.tokens,
                report=report,
            )
            write_jsonl(path, [dict(row) for row in rows])
        answered += len(tools.test)
        rows_by_variant[variant] = list(iter_json(path))  # type: ignore[arg-type]
    return rows_by_variant


def _against_no_rubric(run: Run, rows: dict[str, list[QuestionRow]]) -> None:
    """Effect of rubrics: paired differences to the target trained on as many pairs without one."""
    from optimsyn.training.intervals import summarize

    recipe = run.recipe
    if "no_rubric" not in recipe.variants:
        return
    table = summarize(
        {variant: rows[variant] for variant in recipe.fine_tuned},
        confidence=recipe.evaluation.confidence,
        resamples=recipe.evaluation.bootstrap,
        seed=recipe.seed,
        baseline="no_rubric",
    )
    write_json(run.path("evaluate", "against_no_rubric.json"), table)


def _result(run: Run) -> EvaluateResult:
    table = json.loads(run.path("evaluation.json").read_text(encoding="utf-8"))
    percent = f"{run.recipe.evaluation.confidence:.0%}"
    note = (
        f"Intervals: {percent} percentile bootstrap over the test questions; differences are paired with the target as "
        "it came. One seed of training: they say nothing about the spread over seeds. Lower answer_loss is better."
    )
    notes = (note, *FineTuneResult.load(run).notes)
    return EvaluateResult(metrics=tuple(MetricValue.model_validate(row) for row in table), notes=notes)
