"""The page of a study: one HTML file, in the look of a run's report, which needs nothing beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optimsyn.base.counting import plural
from optimsyn.base.terminal.labels import metric_label, variant_color, variant_label
from optimsyn.base.terminal.table import duration, number
from optimsyn.report.charts import Chart
from optimsyn.report.drawing import BLUE, INK, page_axes, svg
from optimsyn.report.panels import draw_curves, draw_intervals, intervals_height
from optimsyn.report.rendering import render
from optimsyn.report.tables import interval
from optimsyn.study.arms.result import ContrastResult, Curve, Estimate, StudyResult
from optimsyn.study.arms.study_file import HIGHER_IS_BETTER, INFLUENCE, METRIC_WORDS, METRICS

STUDY_HTML = "study.html"
LEAST_KL = 0.01
"""A policy that moved less than this, in nats a token, has hardly been trained."""
_WIDTH, _LEFT, _RIGHT = 380.0, 6.0, 374.0
_POOLED = "all domains"
_CONTROL_COLORS = ("#0072B2", "#D55E00", "#8C6D1F", "#009E73", "#56B4E9")


def page_of(result: StudyResult) -> str:
    """The page."""
    design = result.design
    states = Counter(each.state for each in result.cells)
    finished = states["finished"]
    return render(
        "study.html.j2",
        result=result,
        badge=_badge(result, finished),
        design=_design(result),
        outcomes=[_sentence(each, result) for each in result.contrasts],
        tiles=_tiles(result, finished),
        contrasts=[_shown(each, result) for each in result.contrasts],
        forests=[_forest(each, result) for each in result.contrasts if each.pooled is not None],
        metrics=[name for name in METRICS if any(name in each.metrics for each in result.means)],
        metric_names={
            name: metric_label(name)
            if name in ("answer_loss", "accuracy", "token_f1")
            else f"{name.replace('_', ' ')} ↓"
            for name in METRICS
        },
        means=_means(result),
        several_controls=len(design["controls"]) > 1,
        curves=_curves(result.curves, _colors(design)),
        controls=[
            (name, variant_label(name), color) for name, color in _colors(design).items() if name in design["controls"]
        ],
        checks=_checks(result),
        least_kl=LEAST_KL,
        rubrics=result.rubrics,
        failed=[each for each in result.cells if each.reason],
        states=states,
        power=result.power,
        seeds=sorted({number for each in result.power for number in each.detectable}),
        unit=_unit(result.metric),
        confidence=f"{1 - result.alpha:.0%}",
    )


def _unit(metric: str) -> str:
    return "" if metric in HIGHER_IS_BETTER else "nats"


def _badge(result: StudyResult, finished: int) -> tuple[str, str]:
    if finished == len(result.cells):
        return "finished", "good"
    return f"{finished} of {plural(len(result.cells), 'run')} finished", "bad" if any(
        each.reason for each in result.cells
    ) else "open"


def _design(result: StudyResult) -> str:
    """The design in two sentences."""
    design = result.design
    factors = [
        f"{plural(len(design['recipes']), 'domain')} ({', '.join(design['recipes'])})",
        plural(len(design["seeds"]), "seed"),
    ]
    if len(design["controls"]) > 1:
        names = ", ".join(map(variant_label, design["controls"]))
        factors.append(f"{len(design['controls'])} sources of the reward ({names})")
    arms = ", ".join(map(variant_label, design["arms"]))
    return (
        f"{' × '.join(factors)}: {plural(len(result.cells), 'run')}, each with the arms {arms}, which share documents, "
        f"warm-up and test questions. {plural(len(design['contrasts']), 'contrast')} named before the start on "
        f"{result.started[:10]} (design {result.fingerprint}), tested at {result.alpha:g} on "
        f"{METRIC_WORDS[result.metric]}."
    )


def _sentence(each: ContrastResult, result: StudyResult) -> tuple[str, str]:
    """A contrast's outcome in a sentence, and its tone."""
    name, pooled = _label(each), each.pooled
    if pooled is None:
        return f"{name}: no finished pair of runs yet.", ""
    size = f"{number(pooled.value, 3, sign=True)} {_unit(result.metric)}".strip()
    where = f"better in {each.better_in} of {plural(len(each.domains), 'domain')}"
    if pooled.low is None:
        return f"{name}: {size}; no interval, since a single seed (or no spread) says nothing of the next.", ""
    test = each.holm_p if each.registered else pooled.p
    clear = test is not None and test < result.alpha
    verdict = "no difference shown" if not clear else "better" if pooled.better else "worse"
    p = f"Holm p {number(test, 2)}" if each.registered else f"p {number(test, 2)}, not adjusted: added after the start"
    return f"{name}: {verdict} ({size}, {p}); {where}.", "" if not clear else verdict


def _label(each: ContrastResult) -> str:
    return " − ".join(_side(side) for side in (each.left, each.right))


def _side(text: str) -> str:
    arm, _, control = text.partition("@")
    return variant_label(arm) + (f" under {variant_label(control)}" if control else "")


def _tiles(result: StudyResult, finished: int) -> list[tuple[str, str, str]]:
    seconds = sum(each.seconds for each in result.cells)
    questions = max((each.pooled.questions for each in result.contrasts if each.pooled is not None), default=0)
    tiles = [(f"{finished} of {len(result.cells)}", "runs finished", ""), (duration(seconds), "time of all runs", "")]
    if questions:
        groups = max(each.pooled.groups for each in result.contrasts if each.pooled is not None)
        tiles.append((f"{questions:,}", "test questions", f"in {plural(groups, 'group')}"))
    return tiles


def _row(estimate: Estimate) -> dict[str, Any]:
    facts = estimate.model_dump(include={"value", "low", "high"})
    return facts | {"difference": estimate.value, "difference_low": estimate.low, "difference_high": estimate.high}


def _told(estimate: Estimate) -> str:
    """Better or worse where there is an interval over seeds; else only where the number lies."""
    if estimate.better is None:
        return ""
    if estimate.low is None:
        return "higher, no interval" if estimate.value > 0 else "lower, no interval"
    return "better" if estimate.better else "worse"


def _shown(each: ContrastResult, result: StudyResult) -> dict[str, Any]:
    """The rows of a contrast's table: pooled, then each domain."""
    rows = [] if each.pooled is None else [(_POOLED, each.pooled)]
    rows += list(each.domains.items())
    return {
        "label": _label(each),
        "registered": each.registered,
        "holm": None if each.holm_p is None else number(each.holm_p, 2),
        "better_in": f"{each.better_in} of {len(each.domains)}",
        "rows": [
            {
                "name": name,
                "row": _row(estimate),
                "p": number(estimate.p, 2),
                "seeds": estimate.seeds,
                "questions": estimate.questions,
                "told": _told(estimate),
                "sure": estimate.low is not None and (estimate.low > 0 or (estimate.high or 0.0) < 0),
            }
            for name, estimate in rows
        ],
        "others": [(name, interval(_row(estimate), difference=True)) for name, estimate in each.others.items()],
    }


def _forest(each: ContrastResult, result: StudyResult) -> Chart:
    """Every domain's difference with its interval, and the pooled one."""
    assert each.pooled is not None
    estimates = {_POOLED: each.pooled, **each.domains}
    rows = [
        {**_row(estimate), "variant": name, "color": INK if name == _POOLED else BLUE}
        for name, estimate in estimates.items()
    ]
    height = intervals_height(rows)
    with page_axes(_WIDTH, height + 24, (_LEFT, 2, _RIGHT, height + 2)) as axes:
        draw_intervals(axes, rows, zero=True, value_text=lambda row: interval(row, difference=True))
        words = "; ".join(f"{name} {interval(row, difference=True)}" for name, row in zip(estimates, rows, strict=True))
        better = "right" if result.metric in HIGHER_IS_BETTER else "left"
        note = f"The {better} of the line at 0 is better for {_side(each.left)}."
        return Chart(_label(each), svg(axes, f"{_label(each)}: {words}"), note)


def _means(result: StudyResult) -> list[dict[str, Any]]:
    return [
        {"domain": each.domain, "control": each.control, "arm": each.arm, "metrics": each.metrics, "seeds": each.seeds}
        for each in result.means
    ]


def _colors(design: Mapping[str, Any]) -> dict[str, str]:
    """A colour for each control, all distinct while there are colours."""
    others = [name for name in design["controls"] if name != INFLUENCE]
    colors = {name: _CONTROL_COLORS[place % len(_CONTROL_COLORS)] for place, name in enumerate(others)}
    return {INFLUENCE: variant_color("policy"), **colors}


def _curves(curves: Sequence[Curve], colors: Mapping[str, str]) -> list[Chart]:
    """A drawing for each domain and kind of optimisation, with a line a run."""
    charts = []
    for what, title, across in (("policy", "Policy", "training step"), ("prompt", "Guiding text", "pairs judged")):
        for domain in dict.fromkeys(each.domain for each in curves):
            lines = [each for each in curves if each.domain == domain and each.what == what]
            if not lines:
                continue
            drawn = [(colors.get(each.control, BLUE), each.steps, each.rewards) for each in lines]
            with page_axes(_WIDTH, 208.0, (58, 10, _RIGHT - 6, 166)) as axes:
                draw_curves(axes, drawn, across)
                ends = "; ".join(
                    f"{each.control} seed {each.seed} from {number(each.rewards[0])} to {number(each.rewards[-1])}"
                    for each in lines
                )
                charts.append(Chart(f"{title}: {domain}", svg(axes, f"Reward, {title.lower()}, {domain}: {ends}.")))
    return charts


def _checks(result: StudyResult) -> list[dict[str, Any]]:
    return [
        {
            "run": f"{each.domain}, seed {each.seed}" + ("" if each.control == INFLUENCE else f", {each.control}"),
            "kl": number(each.kl, 2),
            "moved": each.kl is not None and each.kl >= LEAST_KL,
            "held": _held(each.held),
            "look": each.reward_look or "–",
        }
        for each in result.checks
    ]


def _held(facts: dict[str, float]) -> str:
    """The gain on held passages with its interval, else what the training recorded of them."""
    value, low, high = (facts.get(f"held_{name}") for name in ("difference", "low", "high"))
    if value is None:
        return "; ".join(f"{name.replace('_', ' ')} {number(each)}" for name, each in facts.items()) or "–"
    text = number(value, sign=True)
    return text if low is None or high is None else f"{text} [{number(low, sign=True)}, {number(high, sign=True)}]"
