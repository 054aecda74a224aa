"""Stage 2, warm-up: first-draft pairs under the static guiding text train the target's LoRA until the form is learned.

The Adam moments of those steps are what makes the influence optimizer-aware; the validation directions are computed
at each checkpoint and kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from optimsyn.base.errors import ServiceError, StageError
from optimsyn.base.files import write_json, write_jsonl
from optimsyn.reward.drafting import UNREADABLE
from optimsyn.runs.stage_result import StageResult
from optimsyn.stages.judged_by import NOTE, facts_of
from optimsyn.stages.reward_look import look_after_warm_up, look_numbers, look_row
from optimsyn.stages.shared import Tools
from optimsyn.target.warm_up.parts import FEWEST_DRAFTS, parts_of

if TYPE_CHECKING:
    from optimsyn.influence.factory import MeasuredScorer
    from optimsyn.reward.drafting import Draft, RubricRequest
    from optimsyn.runs.folder import Run
    from optimsyn.runs.stage_handle import StageHandle
    from optimsyn.target.warm_up.curve import WarmUpCurve

# Rounds of so many candidates more that are written when a draft has fewer valid ones.
_FURTHER_ROUNDS = 3


def run(run: Run) -> StageResult:
    """Writes the first draft, warms the target up on a share of it, computes the validation directions.

    Raises:
        StageError: Too few first-draft pairs are valid, or the reward is noise.
        ServiceError: A language-model service failed for good.
    """
    with run.stage("warm_up") as stage:
        if stage.finished:
            return StageResult.load(run, "warm_up")
        return _warm_up(run, Tools(run, stage), stage)


def _warm_up(run: Run, tools: Tools, stage: StageHandle) -> StageResult:
    from optimsyn.llm.language_model import run_sync

    config = run.recipe.warm_up
    # A rubric and a pair for each.
    written = stage.count(2 * config.pairs, "rubrics and pairs", last=False)
    written.add(0)
    drafts = run_sync(_enough_drafts(tools, config.pairs, written.add))
    pairs = [draft.pair for draft in drafts if draft.pair is not None and draft.valid]
    lost = dict(Counter(draft.failed[0] for draft in drafts if draft.failed).most_common())
    if _unreadable(drafts):
        _refuse_garbage(tools, drafts)
    if len(pairs) < min(FEWEST_DRAFTS, config.pairs):
        reasons = ", ".join(f"{name} {n}x" for name, n in lost.items())
        raise StageError(
            f"warm_up: only {len(pairs)} of {len(drafts)} first-draft pairs are valid ({reasons}). Raise "
            "`warm_up.pairs`, use a stronger generator or look at the failed check."
        )
    write_jsonl(run.path("warm_up", "pairs.jsonl"), pairs)
    trained, unseen, search = parts_of(run.recipe, pairs)
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
        seed=run.recipe.seed,
        folder=run.path("warm_up", "checkpoints"),
        report=lambda step, steps: stage.progress(step, steps, "training steps", last=False),
    )
    warm = _curve_facts(tools.target.curve)
    scorer = tools.scorer
    stage.note(**{NOTE: facts_of(scorer)}, scoring=_scoring_facts(scorer))
    baseline = scorer.zero_gradient_baseline()
    scores = scorer.score(pairs)
    total = [float(value) for value in scores.total]
    mean = sum(total) / len(total)
    write_json(run.path("warm_up", "influence.json"), total)
    look = look_after_warm_up(tools, stage, pairs, scores, {pair.id for pair in trained})
    numbers = {
        "first_draft": len(drafts),
        "valid": len(pairs),
        "trained_on": len(trained),
        "steps": [checkpoint.step for checkpoint in checkpoints],
        **warm.numbers,
        "subtasks": list(scorer.subtasks),
        "scoring": _scoring_facts(scorer),
        "zero_gradient_baseline": baseline["total"],
        "influence_mean": mean,
        "lost": lost,
        **look_numbers(look),
    }
    rows = [
        ("first-draft pairs", len(drafts), ", ".join(f"{name} {n}x" for name, n in lost.items()) or "none lost"),
        ("valid", len(pairs), f"the target was trained on {len(trained)} of them"),
        *warm.rows,
        ("validation directions", len(scorer.subtasks), ", ".join(scorer.subtasks)),
        ("influence is computed by", scorer.method, scorer.choice.reason if scorer.choice is not None else ""),
        ("mean influence of the first draft", mean, f"from {min(total):.4g} to {max(total):.4g}"),
        ("influence of a zero gradient", baseline["total"], "what momentum alone would earn"),
        look_row(look),
    ]
    return StageResult("warm_up", "The target is warm", ("what", "value", "note"), rows, numbers).save(run)


def _scoring_facts(scorer: MeasuredScorer) -> dict[str, Any]:
    """Which way of computing influence was taken, why, and how far off each is that was tried."""
    choice = scorer.choice
    return {
        "method": scorer.method,
        "errors": {} if choice is None else choice.errors,
        "reason": "" if choice is None else choice.reason,
    }


class _CurveFacts(NamedTuple):
    """What the stage tells of the curve."""

    numbers: dict[str, Any]
    rows: list[tuple[Any, ...]]


def _curve_facts(curve: WarmUpCurve | None) -> _CurveFacts:
    """Numbers and rows of the result about how the warm-up went."""
    if curve is None:
        return _CurveFacts({}, [])
    numbers: dict[str, Any] = {"lr": curve.lr, "stopped": curve.stopped, "held_out": curve.held_out}
    rows: list[tuple[Any, ...]] = [
        ("steps", curve.steps, f"{curve.stopped}: {curve.why}"),
        ("learning rate", curve.lr, curve.why_lr),
    ]
    last = curve.last
    if last is not None:
        start = curve.looks[0]
        for name, label, before, after in (
            ("end_loss", "loss of what ends an answer", start.end_loss, last.end_loss),
            ("unseen_loss", f"content loss of {curve.held_out} unseen pairs", start.unseen_loss, last.unseen_loss),
            ("question_loss", "content loss of the questions", start.question_loss, last.question_loss),
        ):
            if before is not None and after is not None:
                numbers[name] = [before, after]
                rows.append((label, after, f"nats a token, {before:.4g} before the warm-up"))
    return _CurveFacts(numbers, rows)


def _refuse_garbage(tools: Tools, drafts: Sequence[Draft]) -> NoReturn:
    """Stops because not one reply could be read; the replies are asked for again once the service is fixed."""
    unread = [draft for draft in drafts if draft.failed[0].startswith("rubric_")]
    role, model = ("rubric", tools.rubric_model) if unread else ("generator", tools.generator)
    model.set_aside_latest(2 * len(drafts))  # one that was cut was asked for again
    raise ServiceError(
        f"models.{role} {model.name!r}: none of {len(drafts)} replies could be read, for example: "
        f"{drafts[0].remarks[0][:300]}. Is it the model that you meant, does its server honour a JSON schema "
        f"(models.{role}.structured_output), and is models.{role}.max_tokens large enough?"
    )


async def _enough_drafts(tools: Tools, count: int, told: Callable[[], None]) -> list[Draft]:
    """The first draft, and a few candidates more while too few of a small draft are valid to train on."""
    drafts = await write_first_draft(tools, count, told)
    for _ in range(_FURTHER_ROUNDS):
        valid = sum(draft.valid for draft in drafts)
        if valid >= min(FEWEST_DRAFTS, count) or _unreadable(drafts):
            break
        drafts += await write_first_draft(tools, FEWEST_DRAFTS, told, start=len(drafts))
    return drafts


def _unreadable(drafts: Sequence[Draft]) -> bool:
    """Whether not one reply could be read."""
    return all(draft.failed and draft.failed[0] in UNREADABLE for draft in drafts)


async def write_first_draft(
    tools: Tools, count: int, told: Callable[[], None] = lambda: None, *, start: int = 0
) -> list[Draft]:
    """Writes and checks `count` candidates under the recipe's own guiding text.

    Args:
        tools: The run's models and passages.
        count: How many.
        told: Called after each rubric and after each pair.
        start: Number of the first one; candidates are numbered alike in every stage.

    Raises:
        ServiceError: A language-model service failed for good.
    """
    from optimsyn.stages.candidates import request_rubrics

    requests = await request_rubrics(tools, "first_draft", range(start, start + count), told)

    async def draft(request: RubricRequest) -> Draft:
        found = await tools.drafter.draft(request)
        told()
        return found

    return list(await asyncio.gather(*(draft(request) for request in requests)))
