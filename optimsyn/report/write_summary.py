"""Writes `summary.json` and `summary.png` from the results of the stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.files import iter_json
from optimsyn.base.terminal.labels import SELECTION_LABELS
from optimsyn.reward.look.record import REWARD_LOOK_FILE, RewardLook
from optimsyn.runs.results.built_in import (
    OptimizePromptResult,
    PrepareResult,
    SynthesizeResult,
    TrainPolicyResult,
    WarmUpResult,
)

if TYPE_CHECKING:
    from optimsyn.report.summary import Summary
    from optimsyn.runs.folder import Run


def write_summary(run: Run) -> Summary:
    """Writes the summary of a run with results of all stages up to `evaluate`.

    Raises:
        DataError: A stage's result is missing.
    """
    from optimsyn.report.plots import RunNumbers, run_figure
    from optimsyn.report.summary import Summary, influence_summaries

    recipe, manifest = run.recipe, run.manifest
    warm, synthesized = WarmUpResult.load(run), SynthesizeResult.load(run)
    evaluation = _json(run.path("evaluation.json"))
    influence: dict[str, list[float]] = {variant: _influence(run, variant) for variant in recipe.variants}
    confidence = recipe.evaluation.confidence
    drawn = RunNumbers(
        influence=influence,
        prompt=_history(run.path("optimize_prompt", "history.jsonl")),
        policy=_history(run.path("train_policy", "history.jsonl")),
        evaluation=evaluation,
        zero_gradient=warm.zero_gradient_baseline,
        confidence=confidence,
    )
    picture = run_figure(drawn, run.name)
    summary = Summary(
        run=run.name,
        recipe=recipe.name,
        fingerprint=recipe.fingerprint,
        dataset_variant=synthesized.dataset or recipe.dataset_variant,
        dataset_pairs=len(run.pairs(recipe.dataset_variant)),
        evaluation=evaluation,
        confidence=confidence,
        influence=influence_summaries(influence),
        zero_gradient=warm.zero_gradient_baseline,
        losses=synthesized.losses or {},
        optimization={
            "prompt": OptimizePromptResult.load(run).search(),
            "policy": TrainPolicyResult.load(run).training(),
        },
        stages={"prepare": PrepareResult.load(run).facts(), "warm_up": warm.facts()},
        cost=manifest.cost.model_dump(),
        outcomes=run.outcomes(),
        seconds={record.name: record.seconds for record in manifest.stages if record.seconds is not None},
        notes=[*_notes(run, evaluation), *_on_the_reward(run)],
    )
    summary.write(run.folder, picture)
    return summary


def _notes(run: Run, evaluation: list[dict[str, Any]]) -> list[str]:
    """Caveats: which differences exclude 0, and that there is one seed."""
    better = [
        f"{row['variant']} ({row['metric']})"
        for row in evaluation
        if row["difference_low"] is not None
        and (row["difference_low"] > 0) == (row["difference_high"] > 0)
        and 0 not in (row["difference_low"], row["difference_high"])
    ]
    differences = (
        f"Paired differences to the target as it came that exclude 0: {', '.join(better)}."
        if better
        else "No paired difference to the target as it came excludes 0."
    )
    return [
        differences,
        f"One seed ({run.recipe.seed}); intervals are over questions, not over seeds. Candidates were selected by "
        f"{SELECTION_LABELS[run.recipe.synthesis.select]}.",
    ]


def _on_the_reward(run: Run) -> list[str]:
    """The verdict on the reward, if there is one."""
    path = run.path("warm_up", REWARD_LOOK_FILE)
    return [RewardLook.load(path).sentence] if path.is_file() else []


def _influence(run: Run, variant: str) -> list[float]:
    rows = iter_json(run.path("synthesize", f"{variant}.candidates.jsonl"))
    return [row["influence"] for row in rows if row["influence"] is not None]


def _history(path: Path) -> list[dict[str, Any]]:
    # A disabled optimiser leaves no history.
    return list(iter_json(path, tolerate_torn=True)) if path.is_file() else []


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
