"""Stage 3, prompt optimisation: GEPA rewrites the guiding text, driven by the influence reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.base.files import write_text
from optimsyn.runs.stage_result import StageResult
from optimsyn.stages.judged_by import passed_over
from optimsyn.stages.shared import Tools

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run
    from optimsyn.runs.stage_handle import StageHandle


def run(run: Run) -> StageResult:
    """Searches for a better guiding text; the recipe's own stays when nothing beats it.

    Raises:
        ServiceError: A language-model service failed for good; everything judged is kept and running again continues.
    """
    with run.stage("optimize_prompt") as stage:
        if stage.finished:
            return StageResult.load(run, "optimize_prompt")
        if not run.recipe.optimizers.prompt.enabled:
            return StageResult(
                "optimize_prompt",
                "Disabled in the recipe",
                ("what", "value"),
                [("optimizers.prompt.enabled", "false")],
                {"enabled": False},
            ).save(run)
        return _optimize(run, Tools(run, stage), stage)


def _optimize(run: Run, tools: Tools, stage: StageHandle) -> StageResult:
    from optimsyn.llm.factory import load_language_model
    from optimsyn.optimize.prompt import optimize_guiding_text

    recipe = run.recipe
    config = recipe.optimizers.prompt
    reflection = None
    if recipe.models.reflection is not None:
        reflection = load_language_model(
            recipe.models.reflection, run.replies, budget=tools.budget, field="models.reflection"
        )
    # The search ends before it could pass its budget, often a little earlier.
    reward = tools.reward(
        "optimize_prompt", lambda now, judged: stage.progress(judged, config.metric_calls, "judged pairs")
    )
    stage.progress(0, config.metric_calls, "judged pairs")
    found = optimize_guiding_text(
        run.path("optimize_prompt"),
        config,
        tools.rubric_writer(recipe.guiding_text),
        reward,
        tools.passage_order[: config.passages],
        tools.shape,
        seed=recipe.seed,
        reflection=reflection,
    )
    write_text(run.path("optimize_prompt", "guiding_text.txt"), found.guiding_text + "\n")
    rows = [
        ("reward of the recipe's guiding text", found.start_score, recipe.guiding_text),
        ("reward of the chosen guiding text", found.score, found.guiding_text),
        ("candidates tried", found.candidates, f"{found.judged} pairs judged"),
    ]
    numbers = {
        "enabled": True,
        "start_score": found.start_score,
        "score": found.score,
        "candidates": found.candidates,
        "judged": found.judged,
        "changed": found.guiding_text != recipe.guiding_text,
    }
    columns = ("what", "value", "text")
    return StageResult(
        "optimize_prompt", "Guiding text, before and after", columns, rows, numbers, passed_over(reward)
    ).save(run)
