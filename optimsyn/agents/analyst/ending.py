"""The last words of an analyst's notebook: its recommendation, and the figures that it rests on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimsyn.agents.analyst.notebook import plain
from optimsyn.base.counting import plural
from optimsyn.base.terminal.table import number

_NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d+)?(?![\w.]*\w)")
_MOST_FIGURES = 40


def last_words(
    name: str, reason: str, recommendation: str, figures: Mapping[str, Any] | None, outputs: Sequence[str]
) -> str:
    """The last cell, as Markdown.

    Args:
        name: The notebook's file name.
        reason: Why the work stopped without a recommendation.
        recommendation: The model's words.
        figures: `Workbench.figures` as JSON.
        outputs: What the cells have said, which figures in the words are looked up in.
    """
    if recommendation:
        parts = ["## Recommendation", *(plain(each) for each in re.split(r"\n\s*\n", recommendation) if each.strip())]
        unknown = unknown_figures(recommendation, outputs)
        if unknown:
            parts.append(
                f"Figures in these words that no output of this notebook shows: {', '.join(map(plain, unknown))}\\. "
                "Do not rely on them\\."
            )
    else:
        parts = ["## Stopped without a recommendation", plain(reason)]
        if "--continue" not in reason:
            parts.append(f"`optimsyn agent --continue {shlex.quote(name)}` goes on.")
    rows = list(_rows(figures))
    parts.append("It rests on these figures:" if rows else "No run of this notebook has figures of an evaluation\\.")
    if rows:
        parts.append("\n".join(f"- {plain(row)}" for row in rows[:_MOST_FIGURES]))
        parts.append("Each interval holds for one seed and these test questions; it says nothing about other ones\\.")
    if figures is not None:
        money = figures["money"]
        parts.append(
            plain(f"The work has cost {money['spent_usd']:.4f} US dollars of a budget of {money['budget_usd']:g}.")
        )
    return "\n\n".join(parts)


def unknown_figures(words: str, outputs: Iterable[str]) -> list[str]:
    """Numbers in words that are in no output, also not rounded or as a percentage; single digits are not looked up."""
    shown = {float(text.replace("−", "-")) for output in outputs for text in _NUMBER.findall(output)}
    sizes = {abs(value) for value in shown}
    sizes |= {100 * value for value in sizes}
    unknown = []
    for text in dict.fromkeys(_NUMBER.findall(words)):
        bare = text.lstrip("+-−")
        if len(bare) < 2:
            continue
        half = 0.5 * 10 ** -len(bare.partition(".")[2]) + 1e-9
        if not any(abs(size - float(bare)) <= half for size in sizes):
            unknown.append(text)
    return unknown


def _rows(figures: Mapping[str, Any] | None) -> Iterable[str]:
    for row in figures["figures"] if figures is not None else ():
        text = f"{row['run']}, {row['variant']}, {row['metric']}: {number(row['value'])}"
        text += _interval(row["low"], row["high"]) + f" on {plural(row['n'], 'question')}"
        if row["difference"] is not None:
            text += f", {number(row['difference'], sign=True)} to the target as it came"
            text += _interval(row["difference_low"], row["difference_high"]) + f", {row['judgement']}"
        yield text


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({number(low, sign=low < 0)} to {number(high, sign=high < 0)})"
