"""Stage 4, policy training: GRPO trains the rubric model with the same reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.stages.judged_by import passed_over
from optimsyn.stages.result import StageResult
from optimsyn.stages.tools import Tools

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run
    from optimsyn.runs.handle import StageHandle


def run(run: Run) -> StageResult:
    """Trains the rubric policy; resumes from its last step after a kill.

    Raises:
        ServiceError: A language-model service failed for good; the finished steps and all replies are kept.
    """
    with run.stage("train_policy") as stage:
        if stage.finished:
            return StageResult.load(run, "train_policy")
        if not run.recipe.optimizers.policy.enabled:
            return StageResult(
                "train_policy",
                "Disabled in the recipe",
                ("what", "value"),
                [("optimizers.policy.enabled", "false")],
                {"enabled": False},
            ).save(run)
        return _train(run, Tools(run, stage), stage)


def _train(run: Run, tools: Tools, stage: StageHandle) -> StageResult:
    from optimsyn.optimize.policy import train_policy

    recipe = run.recipe
    config = recipe.optimizers.policy
    reward = tools.reward("train_policy", given=recipe.reward.given)
    trained = train_policy(
        recipe.models.rubric,
        config,
        reward,
        tools.passage_order,
        tools.best_guiding_text,
        tools.shape,
        run.path("train_policy"),
        recipe.seed,
        report=stage.progress,
    )
    rows = [
        (row["step"], row["reward"], row["reward_std"], row["valid"], row.get("kl"), row.get("completion_length"))
        for row in trained.history
    ]
    numbers = {
        "enabled": True,
        "steps": len(rows),
        "group_size": config.group_size,
        "reward_first": rows[0][1] if rows else None,
        "reward_last": rows[-1][1] if rows else None,
    }
    columns = ("step", "reward", "std within step", "valid share", "KL", "rubric tokens")
    notes = passed_over(reward)
    return StageResult("train_policy", "GRPO on the rubric model", columns, rows, numbers, notes).save(run)
