"""From passages to judged candidates: rubrics by the source that a variant asks for, then pairs under them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from optimsyn.base.errors import StageError

if TYPE_CHECKING:
    from optimsyn.data.records import Rubric
    from optimsyn.llm.replies import Reply
    from optimsyn.reward.drafting import RubricRequest, WriteRubric
    from optimsyn.reward.reward import InfluenceReward, Judgement
    from optimsyn.stages.shared import Tools


def guiding_text_of(tools: Tools, variant: str) -> str:
    """The guiding text that a variant's rubrics are written under."""
    if variant == "no_rubric":
        return ""
    return tools.recipe.guiding_text if variant in ("static", "first_draft") else tools.best_guiding_text


async def request_rubrics(
    tools: Tools, variant: str, indices: Sequence[int], report: Callable[[], None] = lambda: None
) -> list[RubricRequest]:
    """Rubric requests for the candidates with these indices, in order.

    A rubric that cannot be parsed becomes a request with its error, which the reward judges as invalid; one whose
    reply was cut, refused or empty becomes a request that is not judged.

    Args:
        tools: The run's models and passages.
        variant: Where rubrics come from.
        indices: Indices of the candidates.
        report: Called after each rubric.

    Raises:
        ServiceError: The rubric model's service failed for good.
    """
    from optimsyn.reward.drafting import RubricRequest, requested, with_writer

    text = guiding_text_of(tools, variant)
    rubric_model = "" if variant == "no_rubric" else tools.recipe.models.rubric.name
    write: WriteRubric | None = None
    if variant == "policy":
        write = partial(_policy_rubric, tools)
    elif variant != "no_rubric":
        write = with_writer(tools.rubric_writer(text))

    async def request_one(index: int) -> RubricRequest:
        passage, seed = tools.candidate(index)
        blank = RubricRequest(
            passage=passage,
            kind=tools.shape.kind_for(seed),
            guiding_text=text,
            rubric_model=rubric_model,
            seed=seed,
            variant=variant,
        )
        request = await requested(blank, write)
        report()
        return request

    return list(await asyncio.gather(*(request_one(index) for index in indices)))


async def _policy_rubric(tools: Tools, request: RubricRequest) -> Rubric:
    """One rubric sampled from the trained policy, with the prompt that it was trained on."""
    from optimsyn.llm.language_model import Call
    from optimsyn.llm.reading.asking import hear
    from optimsyn.programs.rubric import complete_rubric, rubric_messages

    def read(reply: Reply, max_tokens: int | None) -> Rubric:
        return complete_rubric(reply, max_tokens=max_tokens)

    config = tools.recipe.optimizers.policy
    form = tools.shape.form(request.kind).described()
    messages, stop = rubric_messages(request.guiding_text, request.passage, form, manner=tools.policy.manner)
    call = Call(
        messages=messages,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=request.seed,
        stop=stop,
    )
    return (await hear(tools.policy, call, read, "policy"))[0]


async def write_ahead(tools: Tools, requests: Sequence[RubricRequest]) -> None:
    """Writes the pairs of all requests before any is judged, for a generator that works in batches.

    Judging works in windows, each of which would be a small batch; it then finds all replies in the cache.

    Raises:
        ServiceError: The generator's service failed for good.
    """
    # Judging reads the replies again and counts the unreadable ones.
    await asyncio.gather(*(tools.drafter.write(request) for request in requests))


async def write_first_rounds(tools: Tools, variants: Sequence[str], wanted: int, oversample: float) -> None:
    """Writes the first candidates of several variants at once, as `write_ahead` does.

    Raises:
        ServiceError: A service failed for good.
    """
    indices = range(first_round(wanted, oversample))
    requests = await asyncio.gather(*(request_rubrics(tools, variant, indices) for variant in variants))
    await write_ahead(tools, [request for of_variant in requests for request in of_variant])


def first_round(wanted: int, oversample: float) -> int:
    """Candidates in a variant's first round."""
    return max(wanted, round(wanted * oversample))


async def write_candidates(
    tools: Tools,
    reward: InfluenceReward,
    variant: str,
    *,
    wanted: int,
    oversample: float,
    report: Callable[[], None] = lambda: None,
) -> list[Judgement]:
    """Writes and judges candidates of a variant until `wanted` are valid.

    The first round writes `wanted * oversample` candidates; while too few are valid, up to three further rounds
    write as many as the measured valid share asks for.

    Args:
        tools: The run's models and passages.
        reward: Judges the candidates.
        variant: Where rubrics come from.
        wanted: Number of valid candidates needed.
        oversample: Candidates of the first round for each of them.
        report: Called after each rubric.

    Returns:
        Every judged candidate in order of index, valid or not.

    Raises:
        StageError: No candidate was valid; names the check that failed most.
        ServiceError: A service failed for good; everything judged so far is in the ledger.
    """
    to_write = first_round(wanted, oversample)
    most = 4 * to_write
    judged: list[Judgement] = []
    while to_write > 0:
        indices = range(len(judged), len(judged) + to_write)
        requests = await request_rubrics(tools, variant, indices, report)
        if tools.asks_at_once:
            await write_ahead(tools, requests)
        judged.extend(await reward.judge(requests))
        valid = sum(judgement.valid for judgement in judged)
        if valid >= wanted or len(judged) >= most:
            break
        share = max(valid / len(judged), 0.2)
        to_write = min(most - len(judged), round((wanted - valid) / share) + 1)
    if not any(judgement.valid for judgement in judged):
        counts: dict[str, int] = {}
        for judgement in judged:
            for name in judgement.failed:
                counts[name] = counts.get(name, 0) + 1
        worst = ", ".join(f"{name} {n}x" for name, n in sorted(counts.items(), key=lambda item: -item[1])[:3])
        raise StageError(
            f"variant {variant}: none of {len(judged)} candidates passed the validity checks ({worst}). Look at "
            f"rewards.jsonl in {tools.run.folder}, then change the generator, the guiding text or `checks.disabled`."
        )
    return judged
