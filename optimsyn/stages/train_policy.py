"""Stage 4, policy training: a method trains the rubric model with the same reward."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from optimsyn.base.counting import plural
from optimsyn.base.extensions import POLICY_OPTIMIZERS
from optimsyn.base.files import write_jsonl
from optimsyn.base.seeds import derive_seed
from optimsyn.runs.results.built_in import PolicyStep, TrainPolicyResult
from optimsyn.runs.results.measured import loads_of
from optimsyn.stages.candidates import author_of, forget_untrained, text_of_training
from optimsyn.stages.judged_by import passed_over
from optimsyn.stages.policy.second_turn import second_turn
from optimsyn.stages.policy.warm_up_again import WarmUpAgain
from optimsyn.stages.shared import Tools

if TYPE_CHECKING:
    from optimsyn.data.records import Passage
    from optimsyn.recipe.sections.optimizers import PolicyOptimizer
    from optimsyn.reward.author.agent import RubricAuthor
    from optimsyn.reward.judgements import Judgement
    from optimsyn.reward.reward import InfluenceReward
    from optimsyn.runs.folder import Run
    from optimsyn.runs.stage_handle import StageHandle

LESSONS = "author.jsonl"
"""What the author did for the passages that the policy learns from."""
_CONCLUDED = (
    "kl_per_token kept_round stopped held_passages held_difference held_low held_high"  # of `PolicyResult.outcome`
).split()


def run(run: Run) -> TrainPolicyResult:
    """Trains the rubric policy, then searches the guiding text again where the recipe has two turns.

    Resumes from its last step after a kill; the search is replayed.

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
    guiding_text = text_of_training(tools)
    taught = _lessons(tools, reward, guiding_text) if "author" in config.learn_from else []
    again = WarmUpAgain(tools, stage, guiding_text, reward) if recipe.further_warm_ups else None
    trained = train_policy(
        PolicyTask(
            recipe.models.rubric,
            config,
            reward,
            tools.passages_for("optimize"),
            guiding_text,
            tools.shape,
            run.path("train_policy"),
            recipe.seed_of("policy"),
            start=adapter_dir() if recipe.models.rubric.provider == "embedded" else None,
            report=partial(stage.progress, last=not recipe.optimizers.searched_again),
            taught=taught,
            renewal=again,
        )
    )
    if again is not None:
        again.end()
    history = tuple(PolicyStep.model_validate(row) for row in trained.history)
    searched, said = second_turn(tools, stage, trained.outcome.get("kept_round"))
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
        notes=(
            *passed_over(reward),
            *_taught(taught),
            *_warmed_up_again(config, again),
            *_conclusions(config.method, trained.outcome),
            *said,
        ),
        second_turn=searched,
        **{name: trained.outcome.get(name) for name in _CONCLUDED},
    ).save(run)


def _lessons(tools: Tools, reward: InfluenceReward, guiding_text: str) -> list[Judgement]:
    """All scored drafts of the author for some passages that the policy trains on, in the order of the passages.

    What it did is in `author.jsonl`. A killed run goes on with the kept replies and judgements.
    """
    from optimsyn.llm.language_model import run_sync
    from optimsyn.optimize.rounds.held import held_ids

    recipe, seed = tools.recipe, tools.recipe.seed_of("policy")
    passages = tools.passages_for("optimize")
    held = held_ids(recipe.optimizers.policy, [passage.id for passage in passages], seed)
    chosen = [passage for passage in passages if passage.id not in held][: recipe.author.lessons]
    return run_sync(_judged_drafts(tools, author_of(tools, reward), chosen, guiding_text))


async def _judged_drafts(
    tools: Tools, author: RubricAuthor, passages: Sequence[Passage], guiding_text: str
) -> list[Judgement]:
    from optimsyn.reward.drafting import RubricRequest

    seed, rubric_model = tools.recipe.seed_of("policy"), tools.recipe.models.rubric.name
    blanks = [
        RubricRequest(
            passage=passage,
            # The form in which the policy's own rubrics for this passage are compared.
            kind=tools.shape.kind_for(derive_seed(seed, "kind", passage.id)),
            guiding_text=guiding_text,
            rubric_model=rubric_model,
            seed=derive_seed(seed, "lesson", passage.id),
            variant="author",
        )
        for passage in passages
    ]
    await asyncio.gather(*(author.ask(blank) for blank in blanks))
    # The policy that is trained next needs the memory.
    await forget_untrained(tools)
    places = [(blank.guiding_text, blank.passage.id, blank.seed) for blank in blanks]
    done = [author.trajectories[place] for place in places]
    write_jsonl(tools.run.path("train_policy", LESSONS), done)
    return [row for place in places for row in author.judged[place]]


def _warmed_up_again(config: PolicyOptimizer, again: WarmUpAgain | None) -> list[str]:
    """What became of `warm_up_again`."""
    if again is not None:
        return again.notes
    return ["The target was not warmed up again: this reward does not ask it."] if config.warm_up_again else []


def _taught(rows: Sequence[Judgement]) -> list[str]:
    """How much of the pool is the author's, as a sentence."""
    if not rows:
        return []
    passages = len({row.passage_id for row in rows})
    return [
        f"{plural(len(rows), 'judged rubric')} of the author, for {plural(passages, 'passage')}, are in the pool "
        "of every round."
    ]


def _conclusions(method: str, outcome: Mapping[str, Any]) -> list[str]:
    """A sentence on a training that ended by itself or left the policy as it was."""
    if outcome.get("stopped") is None:
        return []
    return [f"{method} stopped by itself: {outcome['stopped']}."]
