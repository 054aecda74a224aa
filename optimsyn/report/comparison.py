"""Several runs on one page: state, results, differences and cost."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any
from urllib.parse import quote

from optimsyn.base.errors import StageError
from optimsyn.base.files import write_text
from optimsyn.base.terminal.labels import metric_label
from optimsyn.base.terminal.table import decimals_for
from optimsyn.recipe.recipe import Recipe
from optimsyn.report.charts import Chart, interval_chart
from optimsyn.report.facts import RunFacts
from optimsyn.report.page.report import REPORT
from optimsyn.report.page.verdict import Verdict, verdict
from optimsyn.report.rendering import cut, render
from optimsyn.report.word_diff import Part, word_diff
from optimsyn.runs.folder import Run
from optimsyn.training.intervals import UNTUNED, MetricRow

# With more lines, a picture shows only the target, pairs without a rubric and the dataset of each run.
_MOST_LINES = 40
_MOST_COLUMNS = 4
_LONGEST_VALUE = 160
_CHANGE = {"value": "", "low": "_low", "high": "_high"}
# Shown in other sections.
_ELSEWHERE = frozenset({"name", "description", "guiding_text"})


@dataclass(frozen=True)
class Compared:
    """One run on the page.

    Attributes:
        label: Its name, with the parent folder if two names are equal.
        link: Relative link to its report; "" if there is none.
        test_set: A letter for its set of test questions; "" before `prepare` has finished.
        key: The dataset variant's row of each metric.
        medians: Median influence of the valid pairs by variant, and their number.
        times: Seconds of each stage's last attempt.
    """

    label: str
    facts: RunFacts
    verdict: Verdict
    place: str
    link: str
    test_set: str
    key: dict[str, MetricRow]
    medians: dict[str, tuple[float, int]]
    guiding: list[Part] | None
    times: dict[str, float]


def write_comparison(runs: Sequence[Run], path: Path) -> Path:
    """Writes a page that compares runs in any state.

    Args:
        runs: Two or more; duplicates are shown once.
        path: The file to write; links to reports are relative to it.

    Returns:
        The page.

    Raises:
        StageError: There are fewer than two runs.
        DataError: A file of a run is damaged; names it.
    """
    distinct = list({run.folder: run for run in runs}.values())
    if len(distinct) < 2:
        raise StageError("a comparison needs two runs or more; give their folders")
    facts = [RunFacts.read(run) for run in distinct]
    compared = _compared(facts, path.resolve().parent)
    secrets = sorted({secret for run in facts for secret in run.secrets}, key=len, reverse=True)
    metrics = list(dict.fromkeys(row["metric"] for run in facts for row in run.evaluation))
    several = len({run.test_set for run in compared if run.test_set}) > 1
    drawn = {row["variant"] for metric in metrics for _, row in _lines(metric, compared, changes=several)}
    variants = list(dict.fromkeys(["first_draft", *(name for run in facts for name in run.recipe.fine_tuned)]))
    context: dict[str, Any] = {
        "runs": compared,
        "warnings": _warnings(compared),
        "several_tests": several,
        "metrics": metrics,
        "charts": [_chart(metric, compared, changes=several) for metric in metrics],
        "chart_variants": [name for name in [UNTUNED, *variants] if name in drawn],
        "decimals": decimals_for(median for run in compared for median, _ in run.medians.values()),
        "influence_variants": [name for name in variants if any(name in run.medians for run in compared)],
        "differing": differing({run.label: run.facts.recipe for run in compared}),
        "columns": len(compared) <= _MOST_COLUMNS,
        "stages": _stages(facts),
    }
    write_text(path, render("compare.html.j2", secrets, **context))
    return path


def _compared(facts: Sequence[RunFacts], folder: Path) -> list[Compared]:
    names = [run.name for run in facts]
    tests = dict.fromkeys(run.test_set for run in facts if run.test_set)
    letters = dict(zip(tests, [*ascii_uppercase, *map(str, range(27, len(tests) + 1))], strict=False))
    compared = []
    for run in facts:
        report = run.folder / REPORT
        link = quote(Path(os.path.relpath(report, folder)).as_posix()) if report.is_file() else ""
        guiding = None
        if run.searched_text is not None:
            guiding = word_diff(" ".join(run.recipe.guiding_text.split()), " ".join(run.searched_text.split()))
        compared.append(
            Compared(
                label=run.name if names.count(run.name) == 1 else f"{run.folder.parent.name}/{run.name}",
                facts=run,
                verdict=verdict(run),
                place=run.state.place,
                link=link,
                test_set=letters[run.test_set] if run.test_set else "",
                key={row["metric"]: row for row in run.evaluation if row["variant"] == run.dataset_variant},
                medians={name: (statistics.median(values), len(values)) for name, values in run.influence.items()},
                guiding=guiding,
                times={record.name: record.seconds for record in run.manifest.stages if record.seconds is not None},
            )
        )
    return compared


def _stages(runs: Sequence[RunFacts]) -> list[str]:
    """All stages of the runs, in order."""
    stages: list[str] = []
    for run in runs:
        place = 0
        for name in run.manifest.names:
            if name not in stages:
                stages.insert(place, name)
            place = stages.index(name) + 1
    return stages


def _warnings(runs: Sequence[Compared]) -> list[str]:
    """Reasons why numbers of these runs are not comparable."""
    warnings = []
    tests = dict.fromkeys(run.test_set for run in runs if run.test_set)
    if len(tests) > 1:
        warnings.append(
            f"These runs have {len(tests)} different sets of test questions, marked "
            f"{', '.join(tests)}. Values are comparable only under the same letter; between letters compare only the "
            "change against the target as it came, each on its own questions."
        )
    targets = {run.facts.recipe.trained_target.name for run in runs}
    if len(targets) > 1:
        warnings.append(
            f"They have different targets ({', '.join(sorted(targets))}): neither losses nor influence compare."
        )
    scales = {json.dumps(run.facts.recipe.influence.model_dump(exclude={"batch_tokens", "method"})) for run in runs}
    directions = {run.facts.validation_set for run in runs if run.facts.validation_set}
    if len(scales) > 1:
        warnings.append("They compute influence in different ways, so influence is on different scales.")
    elif len(directions) > 1:
        warnings.append("Their validation questions differ, so influence points in different directions.")
    if len({run.facts.recipe.seed_label for run in runs}) == 1 and sum(bool(run.facts.evaluation) for run in runs) > 1:
        warnings.append(
            "All have the same seed. Intervals are over questions: another seed may move every number by more."
        )
    return warnings


def _lines(metric: str, runs: Sequence[Compared], *, changes: bool) -> list[tuple[Compared, MetricRow]]:
    lines = [(run, row) for run in runs for row in run.facts.evaluation if row["metric"] == metric]
    if changes:
        lines = [(run, row) for run, row in lines if row["difference"] is not None]
    if len(lines) <= _MOST_LINES:
        return lines
    return [(run, row) for run, row in lines if row["variant"] in (UNTUNED, "no_rubric", run.facts.dataset_variant)]


def _chart(metric: str, runs: Sequence[Compared], *, changes: bool) -> Chart:
    """One metric of all runs: values, or changes against the target as it came."""
    lines = _lines(metric, runs, changes=changes)
    rows: list[dict[str, Any]] = [dict(row) for _, row in lines]
    if changes:
        rows = [row | {end: row[f"difference{more}"] for end, more in _CHANGE.items()} for row in rows]
    several = len({run.test_set for run in runs}) > 1
    labels = [f"{run.label} ({run.test_set})" if several else run.label for run, _ in lines]
    chart = interval_chart(metric, rows, labels, zero=changes)
    if changes:
        chart.title = f"{metric_label(metric)}: change against the target as it came"
    return chart


def differing(recipes: Mapping[str, Recipe]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Fields that differ between recipes: each with its values and the names of the recipes that have them."""
    flat = {name: _flat(recipe.model_dump(mode="json")) for name, recipe in recipes.items()}
    fields = dict.fromkeys(field for values in flat.values() for field in values)
    rows = []
    for field in fields:
        if field.split(".")[0] in _ELSEWHERE:
            continue
        values: dict[str, list[str]] = {}
        for name, own in flat.items():
            values.setdefault(own.get(field, "–"), []).append(name)
        if len(values) > 1:
            rows.append((field, list(values.items())))
    return rows


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {
            key: text
            for part, item in value.items()
            for key, text in _flat(item, f"{name}.{part}" if name else part).items()
        }
    if isinstance(value, str):
        return {name: cut(value, _LONGEST_VALUE)}
    return {name: "–" if value is None else cut(json.dumps(value, ensure_ascii=False), _LONGEST_VALUE)}
