"""The report of a run: one small page that says what came in, what came out and what it is worth.

It is made from the files of the run alone, for finished, failed and interrupted runs alike, and needs nothing beside
it: no script, no picture file, no request to anywhere. The same files give the same bytes.
"""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from optimsyn.base.counting import plural
from optimsyn.base.files import write_text
from optimsyn.base.terminal.labels import SOURCE_LABELS, method_label, metric_label, outcome_table, variant_label
from optimsyn.base.terminal.table import decimals_for, duration, fixed, number
from optimsyn.report.charts import influence_chart, interval_chart, policy_chart, prompt_chart
from optimsyn.report.facts import RunFacts
from optimsyn.report.page.pairs import extremes, side_by_side
from optimsyn.report.page.verdict import verdict
from optimsyn.report.rendering import render
from optimsyn.report.word_diff import word_diff
from optimsyn.reward.look.record import reward_look_rows
from optimsyn.runs.folder import Run
from optimsyn.runs.forecast import Range, counted, money
from optimsyn.runs.manifest import Manifest, StageRecord
from optimsyn.runs.outcomes import judgement, run_notes, stage_outcome
from optimsyn.runs.results.built_in import HELD_COLUMNS
from optimsyn.runs.results.text_search import TextSearch
from optimsyn.training.intervals import MetricRow, differs

REPORT = "report.html"
_REASONS = 12
_FILES = (
    ("dataset/README.md", "dataset card"),
    ("dataset/train.parquet", "dataset, Parquet with lineage"),
    ("dataset/train.jsonl", "dataset, chat JSON lines"),
    ("evaluation.json", "evaluation"),
    ("summary.json", "summary"),
    ("rewards.jsonl", "every judged pair"),
    ("recipe.yaml", "recipe"),
    ("manifest.json", "manifest"),
)
# The variant, how many candidates it has, and what became of them: name, tone and count of each part of the bar.
Bar = tuple[str, int, list[tuple[str, str, int]]]


def write_report(run: Run) -> Path:
    """Writes `report.html` into the run folder, whatever state the run is in.

    Args:
        run: The run; nothing of it is executed, and no model library is loaded.

    Returns:
        The page.

    Raises:
        DataError: A file of the run is damaged; names it.
    """
    path, facts = run.folder / REPORT, RunFacts.read(run)
    write_text(path, render("report.html.j2", facts.secrets, **context_of(facts)))
    return path


def context_of(facts: RunFacts) -> dict[str, Any]:
    """The variables of the template."""
    warm, stages = facts.warm_up, facts.manifest.stages
    replies = outcome_table(facts.manifest.outcomes)
    prompt = facts.recipe.optimizers.prompt
    charts = (
        prompt_chart(facts.prompt_history, prompt.method),
        policy_chart(facts.policy_history, facts.recipe.optimizers.policy.method),
        prompt_chart(facts.second_history, prompt.method, "Guiding text, second turn"),
    )
    guiding = again = None
    if prompt.enabled and facts.guiding_text is not None:
        guiding = _change(facts, facts.guiding_text, facts.optimize_prompt)
    if facts.second_text is not None and facts.train_policy is not None and facts.train_policy.second_turn is not None:
        again = _change(facts, facts.second_text, facts.train_policy.second_turn)
    # These two stages have their own below their tables.
    apart = ("evaluate", "optimize_prompt" if guiding else "")
    notes = [note for stage, result in facts.results.items() if stage not in apart for note in result.notes]
    of_services = run_notes(facts.manifest.services, facts.manifest.outcomes)
    by_metric: dict[str, list[MetricRow]] = {}
    for row in facts.evaluation:
        by_metric.setdefault(row["metric"], []).append(row)
    return {
        "facts": facts,
        "recipe": facts.recipe,
        "verdict": verdict(facts),
        "tiles": _tiles(facts),
        "came_in": facts.prepare.rows if facts.prepare is not None else (),
        "lost": _lost(facts),
        "bars": _bars(facts),
        "failed_checks": _failed_checks(facts),
        "look": facts.reward_look,
        "look_rows": () if facts.reward_look is None else reward_look_rows(facts.reward_look),
        "influence": influence_chart(facts.influence, zero_gradient=warm.zero_gradient_baseline if warm else None)
        if facts.influence
        else None,
        "influence_rows": _influence_rows(facts),
        "decimals": _decimals(facts),
        "rewards": [chart for chart in charts if chart],
        "policy": facts.train_policy,
        "held_columns": HELD_COLUMNS,
        "guiding": guiding,
        "again": again,
        "pairs": extremes(facts),
        "side_by_side": side_by_side(facts),
        "metrics": by_metric,
        "against_no_rubric": {
            (row["variant"], row["metric"]): row for row in facts.against_no_rubric if row["difference"] is not None
        },
        "metric_charts": [interval_chart(metric, rows) for metric, rows in by_metric.items()],
        "stages": [(record, _outcome(facts, record)) for record in stages],
        "totals": {
            "seconds": sum(record.seconds or 0.0 for record in stages),
            "peak": max((r.peak_memory_bytes for r in stages if r.peak_memory_bytes is not None), default=None),
            "by_stage": any(record.cost.replies for record in stages),
            "cost": facts.manifest.cost,
        },
        "replies": replies[1],
        "reply_columns": replies[0],
        "forecast_rows": forecast_rows(facts.manifest),
        "facts_of_run": _facts_of_run(facts),
        "files": [(path, label) for path, label in _FILES if (facts.folder / path).is_file()],
        "notebooks": sorted(path.name for path in (facts.folder / "notebooks").glob("*.ipynb")),
        "recipe_yaml": facts.recipe.to_yaml(),
        "notes": [*notes, *(f"{note[:1].upper()}{note[1:]}." for note in of_services)],
    }


def _change(facts: RunFacts, text: str, search: TextSearch | None) -> dict[str, Any]:
    """A searched text beside the recipe's, for the template."""
    before, after = (" ".join(each.split()) for each in (facts.recipe.guiding_text, text))
    return {"before": before, "parts": word_diff(before, after), "search": search}


def _decimals(facts: RunFacts) -> int:
    return decimals_for(value for values in facts.influence.values() for value in values)


def _tiles(facts: RunFacts) -> list[tuple[str, str, str]]:
    """The key numbers: value, label, details."""
    tiles = []
    prepared, variant = facts.prepare, facts.dataset_variant
    if prepared is not None and prepared.passages is not None:
        more = "" if prepared.documents is None else f"from {plural(prepared.documents, 'document')}"
        tiles.append((f"{prepared.passages:,}", "passages", more))
    if facts.dataset_pairs is not None:
        tiles.append((f"{facts.dataset_pairs:,}", "pairs in the dataset", variant_label(variant)))
    influence, decimals = facts.influence, _decimals(facts)
    if variant in influence:
        before = ""
        if facts.first_draft:
            before = f"first draft: {fixed(statistics.median(facts.first_draft), decimals)}"
        tiles.append((fixed(statistics.median(influence[variant]), decimals), "median influence", before))
    for row in facts.evaluation:
        if row["variant"] == variant and row["difference"] is not None:
            more = f"{judgement(row)}, {plural(row['n'], 'test question')}, one seed"
            tiles.append((number(row["difference"], sign=True), f"change of {metric_label(row['metric'])}", more))
            break
    seconds = [record.seconds for record in facts.manifest.stages if record.seconds is not None]
    if seconds:
        tiles.append((duration(sum(seconds)), "in all stages", ""))
    cost = facts.manifest.cost
    if cost.replies:
        tokens = cost.input_tokens + cost.output_tokens
        tiles.append((cost.usd(), "spent", f"{plural(cost.replies, 'reply', 'replies')}, {plural(tokens, 'token')}"))
    return tiles


def _lost(facts: RunFacts) -> list[tuple[str, str, int]]:
    """Rows lost before synthesis by stage and reason, most frequent first within a stage."""
    counts = Counter((row["stage"], row["reason"]) for row in facts.lost)
    stages = list(dict.fromkeys(row["stage"] for row in facts.lost))
    ordered = sorted(counts.items(), key=lambda item: (stages.index(item[0][0]), -item[1], item[0][1]))
    first = [(stage, reason, count) for (stage, reason), count in ordered[:_REASONS]]
    rest = sum(count for _, count in ordered[_REASONS:])
    return [*first, ("", f"{len(ordered) - _REASONS} further reasons", rest)] if rest else first


def _bars(facts: RunFacts) -> list[Bar]:
    bars: list[Bar] = []
    draft = facts.warm_up
    if draft is not None and draft.valid is not None and draft.first_draft is not None:
        parts = [("valid", "kept", draft.valid), ("failed a check", "invalid", draft.first_draft - draft.valid)]
        bars.append(("first_draft", draft.first_draft, parts))
    for variant, rows in facts.candidates.items():
        counts = facts.losses.get(variant)
        if counts is None:
            valid = sum(row["valid"] for row in rows)
            missing = sum(row.get("unjudged") is not None for row in rows)
            parts = [
                ("valid", "kept", valid),
                ("failed a check", "invalid", len(rows) - valid - missing),
                ("not judged", "left", missing),
            ]
        else:
            parts = [
                ("kept", "kept", counts.kept or 0),
                ("not selected", "left", counts.not_selected or 0),
                ("near a test question", "left", counts.near_test),
                ("repeated another", "repeated", counts.duplicate or 0),
                ("failed a check", "invalid", counts.invalid or 0),
                ("not judged", "left", counts.not_judged),
            ]
        bars.append((variant, len(rows), parts))
    return [(variant, total, [part for part in parts if part[2]]) for variant, total, parts in bars]


def _failed_checks(facts: RunFacts) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """Variants, and for each failed check how many candidates of each variant failed it first."""
    checks: dict[str, Counter[str]] = {
        variant: Counter(row["failed"][0] for row in rows if not row["valid"] and row["failed"])
        for variant, rows in facts.candidates.items()
    }
    draft = facts.warm_up
    if draft is not None and draft.lost:
        checks = {"first_draft": Counter(draft.lost), **checks}
    total: Counter[str] = sum(checks.values(), Counter())
    return list(checks), [(name, [counts[name] for counts in checks.values()]) for name, _ in total.most_common()]


def _influence_rows(facts: RunFacts) -> list[tuple[str, int, list[float], float | None]]:
    """For each variant: valid pairs; median, mean, highest; median of the selected."""
    rows = []
    for variant, values in facts.influence.items():
        keys = facts.kept.get(variant, ())
        kept = [row["influence"] for row in facts.candidates.get(variant, ()) if row["key"] in keys]
        numbers = [statistics.median(values), statistics.fmean(values), max(values)]
        rows.append((variant, len(values), numbers, statistics.median(kept) if kept else None))
    return rows


def forecast_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    """A row for each stage: forecast and actual requests, tokens and money; none without a forecast."""
    forecast = manifest.forecast
    if forecast is None or not forecast.stages:
        return []
    pairs = [(stage.stage, stage, manifest.stage(stage.stage)) for stage in forecast.stages]
    stages = [(name, planned, record.cost if record.attempts else None) for name, planned, record in pairs]
    rows: list[tuple[str, ...]] = []
    for name, planned, sent in [*stages, ("in all", forecast.total, manifest.cost)]:
        # A stage that has not started has nothing to compare.
        requests, tokens, usd = (
            ("–",) * 3
            if sent is None
            else (
                f"{sent.replies:,}",
                f"{sent.input_tokens + sent.output_tokens:,}",
                money(Range.exactly(sent.cost_usd), unit=""),
            )
        )
        planned_tokens = counted(planned.input_tokens + planned.output_tokens)
        row = (name, counted(planned.requests), requests, planned_tokens, tokens, money(planned.cost_usd, unit=""), usd)
        rows.append(row)
    return rows


def _outcome(facts: RunFacts, record: StageRecord) -> str:
    if record.status == "pending":
        return ""
    if record.status != "finished":
        return (record.error or "").split("\n")[0]
    if record.name == "evaluate" and facts.evaluation:
        variants = len({row["variant"] for row in facts.evaluation})
        clear = sum(differs(row) for row in facts.evaluation)
        questions = max(row["n"] for row in facts.evaluation)
        return f"{plural(variants, 'target')} on {plural(questions, 'test question')}, {clear} clear differences"
    return stage_outcome(facts.results.get(record.name))


def _facts_of_run(facts: RunFacts) -> list[tuple[str, str]]:
    recipe, manifest = facts.recipe, facts.manifest
    models, optimizers = recipe.models, recipe.optimizers
    roles = {"Generator": models.generator, "Rubric model": models.rubric, "Target": models.target}
    if models.reflection is not None:
        roles["Reflection"] = models.reflection
    if models.judge is not None:
        roles["Judge"] = models.judge
    if models.author is not None:
        roles["Author"] = models.author
    if recipe.fine_tune.target is not None:
        roles["Fine-tuned on its pairs"] = recipe.fine_tune.target
    looked = "not yet" if facts.reward_look is None else facts.reward_look.verdict
    sections = (("guiding text", optimizers.prompt), ("rubric model", optimizers.policy))
    spreads = " standard deviations of the first drafts'" if recipe.reward.penalty_unit == "spread" else ""
    redrafts = ""
    if recipe.checks.redrafts:
        redrafts = f"; a pair that is not valid is written again, {plural(recipe.checks.redrafts, 'time')} at most"
    used = [f"{method_label(section.method)} on the {label}" for label, section in sections if section.enabled]
    return [
        ("Recipe", recipe.name),
        ("Fingerprint", manifest.fingerprint),
        ("Seeds", ", ".join(f"{name} {seed}" for name, seed in manifest.seeds.items())),
        ("Created", manifest.created.replace("T", " ").replace("+00:00", " UTC")),
        *((role, f"{spec.name}@{spec.revision}" if spec.revision else spec.name) for role, spec in roles.items()),
        (
            "Influence",
            f"{recipe.influence.label}, method {recipe.influence.method}, "
            f"{recipe.influence.across_subtasks} across subtasks"
            if recipe.influence.is_influence
            else f"in its place {recipe.influence.label}",
        ),
        (
            "Reward",
            (
                f"influence if valid, −{recipe.reward.invalid_penalty:g}{spreads} if not"
                if not recipe.reward.is_control
                else f"{SOURCE_LABELS[recipe.reward.source]} if valid, a penalty if not"
            )
            + redrafts,
        ),
        ("A look at the reward", looked if recipe.reward.look.pairs else "none: the recipe has reward.look.pairs: 0"),
        ("Optimisers", ", ".join(used) or "none"),
        ("Selection", f"{plural(recipe.synthesis.pairs, 'pair')} a variant by {recipe.selection_label}"),
    ]
