"""Stage 2, warm-up: first-draft pairs under the static guiding text train the target's LoRA for a few steps.

The Adam moments of those steps are what makes the influence optimizer-aware; the validation directions are computed
at each checkpoint and kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from optimsyn.data.jsonl import write_json, write_jsonl
from optimsyn.errors import ServiceError, StageError
from optimsyn.redaction import redact
from optimsyn.stages.judged_by import NOTE, facts_of
from optimsyn.stages.result import StageResult
from optimsyn.stages.tools import Tools

if TYPE_CHECKING:
    from optimsyn.data.records import Pair, Passage, Rubric
    from optimsyn.reward import RubricRequest
    from optimsyn.runs.folder import Run
    from optimsyn.runs.handle import StageHandle

# Fewer valid first drafts than this cannot fill two different batches, and moments of one batch mean nothing.
FEWEST_DRAFTS = 4
# Rounds of so many candidates more that are written when a draft has fewer valid ones.
_FURTHER_ROUNDS = 3
# Failures of candidates whose reply could not be read at all.
_UNREADABLE = ("rubric_format", "pair_format")


def run(run: Run) -> StageResult:
    """Writes the first draft, warms the target up on a share of it, computes the validation directions.

    Raises:
        StageError: Too few first-draft pairs are valid.
        ServiceError: A language-model service failed for good.
    """
    with run.stage("warm_up") as stage:
        if stage.finished:
            return StageResult.load(run, "warm_up")
        return _warm_up(run, Tools(run, stage), stage)


def _warm_up(run: Run, tools: Tools, stage: StageHandle) -> StageResult:
    from optimsyn.models.language_model import run_sync

    config = run.recipe.warm_up
    # A rubric and a pair for each.
    written = stage.count(2 * config.pairs, "rubrics and pairs", last=False)
    written.add(0)
    drafts = run_sync(_enough_drafts(tools, config.pairs, written.add))
    pairs = [draft.pair for draft in drafts if draft.pair is not None and not draft.failed]
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
    share = max(min(FEWEST_DRAFTS, len(pairs)), round(len(pairs) * config.fraction))
    checkpoints = tools.target.warm_up(
        pairs[:share],
        steps=config.steps,
        batch_size=config.batch_size,
        lr=config.lr,
        checkpoints=config.checkpoints,
        max_grad_norm=config.max_grad_norm,
        seed=run.recipe.seed,
        folder=run.path("warm_up", "checkpoints"),
        report=lambda step, steps: stage.progress(step, steps, "training steps", last=False),
    )
    scorer = tools.scorer
    stage.note(**{NOTE: facts_of(scorer)})
    baseline = scorer.zero_gradient_baseline()
    scores = scorer.score(pairs)
    total = [float(value) for value in scores.total]
    mean = sum(total) / len(total)
    write_json(run.path("warm_up", "influence.json"), total)
    numbers = {
        "first_draft": len(drafts),
        "valid": len(pairs),
        "trained_on": share,
        "steps": [checkpoint.step for checkpoint in checkpoints],
        "subtasks": list(scorer.subtasks),
        "zero_gradient_baseline": baseline["total"],
        "influence_mean": mean,
        "lost": lost,
    }
    rows = [
        ("first-draft pairs", len(drafts), ", ".join(f"{name} {n}x" for name, n in lost.items()) or "none lost"),
        ("valid", len(pairs), f"the target was trained on {share} of them for {config.steps} steps"),
        ("validation directions", len(scorer.subtasks), ", ".join(scorer.subtasks)),
        ("mean influence of the first draft", mean, f"from {min(total):.4g} to {max(total):.4g}"),
        ("influence of a zero gradient", baseline["total"], "what momentum alone would earn"),
    ]
    return StageResult("warm_up", "The target is warm", ("what", "value", "note"), rows, numbers).save(run)


def _refuse_garbage(tools: Tools, drafts: Sequence[Draft]) -> NoReturn:
    """Stops because not one reply could be read; the replies are asked for anew once the service is mended."""
    unread = [draft for draft in drafts if draft.failed[0] == "rubric_format"]
    role, model = ("rubric", tools.rubric_model) if unread else ("generator", tools.generator)
    model.set_aside_latest(len(drafts))
    raise ServiceError(
        f"models.{role} {model.name!r}: none of {len(drafts)} replies could be read, for example: "
        f"{redact(drafts[0].reasons[0])[:300]}. Is it the model that you meant, does its server honour a JSON schema "
        f"(models.{role}.structured_output), and is models.{role}.max_tokens large enough?"
    )


@dataclass(frozen=True)
class Draft:
    """One first-draft candidate: its pair where one could be parsed, and the checks that it failed."""

    passage: Passage
    rubric: Rubric | None
    pair: Pair | None
    failed: tuple[str, ...]
    reasons: tuple[str, ...]


async def _enough_drafts(tools: Tools, count: int, told: Callable[[], None]) -> list[Draft]:
    """The first draft, and a few candidates more while too few of a small draft are valid to train on."""
    drafts = await write_first_draft(tools, count, told)
    for _ in range(_FURTHER_ROUNDS):
        valid = sum(draft.pair is not None and not draft.failed for draft in drafts)
        if valid >= min(FEWEST_DRAFTS, count) or _unreadable(drafts):
            break
        drafts += await write_first_draft(tools, FEWEST_DRAFTS, told, start=len(drafts))
    return drafts


def _unreadable(drafts: Sequence[Draft]) -> bool:
    """Whether not one reply could be read."""
    return all(draft.failed and draft.failed[0] in _UNREADABLE for draft in drafts)


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
    from optimsyn.errors import ReplyError
    from optimsyn.stages.candidates import request_rubrics

    requests = await request_rubrics(tools, "first_draft", range(start, start + count), told)

    async def write(request: RubricRequest) -> Draft:
        draft = await draft_of(request)
        told()
        return draft

    async def draft_of(request: RubricRequest) -> Draft:
        if request.error is not None:
            return Draft(request.passage, None, None, ("rubric_format",), (request.error,))
        try:
            pair = await request.written_by(tools.pair_writer)
        except ReplyError as error:
            return Draft(request.passage, request.rubric, None, ("pair_format",), (str(error),))
        validity = tools.checker.check(pair, request.passage)
        reasons = tuple(f"{name}: {why}" for name, why in validity.reasons.items())
        return Draft(request.passage, request.rubric, pair, validity.failed, reasons)

    return list(await asyncio.gather(*(write(request) for request in requests)))
