"""Stage 4, policy training: a method trains the rubric model with the same reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.base.extensions import POLICY_OPTIMIZERS
from optimsyn.base.labels import method_label
from optimsyn.runs.stage_result import StageResult
from optimsyn.stages.judged_by import passed_over
from optimsyn.stages.shared import Tools

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run
    from optimsyn.runs.stage_handle import StageHandle


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
    from optimsyn.optimize.methods import method_facts
    from optimsyn.optimize.policy import train_policy
    from optimsyn.optimize.policy_task import PolicyTask

    recipe = run.recipe
    config = recipe.optimizers.policy
    reward = tools.reward("train_policy", given=recipe.reward.given)
    stage.note(optimizer=method_facts(POLICY_OPTIMIZERS, config.method))
    trained = train_policy(
        PolicyTask(
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
    )
    # A step of which no pair could be judged has no reward.
    shown = ("step", "reward", "reward_std", "valid", "kl", "completion_length")
    rows = [tuple(row.get(name) for name in shown) for row in trained.history]
    rewards = [row["reward"] for row in trained.history if row.get("reward") is not None]
    numbers = {
        "enabled": True,
        "method": config.method,
        "steps": len(rows),
        "group_size": config.group_size,
        "reward_first": rewards[0] if rewards else None,
        "reward_last": rewards[-1] if rewards else None,
    }
    columns = ("step", "reward", "std within step", "valid share", "KL", "rubric tokens")
    notes = passed_over(reward)
    return StageResult(
        "train_policy", f"{method_label(config.method)} on the rubric model", columns, rows, numbers, notes
    ).save(run)
