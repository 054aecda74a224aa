"""How a recipe, a run and scores look at the end of a notebook cell and in a terminal.

Tables, headings and colours are the notebook's own, so that all of it is readable in its light and its dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimsyn.base.labels import SELECTION_LABELS, variant_label
from optimsyn.base.table import Table, decimals_for, fixed
from optimsyn.runs.outcomes import STAGE_LABELS, stage_outcome

if TYPE_CHECKING:
    from optimsyn.influence.scorer import Scores
    from optimsyn.machine.preflight import Preflight
    from optimsyn.recipe.recipe import ModelSpec, Recipe, Source
    from optimsyn.runs.folder import Run

_MARKS = {"finished": "✓", "failed": "✗", "interrupted": "■", "running": "…", "pending": "·"}
_LONGEST_ERROR = 300
_QUESTIONS = {"validation": "validation questions", "test": "test questions"}


def recipe_table(recipe: Recipe) -> Table:
    """What a recipe does: its data, models, sizes and guiding text. Of keys it knows only the variable's name."""
    models = recipe.models
    prompt, policy = recipe.optimizers.prompt, recipe.optimizers.policy
    rows = [
        ("documents", _source(recipe.documents.source)),
        ("validation questions", _source(recipe.questions.validation)),
        ("test questions", _test(recipe)),
        ("generator", _model(models.generator)),
        ("rubric model", _model(models.rubric)),
        ("target", f"{_model(models.target)}, up to {models.target.max_length} tokens"),
    ]
    if models.reflection is not None:
        rows.append(("reflection", _model(models.reflection)))
    learned = [
        f"guiding text by GEPA, {prompt.metric_calls:,} judged pairs" if prompt.enabled else "",
        f"rubric model by GRPO, {policy.steps:,} steps of {policy.passages_per_step} × {policy.group_size}"
        if policy.enabled
        else "",
    ]
    rows += [
        ("warm-up", f"{recipe.warm_up.pairs:,} first-draft pairs, {_warm_up_steps(recipe)}"),
        ("influence", f"{recipe.influence.estimator}, {recipe.influence.normalization}, {recipe.influence.method}"),
        ("learned", "; ".join(filter(None, learned)) or "nothing: both optimisers are disabled"),
        ("variants", ", ".join(variant_label(name) for name in recipe.variants)),
        (
            "pairs",
            f"{recipe.synthesis.pairs:,} a variant, selected by {SELECTION_LABELS[recipe.synthesis.select]}; "
            f"the dataset is that of the {variant_label(recipe.dataset_variant)}",
        ),
        ("fine-tuning", f"{recipe.fine_tune.steps:,} steps of {recipe.fine_tune.batch_size}"),
        ("limits", _limits(recipe)),
        ("seed", str(recipe.seed)),
        ("guiding text", " ".join(recipe.guiding_text.split())),
    ]
    title = f"Recipe {recipe.name}, fingerprint {recipe.fingerprint}"
    return Table(title, ("what", "value"), tuple(rows), note=recipe.description)


def _warm_up_steps(recipe: Recipe) -> str:
    given = recipe.warm_up.steps
    return f"{given:,} steps" if given is not None else f"up to {recipe.warm_up.max_steps:,} steps, as many as it takes"


def run_table(run: Run) -> Table:
    """The stages of a run with state and outcome; nothing in it changes when a finished run is opened again."""
    rows = []
    for number_, record in enumerate(run.manifest.stages, 1):
        mark = f"{_MARKS[record.status]} {record.status}"
        rows.append((f"{number_}. {STAGE_LABELS[record.name]}", mark, _outcome(run, record.name, record.error)))
    return Table(f"Run {run.name}", ("stage", "state", "outcome"), tuple(rows))


def _outcome(run: Run, stage: str, error: str | None) -> str:
    import json

    if error is not None:
        return error if len(error) <= _LONGEST_ERROR else error[: _LONGEST_ERROR - 1] + "…"
    # Not `run.path`, which makes folders: showing a run changes nothing.
    file = run.folder / stage / "result.json"
    if not file.is_file():
        return ""
    result = json.loads(file.read_text(encoding="utf-8"))
    if stage == "evaluate" and result["rows"]:
        return f"{len({row[0] for row in result['rows']})} targets on {result['rows'][0][5]:,} test questions"
    return stage_outcome(stage, result["numbers"])


def scores_table(scores: Scores) -> Table:
    """Quantiles of the scores, in all and by subtask."""
    columns: list[tuple[str, Sequence[float]]] = [("influence", scores.total.tolist())]
    if len(scores.subtasks) > 1:
        columns += [(name, scores.by_subtask[:, place].tolist()) for place, name in enumerate(scores.subtasks)]
    if scores.gradient_norm is not None:
        columns.append(("gradient norm", scores.gradient_norm.tolist()))
    columns += [("loss", scores.loss.tolist()), ("answer tokens", [float(n) for n in scores.label_tokens.tolist()])]
    rows = tuple((name.replace("_", " "), *_quantiles(values)) for name, values in columns)
    note = "" if scores.token_shares is None else "With the share of each answer token in `token_shares`."
    return Table(
        f"Scores of {len(scores):,} samples",
        ("what", "lowest", "25%", "median", "75%", "highest", "mean"),
        rows,
        frozenset(range(1, 7)),
        note,
    )


def preflight_table(found: Preflight) -> Table:
    """What would stop a run, what to know, and what it would read."""
    rows = [("✗ problem", text) for text in found.problems] + [("! note", text) for text in found.warnings]
    rows += [("? not checked", text) for text in found.unchecked]
    rows += [("read", f"{count:,} {_QUESTIONS.get(what, what)}") for what, count in found.counts.items()]
    if found.forecast is not None:
        rows.append(("will send", found.forecast.sentence))
    rows += [] if found.disk is None else [("disk", found.disk.text())]
    title = "Nothing would stop this run" if found.ok else f"{len(found.problems)} things would stop this run"
    return Table(title if len(found.problems) != 1 else "One thing would stop this run", ("what", ""), tuple(rows))


def _quantiles(values: Sequence[float]) -> list[str]:
    import statistics

    if not values:
        return ["–"] * 6
    ordered = sorted(values)
    quarters = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    decimals = decimals_for(ordered)
    return [fixed(value, decimals) for value in (ordered[0], *quarters, ordered[-1], statistics.fmean(ordered))]


def _source(source: Source) -> str:
    name = source.path if source.path is not None else f"hub:{source.hub}"
    parts = [str(name)]
    if source.hub is not None:
        parts += [part for part in (source.config, source.split, source.revision) if part]
    parts += [f"{column} = {value}" for column, value in source.where.items()]
    if source.limit is not None:
        parts.append(f"at most {source.limit:,}")
    return ", ".join(parts)


def _test(recipe: Recipe) -> str:
    questions = recipe.questions
    if questions.test is not None:
        return _source(questions.test)
    return f"{questions.test_fraction:.0%} of the validation questions' groups, held back"


def _model(spec: ModelSpec) -> str:
    parts: list[str] = [f"{spec.name}@{spec.revision}" if spec.revision else spec.name]
    if spec.api_base is not None:
        parts.append(f"at {spec.api_base}")
    if spec.api_key_env is not None:
        parts.append(f"key from ${spec.api_key_env}")
    return ", ".join(parts)


def _limits(recipe: Recipe) -> str:
    limits = recipe.limits
    told: list[tuple[Any, str]] = [
        (limits.cost_usd, "{:g} USD"),
        (limits.requests, "{:,} requests"),
        (limits.tokens, "{:,} tokens"),
        (limits.stage_minutes, "{:g} minutes a stage"),
    ]
    return ", ".join(text.format(value) for value, text in told if value is not None) or "none"
