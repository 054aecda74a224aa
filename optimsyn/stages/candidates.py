"""From passages to judged candidates: rubrics by the source that a variant asks for, then pairs under them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, cast

from optimsyn.base.counting import plural
from optimsyn.base.errors import StageError
from optimsyn.base.files import iter_json
from optimsyn.recipe.sections.arms import TRAINED, has_weights, trained_as, under_own_text, under_second_text
from optimsyn.reward.drafting import failures

if TYPE_CHECKING:
    from optimsyn.data.records import Rubric
    from optimsyn.llm.language_model import LanguageModel
    from optimsyn.llm.replies import Reply
    from optimsyn.recipe.sections.synthesis import Synthesis, Variant
    from optimsyn.reward.author.agent import RubricAuthor
    from optimsyn.reward.drafting import Ask, RubricRequest, WriteRubric
    from optimsyn.reward.reward import InfluenceReward, Judgement
    from optimsyn.stages.shared import Tools


def guiding_text_of(tools: Tools, variant: str) -> str:
    """The guiding text that a variant's rubrics are written under."""
    if variant == "no_rubric":
        return ""
    if variant == "insider":
        return tools.recipe.synthesis.insider_text or ""
    if variant == "author" and tools.recipe.author.text == "optimized":
        return tools.best_guiding_text
    if under_second_text(variant, tools.recipe.synthesis, tools.recipe.optimizers):
        return tools.second_guiding_text
    return _first_text_of(tools, variant)


def text_of_training(tools: Tools) -> str:
    """The guiding text that the policy is trained under, which has had one turn."""
    return _first_text_of(tools, trained_as(tools.recipe.synthesis))


def _first_text_of(tools: Tools, variant: str) -> str:
    own = under_own_text(variant, tools.recipe.synthesis) or tools.recipe.optimizers.prompt.for_author
    return tools.recipe.guiding_text if own else tools.best_guiding_text


def sampler_of(tools: Tools, variant: str) -> LanguageModel | None:
    """The model that a variant's rubrics are sampled from as the policy is trained; None: a rubric writer asks."""
    if variant in TRAINED:
        return tools.policy
    alike = tools.recipe.synthesis.one_decoder and has_weights(tools.recipe.models.rubric)
    if variant == "untrained_policy" or (alike and variant not in ("no_rubric", "first_draft")):
        return tools.untrained_policy
    return None


def by_sampler(tools: Tools, variants: Sequence[Variant]) -> list[list[Variant]]:
    """The variants in groups that are written one after the other, so that two policies are never in memory together.

    One group where only the policy's own rubrics are sampled here. The author is a group of its own: which of its
    drafts is scored first depends on the replies, and no score of another variant may depend on that.
    """
    sampled = any(variant not in TRAINED and sampler_of(tools, variant) is not None for variant in variants)
    trained = [variant for variant in variants if sampled and variant in TRAINED]
    first: list[Variant] = [variant for variant in variants if variant not in trained and variant != "author"]
    alone: list[Variant] = ["author"] if "author" in variants else []
    return [group for group in (first, alone, trained) if group]


def written_at_first(tools: Tools, variant: str, config: Synthesis) -> int:
    """Candidates of a variant in its first round, which is the only one where the recipe names arms."""
    if variant != "static_pool":
        return config.first_round
    return config.pool if config.pool is not None else judged_by_an_optimiser(tools) + config.first_round


def judged_by_an_optimiser(tools: Tools) -> int:
    """Distinct rubrics that the policy training had judged, and the first drafts of further warm-ups.

    Those of a second search of the text are included. Those of the prompt search where no policy is trained.
    """
    from optimsyn.optimize.policy_task import WARM_UP

    stage = "train_policy" if tools.recipe.optimizers.policy.enabled else "optimize_prompt"
    # Where the target was warmed up again, the same rubrics were judged again.
    again = list(tools.run.path("train_policy").glob(f"{WARM_UP}*"))
    ledgers = [tools.run.path("rewards.jsonl"), *(folder / "rewards.jsonl" for folder in again)]
    asked = {
        (
            *(row.get(name) for name in ("passage_id", "kind", "seed", "guiding_text")),
            str(row["rubric"] or row["reasons"]),
        )
        for ledger in ledgers
        if ledger.is_file()
        # A killed synthesis may have left half a line.
        for row in iter_json(ledger, tolerate_torn=True)
        if row.get("source") == stage
    }
    return len(asked) + len(again) * tools.recipe.warm_up.pairs


def blank_request(tools: Tools, variant: str, index: int) -> RubricRequest:
    """The request for a candidate, without its rubric."""
    from optimsyn.reward.drafting import RubricRequest

    passage, seed = tools.candidate(index, variant)
    return RubricRequest(
        passage=passage,
        kind=tools.shape.kind_for(seed),
        guiding_text=guiding_text_of(tools, variant),
        rubric_model="" if variant == "no_rubric" else tools.recipe.models.rubric.name,
        seed=seed,
        variant=variant,
    )


def author_of(tools: Tools, reward: InfluenceReward) -> RubricAuthor:
    """The recipe's author, who follows the guiding text of each request.

    Args:
        tools: The run's models and passages.
        reward: Of the stage, which judges the drafts; the judgements enter its ledger.
    """
    from optimsyn.reward.author.agent import RubricAuthor
    from optimsyn.reward.author.desk import Workplace
    from optimsyn.reward.author.library import Library, kinds_of

    return RubricAuthor(
        tools.recipe.author,
        tools.author_model,
        _writer_of(tools, "author"),
        Workplace(reward, Library(tools.passages), kinds_of(tools.validation), tools.shape),
        role="rubric" if tools.recipe.models.author is None else "author",
    )


def sampled_from(tools: Tools, policy: LanguageModel) -> WriteRubric:
    """Samples the rubric of each request from a policy, trained or not, as it is sampled in training."""
    return partial(_sampled_rubric, tools, policy)


def _writer_of(tools: Tools, variant: str) -> WriteRubric:
    """Writes a variant's rubrics under the text of each request: sampled as the policy's, or by the rubric writer."""
    from optimsyn.reward.drafting import with_writer

    sampler = sampler_of(tools, variant)
    if sampler is not None:
        return sampled_from(tools, sampler)
    writer = cache(lambda guiding_text: with_writer(tools.rubric_writer(guiding_text)))

    async def write(request: RubricRequest) -> Rubric:
        return await writer(request.guiding_text)(request)

    return write


def rubric_source(
    tools: Tools, variant: str, report: Callable[[], None] = lambda: None, author: RubricAuthor | None = None
) -> Ask:
    """Adds the rubric to requests of a variant, or the reason why none could be read, as `requested` does.

    A rubric that cannot be parsed becomes a request with its error, which the reward judges as invalid; one whose
    reply was cut, refused or empty becomes a request that is not judged.

    Args:
        tools: The run's models and passages.
        variant: Where rubrics come from.
        report: Called after each rubric.
        author: Writes those of the variant author.
    """
    from optimsyn.reward.drafting import requested

    write: WriteRubric | None = None
    if variant not in ("no_rubric", "author"):
        write = _writer_of(tools, variant)

    async def ask(blank: RubricRequest) -> RubricRequest:
        if variant == "author":
            assert author is not None
            request = await author.ask(blank)
        else:
            request = await requested(blank, write)
        report()
        return request

    return ask


async def request_rubrics(
    tools: Tools, variant: str, indices: Sequence[int], report: Callable[[], None] = lambda: None
) -> list[RubricRequest]:
    """Rubric requests for the candidates with these indices, in order; see `rubric_source`.

    Raises:
        ServiceError: The rubric model's service failed for good.
    """
    ask = rubric_source(tools, variant, report)
    return list(await asyncio.gather(*(ask(blank_request(tools, variant, index)) for index in indices)))


async def _sampled_rubric(tools: Tools, policy: LanguageModel, request: RubricRequest) -> Rubric:
    """One rubric sampled from the policy, trained or not, with the prompt of its training."""
    from optimsyn.llm.language_model import Call
    from optimsyn.llm.reading.asking import hear
    from optimsyn.programs.rubric import complete_rubric, rubric_messages

    def read(reply: Reply, max_tokens: int | None) -> Rubric:
        return complete_rubric(reply, max_tokens=max_tokens)

    config = tools.recipe.optimizers.policy
    form = tools.shape.form(request.kind).described()
    messages, stop = rubric_messages(request.guiding_text, request.passage, form, manner=policy.manner)
    call = Call(
        messages=messages,
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=request.seed,
        stop=stop,
    )
    return (await hear(policy, call, read, "policy"))[0]


async def write_ahead(tools: Tools, requests: Sequence[RubricRequest]) -> None:
    """Writes the pairs of all requests before any is judged, for a generator that works in batches.

    Judging works in windows, each of which would be a small batch; it then finds all replies in the cache.

    Raises:
        ServiceError: The generator's service failed for good.
    """
    # Judging reads the replies again and counts the unreadable ones.
    await asyncio.gather(*(tools.drafter.write(request) for request in requests))


async def write_first_rounds(tools: Tools, variants: Sequence[Variant], config: Synthesis) -> None:
    """Writes the first candidates of several variants at once, as `write_ahead` does.

    Raises:
        ServiceError: A service failed for good.
    """
    requests: list[RubricRequest] = []
    for group in by_sampler(tools, variants):
        rubrics = (
            request_rubrics(tools, variant, range(written_at_first(tools, variant, config))) for variant in group
        )
        requests += [request for of_variant in await asyncio.gather(*rubrics) for request in of_variant]
        await forget_untrained(tools)
    await write_ahead(tools, requests)


async def forget_untrained(tools: Tools) -> None:
    """Frees the memory of the untrained policy, if it was loaded."""
    if "untrained_policy" in tools.__dict__:
        await tools.untrained_policy.aclose()


async def write_candidates(
    tools: Tools,
    reward: InfluenceReward,
    variants: Sequence[Variant],
    config: Synthesis,
    report: Callable[[], None] = lambda: None,
    author: RubricAuthor | None = None,
) -> dict[Variant, list[Judgement]]:
    """Writes and judges candidates of some variants until `config.pairs` of each are valid.

    The first round writes `written_at_first` candidates of each variant; while a variant has too few valid ones,
    further rounds write as many as its valid share asks for, up to `config.most_candidates`. Where the recipe names
    arms there is no further round. All of a round go through the reward as one stream, in the order of `in_blocks`.

    Args:
        tools: The run's models and passages.
        reward: Judges the candidates.
        variants: Where rubrics come from.
        config: How many valid candidates each variant needs, and how many are written for them.
        report: Called after each rubric.
        author: Writes the rubrics of the variant author; keeps how.

    Returns:
        Every judged candidate of each variant in order of index, valid or not.

    Raises:
        StageError: A variant has no valid candidate; names the check that failed most.
        ServiceError: A service failed for good; everything judged so far is in the ledger.
    """
    sources = {variant: rubric_source(tools, variant, report, author) for variant in variants}
    judged: dict[Variant, list[Judgement]] = {variant: [] for variant in variants}
    to_write = {variant: written_at_first(tools, variant, config) for variant in variants}

    async def ask(request: RubricRequest) -> RubricRequest:
        return await sources[cast("Variant", request.variant)](request)

    while to_write:
        places: list[tuple[int, Variant]] = [
            (index, variant)
            for variant, count in to_write.items()
            for index in range(len(judged[variant]), len(judged[variant]) + count)
        ]
        places = in_blocks(places, len(tools.passages_for("synthesize")), tools.ahead)
        requests = [blank_request(tools, variant, index) for index, variant in places]
        if tools.asks_at_once:
            requests = list(await asyncio.gather(*map(ask, requests)))
            await write_ahead(tools, requests)
        rows = dict(zip(places, await reward.judge(requests, None if tools.asks_at_once else ask), strict=True))
        for index, variant in sorted(rows):
            judged[variant].append(rows[index, variant])
        further = {variant: _further(judged[variant], config) for variant in to_write}
        to_write = {variant: count for variant, count in further.items() if count > 0}
    for variant, rows_of_variant in judged.items():
        _refuse_nothing_valid(tools, variant, rows_of_variant)
    return judged


def in_blocks(places: Sequence[tuple[int, Variant]], passages: int, block: int) -> list[tuple[int, Variant]]:
    """Candidates in an order in which a server reads a passage once and still knows it when it is asked again.

    Requests about one passage are a block of passages apart: not so near that they are under way together, where each
    would have to read the passage, and not so far that the server has forgotten it.

    Args:
        places: Index and variant of each candidate; those of a variant in order.
        passages: Number of passages; candidates go through them again and again.
        block: Candidates under way at once.
    """
    order = {place: number for number, place in enumerate(places)}

    def key(place: tuple[int, Variant]) -> tuple[int, int, int]:
        return (place[0] % passages // block, place[0] // passages, order[place])

    return sorted(places, key=key)


def _further(judged: Sequence[Judgement], config: Synthesis) -> int:
    """How many candidates the next round writes."""
    valid = sum(judgement.valid for judgement in judged)
    if config.arms is not None or valid >= config.pairs or len(judged) >= config.most_candidates:
        return 0
    share = max(valid / len(judged), 0.2)
    return min(config.most_candidates - len(judged), round((config.pairs - valid) / share) + 1)


def _refuse_nothing_valid(tools: Tools, variant: str, judged: Sequence[Judgement]) -> None:
    if any(judgement.valid for judgement in judged):
        return
    raise StageError(
        f"variant {variant}: none of {plural(len(judged), 'candidate')} passed the validity checks: "
        f"{failures(judged)}. Look at "
        f"rewards.jsonl in {tools.run.folder}, then change the generator, the guiding text or `checks.disabled`."
    )
