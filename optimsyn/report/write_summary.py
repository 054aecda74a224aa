"""Writes `summary.json` and `summary.png` from the results of the stages."""

from __future__ import annotations

from optimsyn.base.terminal.labels import METRIC_LABELS, control_sentence, variant_label
from optimsyn.report.facts import RunFacts
from optimsyn.report.stage_plots import RunNumbers, run_figure
from optimsyn.report.summary import Summary, influence_summaries
from optimsyn.runs.folder import Run
from optimsyn.runs.outcomes import judgement
from optimsyn.runs.results import built_in
from optimsyn.training.intervals import differs


def write_summary(run: Run) -> Summary:
    """Writes the summary of a run with results of all stages up to `evaluate`.

    Raises:
        DataError: A stage's result is missing.
    """
    recipe, manifest = run.recipe, run.manifest
    warm, synthesized = built_in.WarmUpResult.load(run), built_in.SynthesizeResult.load(run)
    facts = RunFacts.read(run)
    influence = {variant: values for variant, values in facts.influence.items() if variant != "first_draft"}
    drawn = RunNumbers(
        influence=influence,
        prompt=facts.prompt_history,
        policy=facts.policy_history,
        evaluation=facts.evaluation,
        zero_gradient=warm.zero_gradient_baseline,
        confidence=recipe.evaluation.confidence,
    )
    summary = Summary(
        run=run.name,
        recipe=recipe.name,
        fingerprint=recipe.fingerprint,
        reward_source=recipe.reward.source,
        dataset_variant=synthesized.dataset or recipe.dataset_variant,
        dataset_pairs=len(run.pairs(recipe.dataset_variant)),
        evaluation=[dict(row) for row in facts.evaluation],
        confidence=recipe.evaluation.confidence,
        influence=influence_summaries(influence),
        zero_gradient=warm.zero_gradient_baseline,
        losses=synthesized.losses or {},
        optimization={
            "prompt": built_in.OptimizePromptResult.load(run).search(),
            "policy": built_in.TrainPolicyResult.load(run).training(),
        },
        stages={"prepare": built_in.PrepareResult.load(run).facts(), "warm_up": warm.facts()},
        cost=manifest.cost.model_dump(),
        outcomes=run.outcomes(),
        seconds={record.name: record.seconds for record in manifest.stages if record.seconds is not None},
        notes=_notes(facts),
    )
    summary.write(run.folder, run_figure(drawn, run.name))
    return summary


def _notes(facts: RunFacts) -> list[str]:
    """Caveats: which differences exclude 0, that there is one seed, and the verdict on the reward, if any."""
    clear = [
        f"{variant_label(row['variant'])} ({METRIC_LABELS.get(row['metric'], row['metric'])} {judgement(row)})"
        for row in facts.evaluation
        if differs(row)
    ]
    look = facts.reward_look
    return [
        f"Paired differences to the target as it came that exclude 0: {', '.join(clear)}."
        if clear
        else "No paired difference to the target as it came excludes 0.",
        f"One seed ({facts.recipe.seed_label}); intervals are over questions, not over seeds, so it cannot show which "
        "variant is better. Candidates were selected "
        f"by {facts.recipe.selection_label}.",
        *([control_sentence(facts.recipe.reward.source)] if facts.recipe.reward.is_control else []),
        *([look.sentence] if look is not None else []),
    ]
