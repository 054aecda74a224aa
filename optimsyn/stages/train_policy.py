"""Stage 4, policy training: a method trains the rubric model with the same reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimsyn.base.extensions import POLICY_OPTIMIZERS
from optimsyn.recipe.sections.arms import trained_as
from optimsyn.runs.results.built_in import PolicyStep, TrainPolicyResult
from optimsyn.runs.results.measured import loads_of
from optimsyn.stages.candidates import guiding_text_of
from optimsyn.stages.judged_by import passed_over
from optimsyn.stages.shared import Tools

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run
    from optimsyn.runs.stage_handle import StageHandle


_CONCLUDED = (
    "kl_per_token kept_round stopped held_passages held_difference held_low held_high"  # of `PolicyResult.outcome`
).split()


def run(run: Run) -> TrainPolicyResult:
    """Trains the rubric policy; resumes from its last step after a kill.

    Raises:
        ServiceError: A language-model service failed for good; the finished steps and all replies are kept.
    """
    with run.stage("train_policy") as stage:
        if stage.finished:
            return TrainPolicyResult.load(run)
        if not run.recipe.optimizers.policy.enabled:
            return TrainPolicyResult(enabled=False).save(run)
        return _train(run, Tools(run, stage), stage)


def _train(run: Run, tools: Tools, stage: StageHandle) -> TrainPolicyResult:
    from optimsyn.llm.embedded.writer import adapter_dir
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
            tools.passages_for("optimize"),
            guiding_text_of(tools, trained_as(recipe.synthesis)),
            tools.shape,
            run.path("train_policy"),
            recipe.seed_of("policy"),
            start=adapter_dir() if recipe.models.rubric.provider == "embedded" else None,
            report=stage.progress,
        )
    )
    history = tuple(PolicyStep.model_validate(row) for row in trained.history)
    rewards = [step.reward for step in history if step.reward is not None]
    return TrainPolicyResult(
        enabled=True,
        method=config.method,
        steps=len(history),
        group_size=config.group_size,
        reward_first=rewards[0] if rewards else None,
        reward_last=rewards[-1] if rewards else None,
        history=history,
        busy=loads_of(tools.meter),
        notes=(*passed_over(reward), *_conclusions(config.method, trained.outcome)),
        **{name: trained.outcome.get(name) for name in _CONCLUDED},
    ).save(run)


def _conclusions(method: str, outcome: Mapping[str, Any]) -> list[str]:
    """A sentence on a training that ended by itself or left the policy as it was."""
    if outcome.get("stopped") is None:
        return []
    return [f"{method} stopped by itself: {outcome['stopped']}."]
