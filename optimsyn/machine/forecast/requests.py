"""Forecasts a run: the number of requests of each stage, times their length, times their price.

Before a run the forecast is based on the recipe and on the lengths of real prompts. During a run, actual numbers
replace predicted ones: finished stages count as they were, and what they showed (the share of valid pairs, the length
of replies, whether the guiding text changed) corrects the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optimsyn.base.files import read_jsonl
from optimsyn.data.splits import passage_parts
from optimsyn.llm.hosted.capabilities import price_of
from optimsyn.llm.hosted.service_memory import usage_sentence
from optimsyn.llm.reply import Usage
from optimsyn.machine.forecast.author import author_asks, author_makes, author_teaches
from optimsyn.machine.forecast.lengths import Kind, Lengths, measure
from optimsyn.machine.forecast.validity import drafts_a_pair, valid_at_first, valid_at_last
from optimsyn.optimize.halving import MOST_PROPOSALS, most_pairs, rungs
from optimsyn.recipe.sections.arms import has_weights
from optimsyn.recipe.sections.author import author_model
from optimsyn.recipe.sections.optimizers import MIPRO_TEXTS, PromptSplit
from optimsyn.runs.forecast import Forecast, Range, StageForecast
from optimsyn.runs.results.built_in import OptimizePromptResult, TrainPolicyResult, WarmUpResult
from optimsyn.runs.results.reading import result_of
from optimsyn.target.warm_up.parts import FEWEST_DRAFTS

if TYPE_CHECKING:
    from optimsyn.data.records import Passage
    from optimsyn.recipe.recipe import ModelSpec, Recipe
    from optimsyn.runs.folder import Run

# The stages that use batches if the recipe asks for them, and the price of a batch as a share of the usual one.
BATCHED = ("warm_up", "synthesize")
BATCH_PRICE = 0.5
# Shares that are unknown before a run: of readable sampled rubrics, of proposals that are better on their minibatch,
# and better in the full comparison.
_READ = Range(low=0.6, expected=0.9, high=1.0)
# Of groups whose rubrics all earn the same, which methods in rounds draw again.
_DRAWN_AGAIN = 0.3
_ACCEPTED = 0.4
_FOUND = 0.5
# Winners that are confirmed on further passages: one in ten where the gain is chance, most where it is large.
_CONFIRMED = 0.5
# Replies with summaries of the passages, which methods other than gepa request before they propose anything.
_SUMMARIES = 2
_LEAST_SHARE = 0.2
# With more candidates than this, the share of valid ones hardly varies.
_MANY = 200


@dataclass(frozen=True)
class Known:
    """What a run has shown so far.

    Attributes:
        valid: Share of the first draft that was valid; None: not known yet.
        drafts: Drafts of a pair of the first draft, where one that is not valid is written again; None: not known yet.
        changed: Whether the search found another guiding text; None: not known yet.
        changed_again: Whether the search after the training did, where there is one; None: not known yet.
        done: Usage of each finished stage.
        under_way: Usage so far of each started stage.
        read: Input tokens a request, relative to the prediction.
        written: Output tokens a request, relative to the prediction.
    """

    valid: float | None = None
    drafts: float | None = None
    changed: bool | None = None
    changed_again: bool | None = None
    done: Mapping[str, Usage] = field(default_factory=dict)
    under_way: Mapping[str, Usage] = field(default_factory=dict)
    read: float | None = None
    written: float | None = None


NOTHING = Known()


def forecast(recipe: Recipe, lengths: Lengths, passages: int = 0, known: Known = NOTHING) -> Forecast:
    """Forecasts what a recipe will send; `passages` is 0 where they are not read yet."""
    stages = []
    work = _work(recipe, passages, known)
    for stage in recipe.stage_names:
        so_far = known.under_way.get(stage)
        if stage in known.done or stage not in work:
            stages.append(_at_least(StageForecast(stage=stage), known.done.get(stage) or so_far or Usage()))
            continue
        priced = _priced(recipe, stage, work[stage], lengths, known)
        stages.append(priced if so_far is None else _at_least(priced, so_far))
    sending = [stage for stage in stages if stage.requests.high]
    notes = [
        f"What models.{role} costs is not known: {spec.name} is a generator of your own; give models.{role}.prices "
        "(zeros when it is free)."
        for role, spec in recipe.models.writers.items()
        if spec.provider == "own" and price_of(spec) is None
    ]
    own = [stage.name for stage in recipe.stages if stage.name not in known.done]
    if own:
        notes.append(f"What your own stages send is not predicted: {', '.join(own)}.")
    return Forecast(stages=tuple(sending), paid=bool(paid_models(recipe)), notes=(*lengths.notes, *notes))


def paid_models(recipe: Recipe) -> list[str]:
    """The roles whose model costs money or has an unknown price."""
    prices = {role: price_of(spec) for role, spec in recipe.models.writers.items()}
    return [role for role, price in prices.items() if price is None or price.input or price.output]


def foresee(run: Run, at_first: Forecast | None = None) -> Forecast:
    """Updates the forecast of a run at its start or after a stage, and records it in the manifest.

    `at_first` is the forecast from the recipe alone, for a run that has not begun.
    """
    started = any(record.attempts for record in run.manifest.stages)
    predicted = at_first if at_first is not None and not started else forecast_run(run)
    run.foresee(predicted)
    return predicted


def forecast_run(run: Run) -> Forecast:
    """The current forecast of a run, with actual numbers in place of predicted ones."""
    from optimsyn.data.records import Passage, Question
    from optimsyn.programs.task_shape import TaskShape

    passages: list[Passage] = []
    shape = None
    # The stage that needs missing files reports them.
    if run.done("prepare") and run.path("prepare", "passages.jsonl").is_file():
        passages = read_jsonl(run.path("prepare", "passages.jsonl"), Passage)
        questions = read_jsonl(run.path("prepare", "validation.jsonl"), Question)
        shape = TaskShape.of(questions, show_form=run.recipe.questions.show_form)
    lengths = measure(run.recipe, passages, shape)
    predicted = forecast(run.recipe, lengths, len(passages), _known(run, lengths, len(passages)))
    doubts = [usage_sentence(name, usage) for name, raw in run.services.items() if (usage := raw.get("usage"))]
    return predicted.model_copy(
        update={"notes": (*predicted.notes, *(f"{doubt[:1].upper()}{doubt[1:]}." for doubt in doubts))}
    )


def _known(run: Run, lengths: Lengths, passages: int) -> Known:
    manifest = run.manifest
    done: dict[str, Usage] = {record.name: record.cost for record in manifest.stages if record.status == "finished"}
    now = run.bought()
    under_way: dict[str, Usage] = {
        record.name: now.since(record.bought_before)
        for record in manifest.stages
        if record.status != "finished" and record.bought_before is not None
    }
    draft = result_of(run.folder, "warm_up") if "warm_up" in done else None
    search = result_of(run.folder, "optimize_prompt") if "optimize_prompt" in done else None
    trained = result_of(run.folder, "train_policy") if "train_policy" in done else None
    valid = drafts = changed = changed_again = None
    if isinstance(draft, WarmUpResult) and draft.valid is not None and draft.first_draft:
        valid = draft.valid / draft.first_draft
        drafts = 1 + (draft.redrafts or 0) / draft.first_draft
    if isinstance(search, OptimizePromptResult):
        changed = search.changed
    if isinstance(trained, TrainPolicyResult):
        changed_again = trained.second_turn is not None and bool(trained.second_turn.changed)
    predicted = {stage.stage: stage for stage in forecast(run.recipe, lengths, passages).stages}
    bought = [(predicted[name], cost) for name, cost in {**done, **under_way}.items() if name in predicted]
    requests = sum(cost.replies for _, cost in bought)

    def ratio(tokens: str) -> float | None:
        """Tokens a request, relative to the prediction for the same stages."""
        expected = sum(
            cost.replies * getattr(stage, tokens).expected / stage.requests.expected
            for stage, cost in bought
            if stage.requests.expected
        )
        return sum(getattr(cost, tokens) for _, cost in bought) / expected if requests and expected else None

    return Known(
        valid=valid,
        drafts=drafts,
        changed=changed,
        changed_again=changed_again,
        done=done,
        under_way=under_way,
        read=ratio("input_tokens"),
        written=ratio("output_tokens"),
    )


def _work(recipe: Recipe, passages: int, known: Known) -> dict[str, list[tuple[Kind, Range]]]:
    """Requests of each kind that each stage sends."""
    parts = passage_parts(recipe, passages) if passages else None
    learned_from = passages if parts is None else len(parts["optimize"])
    work = {
        "warm_up": _first_draft(recipe),
        "optimize_prompt": _prompt_search(recipe, learned_from),
        "train_policy": [
            *_policy_training(recipe, learned_from),
            *author_teaches(recipe, learned_from),
            *_second_search(recipe, learned_from),
        ],
        "synthesize": _synthesis(recipe, learned_from, known, _cached(recipe, passages, parts is not None)),
    }
    if recipe.models.judge is not None:
        # Each draft that passes the other checks; at most all are.
        valid = valid_at_first(recipe)
        share = Range(low=valid.high, expected=valid.expected, high=1.0)
        for requests in work.values():
            requests += [("judge", amount * share) for kind, amount in requests if kind in ("pair", "bare")]
    return work


def _cached(recipe: Recipe, passages: int, apart: bool) -> Range:
    """Static candidates that are those of the first draft, with the same passages, guiding text and seeds."""
    drafts = float(recipe.warm_up.pairs)
    if recipe.synthesis.passages == "all":
        return Range.exactly(drafts)
    if not passages:
        # Whether there are enough passages for parts of their own is not known yet.
        return Range(low=drafts, expected=0.0, high=0.0)
    return Range.exactly(0.0 if apart else drafts)


def _first_draft(recipe: Recipe) -> list[tuple[Kind, Range]]:
    pairs, most = recipe.warm_up.pairs, recipe.warm_up.most_drafts
    # Further ones are written while too few are valid to train on.
    expected = min(most, max(pairs, min(FEWEST_DRAFTS, pairs) / valid_at_last(recipe).expected))
    return [
        ("rubric", Range(low=pairs, expected=expected, high=most)),
        ("pair", Range(low=0.8 * pairs, expected=expected, high=most)),
    ]


def _prompt_search(recipe: Recipe, passages: int) -> list[tuple[Kind, Range]]:
    config = recipe.optimizers.prompt
    if not config.enabled:
        return []
    split, tried = _split(recipe, passages)
    pairs, proposals = _proposed(recipe, passages)
    # A winner and the recipe's text are judged on the held passages.
    confirmed = 2 * split.held * _won(proposals)
    judged = Range(low=split.compared, expected=pairs + confirmed, high=config.metric_calls)
    work: list[tuple[Kind, Range]] = [("rubric", judged), ("pair", judged)]
    if config.for_author:
        work = author_asks(recipe, judged)
    if recipe.models.reflection is not None:
        most = 1 + (split.searched - split.compared) / tried
        if config.method == "halving":
            most *= 2  # it asks again for a text that it knows
        elif config.method != "gepa":
            proposals, most = proposals + _SUMMARIES, config.metric_calls
        work.append(("reflection", Range(low=1, expected=proposals, high=most)))
    return work


def _second_search(recipe: Recipe, passages: int) -> list[tuple[Kind, Range]]:
    """The search after the training, whose rubrics the trained policy writes."""
    if not recipe.optimizers.searched_again:
        return []
    policy = recipe.optimizers.policy
    # A training that keeps the untrained policy is followed by none.
    certain = not policy.in_rounds or policy.held_passages == 0
    # As in the training, a sampled rubric that cannot be read gets no pair.
    work: list[tuple[Kind, Range]] = [
        ("policy" if kind == "rubric" else kind, amount * _READ if kind == "pair" else amount)
        for kind, amount in _prompt_search(recipe, passages)
    ]
    return work if certain else [(kind, amount.model_copy(update={"low": 0.0})) for kind, amount in work]


def _split(recipe: Recipe, passages: int) -> tuple[PromptSplit, int]:
    """How the search uses its passages, and the number of those that a proposal is first tried on."""
    config = recipe.optimizers.prompt
    # Where the passages are not read yet: as many as it can use.
    split = config.split(passages or 2 * (config.passages + config.metric_calls))
    return split, min(config.minibatch, split.compared)


def _proposed(recipe: Recipe, passages: int) -> tuple[float, float]:
    """The expected number of pairs that the search judges, and of texts that it tries beside the recipe's."""
    config = recipe.optimizers.prompt
    split, tried = _split(recipe, passages)
    compared, learned = split.compared, split.learned
    if config.method == "gepa":
        return _searched(split.searched, compared, tried, learned)
    if config.method == "halving":
        return _halved(split.searched, compared, tried, learned)
    # Other methods compare each text in full, as far as known.
    texts = (split.searched - (learned if config.method == "miprov2" else 0)) // compared
    if config.method == "miprov2":
        texts = min(texts, MIPRO_TEXTS)
        return float(texts * compared + learned), float(texts - 1)
    return float(texts * compared), float(texts - 1)


def _halved(most: int, compared: int, tried: int, learned: int) -> tuple[float, float]:
    """The same for successive halving, whose rounds are as large as the budget allows."""
    sizes = rungs(tried, compared)
    judged, proposals = compared, 0
    while (left := most - judged - learned) >= most_pairs(1, sizes):
        count = max(n for n in range(1, MOST_PROPOSALS + 1) if most_pairs(n, sizes) <= left)
        # The best text so far is in every round, and costs nothing.
        judged, proposals = judged + learned + most_pairs(count, sizes), proposals + count
    return float(judged), float(proposals)


def _searched(most: int, compared: int, tried: int, learned: int) -> tuple[float, float]:
    """The expected numbers of judged pairs and proposed texts until the next proposal could exceed the budget.

    On passages of their own, a text is judged when proposals are made from it, and then compared on all others.
    """
    accepted = compared + learned
    # Dynamic programming from the end of the budget: expected remaining (pairs, proposals) after `judged` pairs.
    remaining = [(0.0, 0.0)] * (most + accepted + 1)
    last = most - compared - (2 * tried if learned else 0)
    for judged in range(last, compared - 1, -1):
        better, worse = remaining[judged + accepted], remaining[judged + tried]
        remaining[judged] = (
            _ACCEPTED * (accepted + better[0]) + (1 - _ACCEPTED) * (tried + worse[0]),
            1 + _ACCEPTED * better[1] + (1 - _ACCEPTED) * worse[1],
        )
    pairs, proposals = remaining[accepted]
    return accepted + pairs, proposals


def _won(proposals: float) -> float:
    """The probability that a search finds a better text than the recipe's, which grows with its proposals."""
    return 1.0 - math.pow(1.0 - _FOUND, proposals)


def _changed(recipe: Recipe, passages: int) -> Range:
    """The probability that such a text replaces the recipe's."""
    _, proposals = _proposed(recipe, passages)
    kept = _CONFIRMED if _split(recipe, passages)[0].held else 1.0
    return Range(low=0.0, expected=kept * _won(proposals), high=1.0)


def _under_another_text(recipe: Recipe, passages: int, known: Known, *, again: bool = False) -> Range:
    """The probability that a searched text differs from the recipe's; `again`: that of the second search."""
    first = _changed(recipe, passages) if known.changed is None else Range.exactly(float(known.changed))
    if not again or not recipe.optimizers.searched_again:
        return first
    second = _changed(recipe, passages) if known.changed_again is None else Range.exactly(float(known.changed_again))

    def either(one: float, other: float) -> float:
        return 1.0 - (1.0 - one) * (1.0 - other)

    return Range(
        low=either(first.low, second.low),
        expected=either(first.expected, second.expected),
        high=either(first.high, second.high),
    )


def _policy_training(recipe: Recipe, passages: int) -> list[tuple[Kind, Range]]:
    config = recipe.optimizers.policy
    if not config.enabled:
        return []
    low, expected, high = (
        float(config.judged(passages or None, drawn_again=share)) for share in (0.0, _DRAWN_AGAIN, 1.0)
    )
    # The local policy samples the rubrics.
    judged = Range(low=low * _READ.low, expected=expected * _READ.expected, high=high * _READ.high)
    drafts = recipe.further_warm_ups * recipe.warm_up.pairs
    again = Range(low=0.0, expected=drafts, high=drafts)
    return [("pair", judged + again)]


def _synthesis(recipe: Recipe, passages: int, known: Known, cached: Range) -> list[tuple[Kind, Range]]:
    if recipe.synthesis.arms is not None:
        return _arms(recipe, passages, known, cached)
    candidates = _candidates(recipe, known)
    authored = author_makes(recipe, candidates)
    sampled = recipe.synthesis.one_decoder and has_weights(recipe.models.rubric)
    new = candidates if sampled else candidates.less(cached)
    work: list[tuple[Kind, Range]] = [("bare", candidates), ("rubric", new), ("pair", new), *authored]
    if recipe.optimizers.prompt.for_writer:
        changed = _under_another_text(recipe, passages, known)
        work += [("rubric", candidates * changed), ("pair", candidates * changed)]
    if recipe.optimizers.policy.enabled:
        work += [("policy", candidates), ("pair", candidates)]
    return work


def _arms(recipe: Recipe, passages: int, known: Known, cached: Range) -> list[tuple[Kind, Range]]:
    """Requests for the candidates of arms, whose number is fixed; equal requests of two arms are one."""
    arms = recipe.variants
    each = Range.exactly(float(recipe.synthesis.first_round))
    sampled = recipe.synthesis.one_decoder and has_weights(recipe.models.rubric)
    kind: Kind = "policy" if sampled else "rubric"
    changed = _under_another_text(recipe, passages, known)
    work: list[tuple[Kind, Range]] = [("bare", each)] if "no_rubric" in arms else []

    def add(written: Range, how: Kind = kind) -> None:
        work.extend([(how, written), ("pair", written * _READ if how == "policy" else written)])

    static = _pool(recipe, passages) if "static_pool" in arms else each
    if {"static", "static_pool"} & set(arms):
        # Sampled as the first drafts are, the first ones are theirs, and cached.
        add(static if sampled else static.less(cached))
    if "untrained_policy" in arms and not (sampled and {"static", "static_pool"} & set(arms)):
        add(each, "policy")
    if "optimized" in arms:
        add(each * changed if {"static", "static_pool"} & set(arms) else each)
    if "policy" in arms:
        add(each, "policy")
    if "both" in arms:
        again = _under_another_text(recipe, passages, known, again=True)
        add(each * again if "policy" in arms else each, "policy")
    if "insider" in arms:
        add(each)
    return work + author_makes(recipe, each)


def _pool(recipe: Recipe, passages: int) -> Range:
    """Candidates of the arm static_pool."""
    if recipe.synthesis.pool is not None:
        return Range.exactly(float(recipe.synthesis.pool))
    judged = [*_policy_training(recipe, passages), *_second_search(recipe, passages)]
    amounts = [amount for kind, amount in judged or _prompt_search(recipe, passages) if kind == "pair"]
    return sum(amounts, Range.exactly(float(recipe.synthesis.first_round)))


def _candidates(recipe: Recipe, known: Known) -> Range:
    """Candidates of one variant: the first round, and more where too few of them are valid."""
    pairs, first = recipe.synthesis.pairs, recipe.synthesis.first_round

    def written(share: float) -> float:
        return first + sum(
            chance
            * min(recipe.synthesis.most_candidates - first, (pairs - valid) / max(valid / first, _LEAST_SHARE) + 1)
            for valid, chance in _chances(first, share)
            if valid < pairs
        )

    shares = (valid_at_last(recipe).low, valid_at_last(recipe).expected, valid_at_last(recipe).high)
    if known.valid is not None:
        shares = (min(1.0, known.valid + 0.1), known.valid, max(0.0, known.valid - 0.2))
    low, expected, high = map(written, shares)
    return Range(low=low, expected=expected, high=high)


def _chances(tries: int, share: float) -> list[tuple[float, float]]:
    """The distribution of the number of valid candidates as (number, probability); for many, just the mean."""
    if tries > _MANY:
        return [(share * tries, 1.0)]
    return [(n, math.comb(tries, n) * share**n * (1 - share) ** (tries - n)) for n in range(tries + 1)]


def _priced(
    recipe: Recipe, stage: str, work: Sequence[tuple[Kind, Range]], lengths: Lengths, known: Known
) -> StageForecast:
    models = recipe.models
    requests_of: dict[Kind, tuple[ModelSpec | None, Range, Range]] = {
        "rubric": (models.rubric, lengths.rubric_in, lengths.rubric_out),
        "policy": (models.rubric, lengths.policy_in, lengths.rubric_out),
        "pair": (models.generator, lengths.pair_in, lengths.pair_out),
        "bare": (models.generator, lengths.bare_in, lengths.pair_out),
        "reflection": (models.reflection, lengths.reflection_in, lengths.reflection_out),
        "judge": (models.judge, lengths.judge_in, lengths.judge_out),
        "author": (author_model(models), lengths.author_in, lengths.author_out),
    }
    requests, read, written = Range(), Range(), Range()
    cost: Range | None = Range()
    drafts = drafts_a_pair(recipe, known.drafts)
    for kind, asked in work:
        amount = asked * drafts if kind in ("pair", "bare", "judge") else asked
        spec, one_in, one_out = requests_of[kind]
        assert spec is not None
        tokens_in = amount * _corrected(one_in, known.read)
        tokens_out = amount * _corrected(one_out, known.written)
        requests, read, written = requests + amount, read + tokens_in, written + tokens_out
        price = price_of(spec)
        if price is None:
            cost = None
        elif cost is not None:
            share = BATCH_PRICE if spec.batch and stage in BATCHED else 1.0
            cost += tokens_in * (price.input * share) + tokens_out * (price.output * share)
    return StageForecast(stage=stage, requests=requests, input_tokens=read, output_tokens=written, cost_usd=cost)


def _corrected(tokens: Range, ratio: float | None) -> Range:
    """Tokens of one request, corrected by the ratio of actual to predicted tokens so far."""
    if ratio is None:
        return tokens
    middle = tokens.expected * ratio
    return Range(low=0.8 * middle, expected=middle, high=1.25 * middle)


def _at_least(stage: StageForecast, cost: Usage) -> StageForecast:
    return stage.model_copy(
        update={
            "requests": stage.requests.at_least(cost.replies),
            "input_tokens": stage.input_tokens.at_least(cost.input_tokens),
            "output_tokens": stage.output_tokens.at_least(cost.output_tokens),
            "cost_usd": None if stage.cost_usd is None else stage.cost_usd.at_least(cost.cost_usd),
        }
    )
