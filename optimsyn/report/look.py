"""Looks at what the stages of a run have left on disk, as tables and pictures for a notebook; nothing is recomputed.

from optimsyn.report import look

look.passages(run)
look.warm_up_picture(run)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from optimsyn.base.counting import plural
from optimsyn.base.errors import StageError
from optimsyn.base.files import iter_json, read_jsonl
from optimsyn.base.seeds import search_seed, turn_seed
from optimsyn.base.terminal.labels import method_label, metric_label, variant_label
from optimsyn.base.terminal.table import Table, number
from optimsyn.data.forms import as_text, shown
from optimsyn.data.records import Pair, Passage, Question
from optimsyn.data.text import word_count
from optimsyn.influence.attribution.records import SHARES_FILE, TokenShares
from optimsyn.optimize.history import read_history
from optimsyn.report import stage_plots
from optimsyn.report.drawing import Picture
from optimsyn.report.heatmap import Heatmap
from optimsyn.report.tables import evaluation_table
from optimsyn.reward.judgements import LedgerRow, content_key, latest_rows
from optimsyn.reward.look.record import REWARD_LOOK_FILE, RewardLook
from optimsyn.runs.folder import Run
from optimsyn.runs.results.built_in import WarmUpResult
from optimsyn.target.warm_up.curve import WarmUpCurve
from optimsyn.training.intervals import differs

# Written by `benchmarks/policy_remedies.py`.
_POLICIES = Path(__file__).parents[1] / "data" / "bundled" / "policies.json"


def passages(run: Run, count: int = 1) -> Table:
    """The first passages, with their position in the document."""
    records = read_jsonl(run.path("prepare", "passages.jsonl"), Passage)
    rows = tuple((p.title or p.document_id, f"{p.char_start}–{p.char_end}", p.text) for p in records[:count])
    note = "text == document.text[from:to], exactly: every pair can be traced to the words that it came from."
    return Table(_first(count, len(records), "passage"), ("document", "characters", "text"), rows, note=note)


def questions(run: Run, count: int = 3) -> Table:
    """Some validation questions, one per subtask first; test questions are never shown."""
    records = read_jsonl(run.path("prepare", "validation.jsonl"), Question)
    one_each = {question.subtask: question for question in reversed(records)}
    picked = [q for q in records if one_each[q.subtask] is q]
    picked = [*picked, *(q for q in records if q not in picked)][:count]
    rows = tuple((q.subtask, q.question, shown(q)[1]) for q in picked)
    return Table(_first(count, len(records), "validation question"), ("subtask", "question", "answer"), rows)


def prepare_picture(run: Run) -> Picture:
    """Lengths of the passages, and rows lost."""
    words = [word_count(passage.text) for passage in read_jsonl(run.path("prepare", "passages.jsonl"), Passage)]
    lost = Counter(row["reason"] for row in iter_json(run.path("prepare", "lost.jsonl")))
    return stage_plots.passages_figure(words, dict(lost.most_common()), longest=run.recipe.documents.passage_words)


def first_draft(run: Run, count: int = 2) -> Table:
    """The valid pairs of the first draft with the highest and the lowest influence, each with its rubric."""
    titles, pairs = _titles(run), read_jsonl(run.path("warm_up", "pairs.jsonl"), Pair)
    order = sorted(zip(_draft_influence(run), pairs, strict=True), key=lambda item: -item[0])
    picked = order if len(order) <= count else [*order[: (count + 1) // 2], *order[len(order) - count // 2 :]]
    rows = tuple((titles.get(p.passage_id, ""), _rubric(p), as_text(p), number(value)) for value, p in picked)
    columns = ("passage", "rubric", "pair", "influence")
    return Table(f"{len(rows)} of {len(pairs)} first-draft pairs", columns, rows, frozenset({3}))


def warm_up_curve(run: Run) -> Picture:
    """The losses that decided the warm-up's steps, and the learning rates that it tried."""
    return stage_plots.warm_up_curve_figure(_curve(run))


def reward(run: Run) -> RewardLook | Table:
    """The findings on the reward after the warm-up."""
    path = run.path("warm_up", REWARD_LOOK_FILE)
    if path.is_file():
        return RewardLook.load(path)
    return Table("A look at the reward", ("what", "value"), (("none", "the recipe has reward.look.pairs: 0"),))


def warm_up_picture(run: Run) -> Picture:
    """Loss of the warm-up, and influence of the first draft beside that of no gradient."""
    baseline = WarmUpResult.load(run).zero_gradient_baseline
    return stage_plots.warm_up_figure(_curve(run).losses, _draft_influence(run), zero_gradient=baseline)


def guiding_texts(run: Run, turn: int = 1) -> Table:
    """Every guiding text that was tried, with its reward and outcome; turn 2 is the search after the training."""
    rows = tuple(
        (str(row.get("judged", "–")), _became(row), number(row["score"]), row["guiding_text"])
        for row in _searched(run, turn)
        if row.get("score") is not None and "guiding_text" in row
    )
    note = (
        "A rejected text was judged on its first passages alone, so its reward is not comparable with those of the "
        "others, only with that of its parent on the same passages."
    )
    columns = ("pairs judged so far", "what became of it", "reward", "guiding text")
    again = " with rubrics of the trained policy" if turn > 1 else ""
    title = f"Guiding texts, tried by {method_label(run.recipe.optimizers.prompt.method)}{again}"
    return Table(title, columns, rows, frozenset({0, 2}), note)


def _became(row: dict[str, Any]) -> str:
    status, passages = str(row.get("status", "–")), row.get("passages")
    return status if passages is None else f"{status} on {plural(passages, 'passage')}"


def prompt_picture(run: Run, turn: int = 1) -> Picture:
    """The search for a better guiding text; turn 2 is the search after the training."""
    return stage_plots.prompt_search_figure(_searched(run, turn))


def _searched(run: Run, turn: int) -> list[dict[str, Any]]:
    folder = ("optimize_prompt",) if turn == 1 else ("train_policy", "text")
    return read_history(run.path(*folder, "history.jsonl"))


def policy_groups(run: Run, count: int = 1) -> Table:
    """Rubrics that the training compared for one passage, their pairs and rewards relative to the mean.

    Groups with equal rewards, which teach nothing, come last.
    """
    rows: list[tuple[str, ...]] = []
    by_reward = {title: sorted(members, key=lambda row: -row.reward) for title, members in _groups(run).items()}
    groups = sorted(by_reward.items(), key=lambda item: item[1][-1].reward - item[1][0].reward)
    for title, members in groups[:count]:
        mean = fmean(row.reward for row in members)
        for row in members:
            kind = row.rubric.question_type if row.rubric is not None else "(not readable)"
            outcome = as_text(row.pair) if row.pair is not None else ""
            failed = "" if row.valid else f"\ninvalid: {', '.join(row.failed)}"
            # Equal rewards differ from their mean by rounding.
            above = round(row.reward - mean, 9) + 0.0
            rows.append((title, kind, (outcome + failed).strip(), number(row.reward), number(above, sign=True)))
    columns = ("passage", "question type of the rubric", "pair", "reward", "above the mean")
    note = "What is above the mean of its group becomes more likely. Equal rubrics are judged once."
    listed = min(count, len(groups))
    title = (
        f"{listed} of {plural(len(groups), 'group')}, the one with the widest spread first" if groups else "No groups"
    )
    return Table(title, columns, tuple(rows), frozenset({3, 4}), note)


def policy_picture(run: Run) -> Picture:
    """Rewards within the groups, mean reward over the steps, distance from the untrained model."""
    groups = {title: [(row.reward, row.valid) for row in members] for title, members in _groups(run).items()}
    history = read_history(run.path("train_policy", "history.jsonl"))
    return stage_plots.policy_figure(history, groups, run.recipe.optimizers.policy.method)


def policies_picture() -> Picture:
    """What trained rubric policies gained in optimsyn's own benchmarks, with the embedded model; nothing of a run."""
    rows = json.loads(_POLICIES.read_text(encoding="utf-8"))
    return stage_plots.policies_figure([stage_plots.MeasuredPolicy(**row) for row in rows])


def variants_picture(run: Run) -> Picture:
    """Influence of the valid pairs of each variant."""
    influence: dict[str, list[float]] = {
        variant: [row.influence for row in run.candidates(variant) if row.influence is not None]
        for variant in run.recipe.variants
    }
    baseline = WarmUpResult.load(run).zero_gradient_baseline
    return stage_plots.variants_figure(influence, zero_gradient=baseline)


def best_and_worst(run: Run, count: int = 1) -> Table:
    """The valid pairs of highest and of lowest influence over all variants."""
    rows = [row for variant in run.recipe.variants for row in run.candidates(variant)]
    valid = {
        content_key(row.pair): (row.influence, row.variant, row.pair)
        for row in rows
        if row.pair is not None and row.influence is not None
    }
    order = sorted(valid.values(), key=lambda item: -item[0])
    picked = order if len(order) <= 2 * count else [*order[:count], *order[-count:]]
    body = tuple((number(value), variant_label(name), _rubric(pair), as_text(pair)) for value, name, pair in picked)
    columns = ("influence", "made with", "rubric", "pair")
    title = f"Highest and lowest influence of {plural(len(order), 'different valid pair')}"
    return Table(title, columns, body, frozenset({0}))


def words(run: Run) -> Heatmap:
    """Which words of the best and the worst pairs bring their influence, as `synthesize` saved it.

    Raises:
        StageError: The run has no token shares.
    """
    path = run.path("synthesize", SHARES_FILE)
    if not path.is_file():
        raise StageError(f"{path}: missing; run the stage synthesize again, in a new run")
    record = TokenShares.read(path)
    if record.reason:
        # The pairs are still scored and good.
        return Heatmap((), title=f"No token shares: {record.reason}")
    return Heatmap(record.pairs, title=f"Best and worst pairs made with the {variant_label(record.variant)}")


def dataset(run: Run, count: int = 2) -> Table:
    """The first training rows of the dataset, with their lineage."""
    judged = run.judged(run.recipe.dataset_variant)
    titles = _titles(run)
    rows = tuple(
        (
            as_text(row.pair),
            row.pair.quote,
            f"{titles.get(row.passage_id, row.passage_id)}\ncharacters {row.pair.char_start}–{row.pair.char_end}",
            row.pair.generator,
            number(row.influence),
        )
        for row in judged[:count]
        if row.pair is not None
    )
    columns = ("pair", "sentence that it rests on", "passage", "generator", "influence")
    made_with = variant_label(run.recipe.dataset_variant)
    note = f"dataset/train.parquet and train.jsonl: {plural(len(judged), 'pair')} made with the {made_with}."
    return Table(_first(count, len(judged), "row") + " of the dataset", columns, rows, frozenset({4}), note)


def training_picture(run: Run) -> Picture:
    """Training loss on the pairs of each variant."""
    return stage_plots.training_figure(
        {name: list(iter_json(run.path("fine_tune", name, "history.jsonl"))) for name in run.recipe.fine_tuned}
    )


def evaluation(run: Run) -> Table:
    """Every metric of every variant with its interval and its paired difference to the target as it came."""
    return evaluation_table(_json(run, "evaluation.json"), confidence=run.recipe.evaluation.confidence)


def against_no_rubric(run: Run) -> Table:
    """Effect of rubrics: paired differences to the target trained on as many pairs without one."""
    body = tuple(
        (
            metric_label(row["metric"]),
            variant_label(row["variant"]),
            number(row["difference"], sign=True),
            f"[{number(row['difference_low'], sign=True)}, {number(row['difference_high'], sign=True)}]",
            "apart" if differs(row) else "not told apart",
        )
        for row in _json(run, "evaluate", "against_no_rubric.json")
        if row["difference"] is not None
    )
    percent = f"{run.recipe.evaluation.confidence:.0%}"
    note = f"Paired by question; {percent} bootstrap intervals over questions, of one seed of training."
    columns = ("metric", "variant", "difference to no rubric", percent, "by these questions")
    return Table("Against pairs without a rubric", columns, body, frozenset({2, 3}), note)


def evaluation_picture(run: Run) -> Picture:
    """The evaluation as a picture."""
    return stage_plots.evaluation_figure(_json(run, "evaluation.json"), confidence=run.recipe.evaluation.confidence)


def judged_pairs(run: Run) -> list[Pair]:
    """Every distinct valid pair of a run: first draft, searches and final candidates."""
    drafts = read_jsonl(run.path("warm_up", "pairs.jsonl"), Pair)
    judged = [row.pair for row in _ledger(run) if row.valid and row.pair is not None]
    distinct = {content_key(pair): pair for pair in [*drafts, *judged]}
    return list(distinct.values())


def _groups(run: Run) -> dict[str, list[LedgerRow]]:
    """Judgements of each group of the policy training, by passage title, in order.

    Those of a second search of the guiding text, in the same stage, have seeds of their own.
    """
    searched = turn_seed(run.recipe.seed_of("policy"), 2)
    titles = _titles(run)
    groups: dict[tuple[str, int], list[LedgerRow]] = {}
    for row in _ledger(run, run.path(*_newest_judgements(run))):
        if row.source == "train_policy" and row.seed != search_seed(searched, row.passage_id):
            groups.setdefault((row.passage_id, row.seed), []).append(row)
    by_title: dict[str, list[LedgerRow]] = {}
    for (passage_id, seed), members in groups.items():
        title = titles.get(passage_id) or passage_id
        by_title[title if title not in by_title else f"{title} ({seed})"] = members
    return by_title


def _ledger(run: Run, file: Path | None = None) -> Iterator[LedgerRow]:
    """The judgements so far by the latest scorer and checks; without optimisers there are none before synthesis."""
    return map(LedgerRow.model_validate, latest_rows(file or run.path("rewards.jsonl")))


def _newest_judgements(run: Run) -> tuple[str, ...]:
    """The file with the policy's rubrics as judged last: by the target as it was warmed up again, if it was."""
    found = run.folder.glob("train_policy/warm_up-*/rewards.jsonl")
    again = [int(path.parent.name.rpartition("-")[2]) for path in found]
    return ("train_policy", f"warm_up-{max(again)}", "rewards.jsonl") if again else ("rewards.jsonl",)


def _curve(run: Run) -> WarmUpCurve:
    file = run.path("warm_up", "checkpoints", "curve.json")
    if file.is_file():
        return WarmUpCurve.load(file)
    # Older versions always had a given number of steps.
    steps = [json.loads(path.read_text("utf-8")) for path in sorted(file.parent.glob("step-*/checkpoint.json"))]
    losses = tuple(loss for step in steps for loss in step["losses"])
    return WarmUpCurve(steps[-1].get("lr", 0.0), len(losses), "given", "", "", losses)


def _draft_influence(run: Run) -> list[float]:
    return [float(value) for value in _json(run, "warm_up", "influence.json")]


def _json(run: Run, *parts: str) -> Any:
    return json.loads(run.path(*parts).read_text(encoding="utf-8"))


def _titles(run: Run) -> dict[str, str]:
    return {passage.id: passage.title for passage in read_jsonl(run.path("prepare", "passages.jsonl"), Passage)}


def _rubric(pair: Pair) -> str:
    from optimsyn.programs.rubric import rubric_text

    return rubric_text(pair.rubric) if pair.rubric is not None else "(none)"


def _first(count: int, total: int, noun: str) -> str:
    return f"{min(count, total)} of {plural(total, noun)}"
