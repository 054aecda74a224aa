"""Pairs of a run as cards: question, answer, rubric, passage, checks and influence.

The best and the worst of the dataset's variant, and those of a few passages in every variant.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from optimsyn.base.files import iter_json
from optimsyn.base.seeds import derive_seed
from optimsyn.data.forms import shown_row
from optimsyn.report.facts import Row, RunFacts
from optimsyn.report.heatmap import Heatmap, HeatRow
from optimsyn.report.rendering import cut

_SHOWN = 3
_EXCERPT = 700
_INVALID = 4
_PASSAGES, _SHORT = 3, 420
_RUBRIC = {
    "question_type": "Question type",
    "question_quality": "Question",
    "answer_quality": "Answer",
    "alignment": "Alignment",
    "trainability": "Trainability",
}


def extremes(facts: RunFacts) -> dict[str, Any] | None:
    """The best and worst pairs so far, for the template; None before the first pair was scored."""
    variant: str = facts.recipe.dataset_variant
    if variant not in facts.candidates:
        variant = next(reversed(facts.candidates), "first_draft")
    rows = facts.candidates[variant] if variant in facts.candidates else _first_draft(facts)
    valid = _distinct([row for row in rows if row["valid"] and row["influence"] is not None])
    if not valid:
        return None
    shares = facts.token_shares if facts.token_shares and facts.token_shares.variant == variant else None
    by_id = {pair.id: pair for pair in shares.pairs} if shares else {}
    few = len(valid) <= 2 * _SHOWN
    best = valid[: (len(valid) + 1) // 2] if few else valid[:_SHOWN]
    worst = valid[len(best) :] if few else valid[-_SHOWN:]
    chosen = [*best, *worst]
    attributed = [by_id[row["pair"]["id"]] for row in chosen if row["pair"]["id"] in by_id]
    heatmap = Heatmap(attributed) if any(pair.pieces for pair in attributed) else None
    heat = {row.shares.id: row for row in heatmap.rows if row.shares.pieces} if heatmap else {}
    passages = facts.passages(row["pair"]["passage_id"] for row in chosen)
    cards = []
    for place, row in enumerate(chosen):
        name = f"Best {place + 1}" if place < len(best) else f"Worst {len(chosen) - place}"
        kept = ""
        if variant in facts.kept:
            kept = "in the dataset" if row["key"] in facts.kept[variant] else "not selected"
        passage = passages.get(row["pair"]["passage_id"])
        cards.append(_card(name, facts.shown(row), passage, heat.get(row["pair"]["id"]), kept))
    failed = [row for row in rows if not row["valid"] and row["failed"]]
    counts = Counter(row["failed"][0] for row in failed)
    examples = {row["failed"][0]: row for row in reversed(failed)}
    return {
        "variant": variant,
        "cards": cards,
        # The source of the legend; None without token shares, and then why, if they were asked for.
        "heatmap": heatmap,
        "no_shares": shares.reason if shares else "",
        # The checks that most candidates failed first, how many, and one of them.
        "invalid": [(name, count, facts.shown(examples[name])) for name, count in counts.most_common(_INVALID)],
    }


def side_by_side(facts: RunFacts) -> list[dict[str, Any]]:
    """A few passages with the first pair of each variant; none with fewer than two variants.

    The recipe's seed draws the passages among those that most variants have a candidate of, so that nobody picks them.
    """
    first: dict[str, dict[str, Row]] = {}
    for variant, rows in facts.candidates.items():
        for row in rows:
            first.setdefault(row["passage_id"], {}).setdefault(variant, row)
    most = max(map(len, first.values()), default=0)
    if most < 2:
        return []
    shared = sorted(passage for passage, found in first.items() if len(found) == most)
    drawn = random.Random(derive_seed(facts.recipe.seed, "report", "side_by_side"))
    chosen = drawn.sample(shared, min(_PASSAGES, len(shared)))
    passages = facts.passages(chosen)
    return [
        {
            "title": passages[name].get("title") or passages[name].get("document_id") or name,
            "excerpt": cut(passages[name]["text"], _SHORT),
            "cards": _of_passage(facts, first[name], passages[name]),
        }
        for name in chosen
        if name in passages
    ]


def _of_passage(facts: RunFacts, rows: dict[str, Row], passage: Row) -> list[dict[str, Any]]:
    """A card for each variant; one that repeats an earlier variant's pair says so."""
    cards: list[dict[str, Any]] = []
    earlier: dict[tuple[Any, ...], str] = {}
    for variant in facts.candidates:
        row = facts.shown(rows[variant]) if variant in rows else None
        card: dict[str, Any] = {"variant": variant, "row": row, "same_as": "", "card": None}
        if row is not None and row["pair"] is not None:
            pair = row["pair"]
            content = (pair["question"], pair["answer"], str(pair.get("rubric")))
            card["same_as"] = earlier.get(content, "")
            earlier.setdefault(content, variant)
            kept = ""
            if row["valid"] and variant in facts.kept:
                kept = "in its set" if row["key"] in facts.kept[variant] else "not selected"
            card["card"] = _card("", {**row, "by_subtask": row["by_subtask"] or {}}, passage, None, kept)
        cards.append(card)
    return cards


def _first_draft(facts: RunFacts) -> list[Row]:
    """First-draft pairs as judgements; their influences are saved in the same order."""
    path = facts.folder / "warm_up" / "pairs.jsonl"
    if not path.is_file() or not facts.first_draft:
        return []
    pairs = list(iter_json(path))
    if len(pairs) != len(facts.first_draft):
        return []
    return [
        {"pair": pair, "influence": influence, "by_subtask": {}, "valid": True, "failed": [], "reasons": {}, "key": ""}
        for pair, influence in zip(pairs, facts.first_draft, strict=True)
    ]


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """The rows by influence, highest first, each question once."""
    by_question: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: -row["influence"]):
        by_question.setdefault(" ".join(row["pair"]["question"].lower().split()), row)
    return list(by_question.values())


def _card(name: str, row: Row, passage: Row | None, heat: HeatRow | None, kept: str) -> dict[str, Any]:
    pair = row["pair"]
    subtasks = sorted(row["by_subtask"].items(), key=lambda item: -item[1])
    rubric: dict[str, Any] = pair.get("rubric") or {}
    source = ""
    if passage is not None:
        title = passage.get("title") or passage.get("document_id") or passage["id"]
        source = f"{title}, characters {pair.get('char_start', 0):,} to {pair.get('char_end', 0):,}"
    (_, *below), answer = shown_row(pair)
    return {
        "place": name,
        "pair": pair,
        "below": below,
        "answer": answer,
        "influence": row["influence"],
        "subtasks": subtasks if len(subtasks) > 1 else (),
        "heat": heat,
        "excerpt": excerpt_around(passage["text"], pair.get("quote", "")) if passage is not None else ("", "", ""),
        "source": source,
        "rubric": [(label, rubric[key]) for key, label in _RUBRIC.items() if rubric.get(key)],
        "kept": kept,
    }


def excerpt_around(text: str, quote: str) -> tuple[str, str, str]:
    """An excerpt of a passage around its quote."""
    start = text.find(quote) if quote else -1
    if start < 0:
        return cut(text, _EXCERPT), "", ""
    end = start + len(quote)
    room = max(0, _EXCERPT - len(quote)) // 2
    before, after = text[max(0, start - room) : start], text[end : end + room]
    # Cut between words, if possible.
    if start > room:
        before = "…" + (before.partition(" ")[2] or before)
    if end + room < len(text):
        after = (after.rpartition(" ")[0] or after) + "…"
    return before, quote, after
