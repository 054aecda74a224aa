"""Stage 2, warm-up: first-draft pairs under the static guiding text train the target's LoRA until the form is learned.

The Adam moments of those steps are what makes the influence optimizer-aware; the validation directions are computed
at each checkpoint and kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NoReturn, TypedDict

from optimsyn.base.counting import plural
from optimsyn.base.errors import ServiceError, StageError
from optimsyn.base.files import write_json, write_jsonl
from optimsyn.reward.drafting import UNREADABLE, failures
from optimsyn.runs.results.built_in import REWARD_NOT_LOOKED_AT, Scoring, WarmUpResult
from optimsyn.runs.results.measured import loads_of
from optimsyn.stages.judged_by import NOTE, facts_of
from optimsyn.stages.reward_look import look_after_warm_up
from optimsyn.stages.shared import Tools
from optimsyn.target.warm_up.parts import FEWEST_DRAFTS, parts_of

if TYPE_CHECKING:
    from pathlib import Path

    from optimsyn.data.records import Pair
    from optimsyn.influence.factory import MeasuredScorer
    from optimsyn.recipe.sections.warm_up import WarmUp
    from optimsyn.reward.drafting import Draft, RubricRequest
    from optimsyn.runs.folder import Run
    from optimsyn.runs.stage_handle import StageHandle
    from optimsyn.target.warm_up.checkpoints import Checkpoint
    from optimsyn.target.warm_up.curve import WarmUpCurve


def run(run: Run) -> WarmUpResult:
    """Writes the first draft, warms the target up on a share of it, computes the validation directions.

    Raises:
        StageError: Too few first-draft pairs are valid, or the reward is noise.
        ServiceError: A language-model service failed for good.
    """
    with run.stage("warm_up") as stage:
        if stage.finished:
            return WarmUpResult.load(run)
        return _warm_up(run, Tools(run, stage), stage)


def _warm_up(run: Run, tools: Tools, stage: StageHandle) -> WarmUpResult:
    from optimsyn.llm.language_model import run_sync
    from optimsyn.reward.reward import TARGET

    config = run.recipe.warm_up
    progress = stage.count(2 * config.pairs, "rubrics and pairs", last=False)
    progress.add(0)
    drafts = run_sync(_enough_drafts(tools, config, progress.add))
    pairs = [draft.pair for draft in drafts if draft.pair is not None and draft.valid]
    refused = run.path("warm_up", "invalid.jsonl")
    write_jsonl(refused, [draft.facts() for draft in drafts if not draft.valid])
    lost = dict(Counter(draft.failed[0] for draft in drafts if draft.failed).most_common())
    if _unreadable(drafts):
        _refuse_garbage(tools, drafts)
    if len(pairs) < min(FEWEST_DRAFTS, config.pairs):
        raise StageError(
            f"only {len(pairs)} of {len(drafts)} first-draft pairs are valid: {failures(drafts)}. All of them are in "
            f"{refused}. Mend the cause, use a stronger generator, or raise `warm_up.pairs`."
        )
    write_jsonl(run.path("warm_up", "pairs.jsonl"), pairs)
    trained, checkpoints = warm_up_target(tools, stage, pairs, run.path("warm_up", "checkpoints"))
    scorer = tools.scorer
    stage.note(**{NOTE: facts_of(scorer)}, scoring=_scoring(scorer).model_dump())
    baseline = scorer.zero_gradient_baseline()
    with tools.meter.at_work(TARGET):
        scores = scorer.score(pairs)
    total = [float(value) for value in scores.total]
    write_json(run.path("warm_up", "influence.json"), total)
    look = look_after_warm_up(tools, stage, pairs, scores, {pair.id for pair in trained})
    return WarmUpResult(
        first_draft=len(drafts),
        redrafts=sum(draft.redrafts for draft in drafts),
        valid=len(pairs),
        trained_on=len(trained),
        steps=tuple(checkpoint.step for checkpoint in checkpoints),
        **_training(tools.target.curve),
        subtasks=tuple(scorer.subtasks),
        scoring=_scoring(scorer),
        zero_gradient_baseline=baseline["total"],
        influence_mean=sum(total) / len(total),
        influence_range=(min(total), max(total)),
        lost=lost,
        reward=REWARD_NOT_LOOKED_AT if look is None else look.verdict,
        reward_look=look,
        busy=loads_of(tools.meter),
    ).save(run)


def warm_up_target(
    tools: Tools, stage: StageHandle, pairs: Sequence[Pair], folder: Path
) -> tuple[Sequence[Pair], list[Checkpoint]]:
    """Trains the target's adapter on a share of valid first drafts.

    Args:
        tools: The run's target and questions.
        stage: Handle that reports the steps.
        pairs: The first drafts.
        folder: Receives the checkpoints; a finished warm-up on the same pairs is taken from it.

    Returns:
        The pairs that were trained on, and the checkpoints.
    """
    from optimsyn.reward.reward import TARGET

    recipe, config = tools.recipe, tools.recipe.warm_up
    trained, unseen, search = parts_of(recipe, pairs)
    with tools.meter.at_work(TARGET):
        checkpoints = tools.target.warm_up(
            trained,
            questions=tools.validation,
            unseen=unseen,
            search=search,
            steps=config.steps,
            batch_size=config.batch_size,
            lr=config.lr,
            checkpoints=config.checkpoints,
            max_grad_norm=config.max_grad_norm,
            seed=recipe.seed_of("data"),
            folder=folder,
            report=lambda step, steps: stage.progress(step, steps, "training steps", last=False),
        )
    return trained, checkpoints


def _scoring(scorer: MeasuredScorer) -> Scoring:
    """The method that computes influence, why it was chosen, and the error of each one that was tried."""
    choice = scorer.choice
    if choice is None:
        return Scoring(method=scorer.method)
    return Scoring(method=scorer.method, errors=choice.errors, reason=choice.reason)


class _Training(TypedDict):
    """The part of the result about the training."""

    lr: float | None
    lr_reason: str | None
    stopped: str | None
    stopped_reason: str | None
    held_out: int | None
    end_loss: tuple[float, float] | None
    unseen_loss: tuple[float, float] | None
    question_loss: tuple[float, float] | None


def _training(curve: WarmUpCurve | None) -> _Training:
    start = curve.looks[0] if curve is not None and curve.last is not None else None
    last = curve.last if curve is not None else None

    def between(loss: Literal["end_loss", "unseen_loss", "question_loss"]) -> tuple[float, float] | None:
        before, after = getattr(start, loss, None), getattr(last, loss, None)
        return None if before is None or after is None else (before, after)

    return {
        "lr": None if curve is None else curve.lr,
        "lr_reason": None if curve is None else curve.why_lr,
        "stopped": None if curve is None else curve.stopped,
        "stopped_reason": None if curve is None else curve.why,
        "held_out": None if curve is None else curve.held_out,
        "end_loss": between("end_loss"),
        "unseen_loss": between("unseen_loss"),
        "question_loss": between("question_loss"),
    }


def _refuse_garbage(tools: Tools, drafts: Sequence[Draft]) -> NoReturn:
    """Stops because no reply could be read; the next start requests them again."""
    unread = [draft for draft in drafts if draft.failed[0].startswith("rubric_")]
    role, model = ("rubric", tools.rubric_model) if unread else ("generator", tools.generator)
    wasted = sum(draft.wasted for draft in drafts)
    model.set_aside_latest(max(wasted, 2 * len(drafts)))  # truncated replies were requested twice
    raise ServiceError(
        f"models.{role} {model.name!r}: none of {plural(len(drafts), 'reply', 'replies')} could be read, for example: "
        f"{drafts[0].remarks[0][:300]}. Is it the model that you meant, does its server honour a JSON schema "
        f"(models.{role}.structured_output), and is models.{role}.max_tokens large enough?"
    )


async def _enough_drafts(tools: Tools, config: WarmUp, report: Callable[[], None]) -> list[Draft]:
    """The first draft, with further candidates while too few are valid to train on."""
    drafts = await write_first_draft(tools, config.pairs, report)
    while len(drafts) + FEWEST_DRAFTS <= config.most_drafts:
        valid = sum(draft.valid for draft in drafts)
        if valid >= min(FEWEST_DRAFTS, config.pairs) or _unreadable(drafts):
            break
        drafts += await write_first_draft(tools, FEWEST_DRAFTS, report, start=len(drafts))
    return drafts


def _unreadable(drafts: Sequence[Draft]) -> bool:
    """Whether no reply could be read."""
    return all(draft.failed and draft.failed[0] in UNREADABLE for draft in drafts)


async def write_first_draft(
    tools: Tools, count: int, report: Callable[[], None] = lambda: None, *, start: int = 0
) -> list[Draft]:
    """Writes and checks `count` candidates under the recipe's own guiding text.

    Args:
        tools: The run's models and passages.
        count: Number of candidates.
        report: Called after each rubric and after each pair.
        start: Index of the first one; every stage uses the same indices.

    Raises:
        ServiceError: A language-model service failed for good.
    """
    from contextlib import aclosing

    from optimsyn.reward.pipeline import in_order
    from optimsyn.stages.candidates import blank_request, rubric_source

    ask = rubric_source(tools, "first_draft", report)
    requests = [blank_request(tools, "first_draft", index) for index in range(start, start + count)]
    if tools.asks_at_once:
        # All rubrics in one batch, then all pairs in another.
        requests = list(await asyncio.gather(*map(ask, requests)))

    async def draft(request: RubricRequest) -> Draft:
        result = await tools.drafter.draft(request if tools.asks_at_once else await ask(request))
        report()
        return result

    async with aclosing(in_order(requests, draft, count if tools.asks_at_once else tools.ahead)) as drafts:
        return [each async for each in drafts]
