"""The page of a transfer: one HTML file, in the look of a run's report, which needs nothing beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from optimsyn.base.counting import plural
from optimsyn.base.terminal.labels import LOWER_IS_BETTER, metric_label, variant_label
from optimsyn.base.terminal.table import duration, number
from optimsyn.report.charts import Chart
from optimsyn.report.drawing import BLUE, INK, page_axes, svg
from optimsyn.report.panels import draw_intervals, intervals_height
from optimsyn.report.rendering import render
from optimsyn.report.tables import interval
from optimsyn.study.transfer.result import Gain, TableCell, TransferResult

TRANSFER_HTML = "transfer.html"
MAIN = "answer_loss"
_WIDTH, _LEFT, _RIGHT = 380.0, 6.0, 374.0


def page_of(result: TransferResult) -> str:
    """The page."""
    states = Counter(each.state for each in result.runs)
    several = len(result.scorers) > 1
    by_place = {(each.generator, each.scored_by, each.target): each for each in result.table}
    order = [
        (generator, scorer, target)
        for generator in result.generators
        for scorer in result.scorers
        for target in result.targets
    ]
    done = [by_place[place] for place in order if MAIN in by_place[place].gains]
    return render(
        "transfer.html.j2",
        result=result,
        badge=_badge(result, states["finished"]),
        sentence=_sentence(result, done),
        tiles=_tiles(result, states["finished"], done),
        several=several,
        rows=[
            {
                "generator": generator,
                "scored_by": scorer,
                "cells": [_shown(by_place[generator, scorer, target]) for target in result.targets],
            }
            for generator in result.generators
            for scorer in result.scorers
        ],
        forest=_forest(done, several) if done else None,
        details=[_detail(each, several) for each in done],
        beside_own=[
            {"name": _way(each, several=True), "cell": _row(each.against_own[MAIN]), "told": _told(each.against_own)}
            for each in done
            if MAIN in each.against_own
        ],
        states=states,
        failed=[each for each in result.runs if each.reason],
        confidence=f"{result.confidence:.0%}",
        arm=variant_label(result.arm),
    )


def lines_of(result: TransferResult) -> list[str]:
    """The table in lines of text, for a terminal."""
    lines = []
    for each in result.table:
        told = "not finished"
        if MAIN in each.gains:
            parts = [
                f"{metric_label(name)} {interval(_row(gain), difference=True)}" for name, gain in each.gains.items()
            ]
            told = ", ".join(parts)
        lines.append(f"{_way(each, several=True)}: {told}")
    return lines


def _badge(result: TransferResult, finished: int) -> tuple[str, str]:
    if finished == len(result.runs):
        return "finished", "good"
    stopped = any(each.reason for each in result.runs)
    return f"{finished} of {plural(len(result.runs), 'run')} finished", "bad" if stopped else "open"


def _sentence(result: TransferResult, done: list[TableCell]) -> str:
    if not done:
        return "No cell has finished yet."
    clear = [each for each in done if _told(each.gains) == "better"]
    worse = [each for each in done if _told(each.gains) == "worse"]
    moved = [each for each in clear if not each.own]
    text = f"The answer loss is lower than that of the target as it came in {len(clear)} of {plural(len(done), 'cell')}"
    text += f" ({len(moved)} of them transferred)" if clear else ""
    return f"{text}, higher in {len(worse)}; in the others the interval holds 0."


def _tiles(result: TransferResult, finished: int, done: list[TableCell]) -> list[tuple[str, str, str]]:
    seconds = sum(each.seconds for each in result.runs)
    tiles = [(f"{finished} of {len(result.runs)}", "runs finished", ""), (duration(seconds), "time of all runs", "")]
    if done:
        pairs = [amount for each in done for amount in each.pairs]
        least, most = min(pairs), max(pairs)
        tiles.append((f"{least:,}" if least == most else f"{least:,} to {most:,}", "pairs a dataset", ""))
        tiles.append((f"{max(each.gains[MAIN].questions for each in done):,}", "test questions", ""))
        tiles.append((f"{len(result.design['seeds'])}", "seeds", ""))
    return tiles


def _row(gain: Gain) -> dict[str, Any]:
    return {
        "value": gain.value,
        "low": gain.low,
        "high": gain.high,
        "difference": gain.value,
        "difference_low": gain.low,
        "difference_high": gain.high,
        "over": gain.interval_over,
    }


def _told(gains: Mapping[str, Gain], metric: str = MAIN) -> str:
    """On which side the difference is, where its interval leaves 0 out."""
    gain = gains[metric]
    if gain.low is None or gain.high is None:
        return "no interval"
    if gain.low <= 0 <= gain.high:
        return "0 inside"
    return "better" if (gain.value < 0) == (metric in LOWER_IS_BETTER) else "worse"


def _others(each: TableCell) -> list[tuple[str, str]]:
    return [
        (metric_label(name), interval(_row(gain), difference=True)) for name, gain in each.gains.items() if name != MAIN
    ]


def _shown(each: TableCell) -> dict[str, Any]:
    """A cell of the table."""
    shown: dict[str, Any] = {"target": each.target, "own": each.own, "done": MAIN in each.gains}
    if shown["done"]:
        gain = each.gains[MAIN]
        shown |= {
            "row": _row(gain),
            "told": _told(each.gains),
            "others": [(metric_label(n), number(g.value, 2, sign=True)) for n, g in each.gains.items() if n != MAIN],
            "counts": f"{_pairs(each)} pairs, {plural(gain.questions, 'question')}, {plural(gain.seeds, 'seed')}",
        }
    return shown


def _detail(each: TableCell, several: bool) -> dict[str, Any]:
    gain = each.gains[MAIN]
    return {
        "name": _way(each, several=several),
        "own": each.own,
        "before": number(gain.before, 3),
        "after": number(gain.after, 3),
        "row": _row(gain),
        "told": _told(each.gains),
        "others": _others(each),
        "pairs": _pairs(each),
        "questions": gain.questions,
        "seeds": gain.seeds,
    }


def _way(each: TableCell, *, several: bool) -> str:
    """Generator and targets of a cell in words."""
    if several and not each.own:
        return f"{each.generator}, scored by {each.scored_by}, trained {each.target}"
    return f"{each.generator}, {each.target}{' (scored it)' if each.own else ''}"


def _pairs(each: TableCell) -> str:
    least, most = min(each.pairs), max(each.pairs)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _forest(done: list[TableCell], several: bool) -> Chart:
    """Every cell's gain with its interval; those of the target that scored the pairs are dark."""
    names = [_way(each, several=several) for each in done]
    rows = [
        {**_row(each.gains[MAIN]), "variant": name, "color": INK if each.own else BLUE}
        for name, each in zip(names, done, strict=True)
    ]
    height = intervals_height(rows)
    with page_axes(_WIDTH, height + 24, (_LEFT, 2, _RIGHT, height + 2)) as axes:
        draw_intervals(axes, rows, zero=True, value_text=lambda row: interval(row, difference=True))
        words = "; ".join(f"{name} {interval(row, difference=True)}" for name, row in zip(names, rows, strict=True))
        note = "The left of the line at 0 is better. Dark: the target that scored the pairs."
        return Chart("Change of the answer loss, nats", svg(axes, f"Change of the answer loss: {words}"), note)
