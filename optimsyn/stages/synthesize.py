"""Stage 5, synthesis: candidates of every variant are written, checked, scored, selected; one becomes the dataset.

Every variant walks the same passages with the same seeds and ends with the same number of pairs, so that what differs
between them is where the rubric came from. The arms of a comparison (`synthesis.arms`) also write the same number of
candidates, with rubrics from one sampler, and are selected from equally many valid ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from optimsyn.base.counting import plural
from optimsyn.base.errors import StageError
from optimsyn.base.files import read_jsonl, write_json, write_jsonl
from optimsyn.influence.attribution.records import SHARES_FILE
from optimsyn.runs.results.built_in import MeanInfluence, SynthesizeResult
from optimsyn.runs.results.losses import Losses
from optimsyn.runs.results.measured import loads_of
from optimsyn.stages.attribution import keep_token_shares
from optimsyn.stages.candidates import (
    author_of,
    by_sampler,
    forget_untrained,
    write_candidates,
    write_first_rounds,
    written_at_first,
)
from optimsyn.stages.judged_by import passed_over
from optimsyn.stages.selection import RANDOM_SETS, select
from optimsyn.stages.shared import Tools

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import Recipe
    from optimsyn.recipe.sections.synthesis import Variant
    from optimsyn.reward.reward import InfluenceReward, Judgement
    from optimsyn.runs.folder import Run
    from optimsyn.runs.stage_handle import Count

FEWEST_PAIRS = 2
TRAJECTORIES = "author.trajectories.jsonl"
"""What the author did for each candidate."""


def run(run: Run) -> SynthesizeResult:
    """Writes all variants' pairs and the final dataset.

    Raises:
        StageError: A variant has too few valid pairs.
        ServiceError: A language-model service failed for good; replies and judgements are kept.
    """
    with run.stage("synthesize") as stage:
        if stage.finished:
            return SynthesizeResult.load(run)
        tools = Tools(run, stage)
        config = run.recipe.synthesis
        # A rubric and a verdict for each candidate, and verdicts on an author's drafts; further rounds add to that.
        total = 2 * sum(written_at_first(tools, variant, config) for variant in run.recipe.variants)
        total += run.recipe.author.drafts * config.first_round if "author" in run.recipe.variants else 0
        progress = stage.count(total, "rubrics and verdicts", last=config.select != "set")
        reward = tools.reward("synthesize", lambda now, different: progress.add(now))
        if tools.asks_at_once:
            _write_ahead(run, tools)
        judged = _candidates(run, tools, reward, progress)
        progress.add(max(0, total - progress.done))
        return _select(run, tools, judged, passed_over(reward))


def _write_ahead(run: Run, tools: Tools) -> None:
    """Requests the first candidates of all variants in as few batches as possible."""
    from optimsyn.llm.language_model import run_sync

    complete = [name for name in run.recipe.variants if run.path("synthesize", f"{name}.candidates.jsonl").is_file()]
    variants = [variant for variant in run.recipe.variants if variant not in complete]
    run_sync(write_first_rounds(tools, variants, run.recipe.synthesis))


def _candidates(run: Run, tools: Tools, reward: InfluenceReward, progress: Count) -> dict[str, list[Judgement]]:
    """The judged candidates of all variants; read from the run if they are complete and judged by the same reward."""
    from optimsyn.llm.language_model import run_sync
    from optimsyn.reward.judgements import Judgement

    judged: dict[str, list[Judgement]] = {}
    missing: list[Variant] = []
    for variant in run.recipe.variants:
        path = run.path("synthesize", f"{variant}.candidates.jsonl")
        rows = read_jsonl(path, Judgement) if path.is_file() else []
        if rows and all(row.identity == reward.identity for row in rows):
            judged[variant] = rows
            continue
        if rows:
            run.path("synthesize", SHARES_FILE).unlink(missing_ok=True)
        missing.append(variant)
    progress.add(0)
    for group in by_sampler(tools, missing):
        author = author_of(tools, reward) if "author" in group else None
        written = run_sync(write_candidates(tools, reward, group, run.recipe.synthesis, progress.add, author))
        run_sync(forget_untrained(tools))
        for name, rows in written.items():
            if name == "author" and author is not None:
                write_jsonl(run.path("synthesize", TRAJECTORIES), author.of(rows))
            write_jsonl(run.path("synthesize", f"{name}.candidates.jsonl"), rows)
            judged[name] = rows
    return {variant: judged[variant] for variant in run.recipe.variants}


def _select(run: Run, tools: Tools, judged: dict[str, list[Judgement]], notes: list[str]) -> SynthesizeResult:
    from optimsyn.data.duplicates import unique_pairs
    from optimsyn.runs.datasets.export import export_dataset

    config = run.recipe.synthesis
    unique: dict[str, list[Judgement]] = {}
    near_test: dict[str, int] = {}
    for variant, judgements in judged.items():
        valid = [judgement for judgement in judgements if judgement.valid]
        apart = [row for row in valid if row.pair is not None and not tools.is_near_test(row.pair)]
        keep = unique_pairs([judgement.pair for judgement in apart if judgement.pair is not None])
        unique[variant] = [apart[index] for index in keep]
        near_test[variant] = len(valid) - len(apart)
    count = min(config.pairs, *(len(rows) for rows in unique.values()))
    if count < FEWEST_PAIRS:
        fewest = min(unique, key=lambda variant: len(unique[variant]))
        raise StageError(
            f"variant {fewest}: only {plural(len(unique[fewest]), 'valid, distinct pair')} of "
            f"{plural(len(judged[fewest]), 'candidate')}"
            f"{f' ({near_test[fewest]} more are near test questions)' if near_test[fewest] else ''}, "
            "too few to fine-tune on. Raise `synthesis.pairs` or `synthesis.oversample`, or use a stronger generator."
        )
    losses: dict[str, Losses] = {}
    means: dict[str, MeanInfluence] = {}
    choice = unique if config.arms is None else _equally_many(unique)
    selections = select(tools, choice, count)
    for variant, judgements in judged.items():
        selected = selections[variant].rows
        write_jsonl(run.path("synthesize", f"{variant}.selected.jsonl"), [row.pair for row in selected if row.pair])
        write_jsonl(run.path("synthesize", f"{variant}.judged.jsonl"), selected)
        losses[variant] = _lost(judgements, near_test[variant], len(unique[variant]), count)
        influence = [row.influence for row in judgements if row.influence is not None]
        best = [row.influence for row in selected if row.influence is not None]
        means[variant] = MeanInfluence(valid=sum(influence) / len(influence), kept=sum(best) / len(best))
    chosen = run.recipe.dataset_variant
    keep_token_shares(tools, chosen, unique[chosen])
    export_dataset(
        run.path("dataset"),
        read_jsonl(run.path("synthesize", f"{chosen}.judged.jsonl"), type(judged[chosen][0])),
        recipe=run.recipe,
        variant=chosen,
        losses=losses[chosen].counts(),
        documents=tools.documents,
    )
    write_json(run.path("synthesize", "losses.json"), {variant: lost.counts() for variant, lost in losses.items()})
    if count < config.pairs:
        notes.append(
            f"The recipe asks for {plural(config.pairs, 'pair')} a variant; the variant with the fewest valid "
            f"ones has {count}, "
            "so all variants are cut to that."
        )
    if any(near_test.values()):
        notes.append(
            f"{sum(near_test.values())} valid pairs are nearly test questions and enter no dataset; they earned their "
            "rewards as all others did, since test questions play no part in the reward."
        )
    if config.arms is not None:
        notes.append(_how_even(tools, choice, count))
    predicted = {
        variant: selection.predicted for variant, selection in selections.items() if selection.predicted is not None
    }
    if predicted:
        first = next(iter(predicted.values()))
        notes.append(
            f"The validation questions' loss is {first.now:.3f} after the warm-up; the table shows the loss "
            f"predicted after {first.steps} steps of fine-tuning on the kept pairs, and on as many random ones (mean "
            f"of {RANDOM_SETS})."
        )
    return SynthesizeResult(
        pairs=count,
        dataset=chosen,
        losses=losses,
        influence=means,
        predicted=predicted,
        busy=loads_of(tools.meter),
        notes=(*notes, *_redrafts_note(judged), *_judge_note(tools.recipe, judged)),
    ).save(run)


def _redrafts_note(judged: Mapping[str, Sequence[Judgement]]) -> list[str]:
    """How many candidates were written again because a check refused them, and how many are valid now."""
    again = [row for rows in judged.values() for row in rows if row.redrafts]
    if not again:
        return []
    total = sum(map(len, judged.values()))
    return [
        f"{len(again):,} of {plural(total, 'candidate')} were written again, since they were invalid at first; "
        f"{sum(row.valid for row in again):,} of them are valid."
    ]


def _equally_many(unique: dict[str, list[Judgement]]) -> dict[str, list[Judgement]]:
    """The first valid, distinct candidates of each arm, as many as the arm with the fewest has.

    So each keeps the same share of what it could choose from: an arm with more valid candidates would be selected more
    sharply, and differ in two things. The pool keeps all, which is what it is for.
    """
    fewest = _choice(unique)
    return {variant: rows if variant == "static_pool" else rows[:fewest] for variant, rows in unique.items()}


def _choice(unique: dict[str, list[Judgement]]) -> int:
    """Valid candidates of the arm with the fewest, other than the pool, which counts where it is alone."""
    sizes = {variant: len(rows) for variant, rows in unique.items()}
    return min([size for variant, size in sizes.items() if variant != "static_pool"] or sizes.values())


def _how_even(tools: Tools, choice: dict[str, list[Judgement]], count: int) -> str:
    """What each arm's pairs were selected from, as a sentence."""
    config, fewest = tools.recipe.synthesis, _choice(choice)
    text = (
        f"Each arm wrote {plural(config.first_round, 'candidate')}, and its {plural(count, 'pair')} are selected "
        "from its first "
        f"{fewest:,} valid, distinct ones, as many as the arm with the fewest has, so that selection is equally sharp"
    )
    if "static_pool" in choice:
        pool = written_at_first(tools, "static_pool", config)
        text += f"; the larger static pool wrote {pool:,} and is selected from all its {len(choice['static_pool']):,}"
    if fewest == count and config.select != "first":
        text += ". That left nothing to select: raise `synthesis.oversample`"
    return f"{text}."


def _judge_note(recipe: Recipe, judged: dict[str, list[Judgement]]) -> list[str]:
    """What the judge said on average, and how often nothing, as a sentence."""
    rows = [row for rows in judged.values() for row in rows if row.judge or row.judge_problem]
    if not rows or recipe.models.judge is None:
        return []
    scored = [row.judge for row in rows if row.judge]
    means = [f"{name.replace('_', ' ')} {fmean(s[name] for s in scored):.1f}" for name in (scored[0] if scored else ())]
    config = recipe.checks.judge
    text = f"{recipe.models.judge.name} judged {plural(len(scored), 'candidate')} that passed the other checks"
    text += f", of {config.scale} on average: {', '.join(means)}" if means else ""
    unread = len(rows) - len(scored)
    if unread:
        what = "are not judged" if config.mode == "check" else "have no scores"
        text += f"; {unread:,} more {what}, because its reply held none"
    return [f"{text}."]


def _lost(judgements: Sequence[Judgement], near_test: int, unique: int, count: int) -> Losses:
    """Why candidates were lost; each invalid one is counted once, under the first check that it failed.

    Those that could not be judged, because a reply was cut, refused or empty, count separately from the invalid ones.
    """
    reasons = Counter(row.failed[0] for row in judgements if not row.valid and row.unjudged is None)
    missing = Counter(row.failed[0] for row in judgements if row.unjudged is not None)
    valid = sum(row.valid for row in judgements)
    return Losses(
        candidates=len(judgements),
        invalid=reasons.total(),
        invalid_by_check=dict(reasons.most_common()),
        not_judged_by_outcome=dict(missing.most_common()),
        near_test=near_test,
        duplicate=valid - near_test - unique,
        not_selected=unique - count,
        kept=count,
    )
