"""Run folders written by hand, in every state that a run can be in, and a check of the pages made of them."""

from __future__ import annotations

import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from optimsyn.data.records import Pair, Passage, Rubric
from optimsyn.influence.attribution.records import SHARES_FILE, PairShares, TokenPiece, TokenShares
from optimsyn.llm.reply import Usage
from optimsyn.recipe.recipe import Recipe
from optimsyn.reward.judgements import Judgement
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES, Failure, ManifestFile

HOSTILE = '<script>alert("x")</script> <img src=https://evil.example/x.png onerror=1> & \'"\x00'
BETTER = "Ask one short question about doses, and let the answer be a number."
_VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})


def make_recipe(**changes: Any) -> Recipe:
    """A recipe of three variants, with a known guiding text."""
    raw: dict[str, Any] = {
        "name": "vitamins",
        "description": "Vitamins and minerals.",
        "seed": 3,
        "documents": {"source": "embedded:quickstart"},
        "questions": {"validation": "embedded:quickstart"},
        "guiding_text": "Ask one short question about vitamins.",
    }
    return Recipe.parse({**raw, **changes})


def _write(run: Run, name: str, value: Any) -> None:
    path = run.path(*name.split("/"))
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in value), encoding="utf-8")
    else:
        path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _result(run: Run, stage: str, numbers: dict[str, Any], rows: list[Any] | None = None) -> None:
    raw = {"stage": stage, "title": stage, "columns": ["a", "b", "c"], "rows": rows or [], "notes": []}
    _write(run, f"{stage}/result.json", {**raw, "numbers": numbers})


def judgement(variant: str, index: int, influence: float | None, *, text: str = "") -> Judgement:
    """A judged candidate; invalid when it has no influence."""
    rubric = Rubric(
        question_type="a dose",
        question_quality="names one",
        answer_quality="a number",
        alignment="fits",
        trainability=f"new {text}",
    )
    pair = Pair(
        id=f"{variant}-{index}",
        question=f"How much of vitamin {variant} {index} is safe {text}?",
        answer=f"{index} mg {text}".strip(),
        quote="Too much does harm.",
        passage_id="p0",
        document_id="d0",
        char_end=60,
        variant=variant,
        rubric=None if variant == "no_rubric" else rubric,
    )
    return Judgement(
        key=f"{variant}-{index}",
        passage_id="p0",
        kind="free",
        variant=variant,
        rubric=pair.rubric,
        pair=pair,
        valid=influence is not None,
        failed=() if influence is not None else ("grounded",),
        reasons={} if influence is not None else {"grounded": f"the answer is not in the passage {text}"},
        influence=influence,
        by_subtask={} if influence is None else {"doses": influence + 0.01, "food_sources": influence - 0.01},
        reward=-0.1 if influence is None else influence,
    )


def shares_of(pair: Pair, influence: float) -> PairShares:
    """Shares of a pair by words; the last word takes what makes the sum right."""
    words = [word if i == 0 else f" {word}" for i, word in enumerate(pair.answer.split(" "))]
    parts = [0.5 * influence, *(-0.1 * influence for _ in words[1:])]
    pieces = [TokenPiece(text=word, shares=(part,)) for word, part in zip(words, parts, strict=True)]
    pieces.append(TokenPiece(text="", shares=(influence - sum(parts),), end=True))
    return PairShares(
        id=pair.id, question=pair.question, answer=pair.answer, influence=influence, remainder=0.0, pieces=tuple(pieces)
    )


def write_run(
    root: Path, *, stages: int = 7, recipe: Recipe | None = None, text: str = "", candidates: int = 6, seed: int = 0
) -> Run:
    """A run whose first `stages` stages have finished.

    Args:
        root: Its root folder.
        stages: How many have finished.
        recipe: Its recipe.
        text: Put into every text that a document, model or person may write.
        candidates: Valid ones of each variant; one more is invalid.
        seed: Of the numbers.
    """
    run = Run.open(recipe or make_recipe(), root)
    draw = random.Random(seed)
    variants = run.recipe.variants
    done = STAGES[:stages]
    if "prepare" in done:
        rows = [["documents", 4, "4 groups"], ["passages", 9, f"20 to 60 words {text}"], ["rows lost", 2, ""]]
        numbers = {"documents": 4, "passages": 9, "validation": 12, "test": 20, "lost": 2}
        _result(run, "prepare", numbers, rows)
        passage = Passage(
            id="p0",
            document_id="d0",
            title=f"Vitamins {text}",
            text=f"Too little is bad. Too much does harm. {text}",
            char_start=0,
            char_end=60,
        )
        _write(run, "prepare/passages.jsonl", [passage.model_dump()])
        lost = [
            {"id": "a", "stage": "passages", "reason": f"too short {text}".strip()},
            {"id": "b", "stage": "questions", "reason": "too long"},
        ]
        _write(run, "prepare/lost.jsonl", lost)
        _write(run, "prepare/test.jsonl", [{"id": "t", "seed": seed}])
        _write(run, "prepare/validation.jsonl", [{"id": "v", "seed": seed}])
    if "warm_up" in done:
        drafts = [judgement("first_draft", i, draw.gauss(0.01, 0.01), text=text) for i in range(5)]
        _write(run, "warm_up/pairs.jsonl", [row.pair.model_dump(mode="json") for row in drafts if row.pair])
        _write(run, "warm_up/influence.json", [row.influence for row in drafts])
        numbers = {"first_draft": 6, "valid": 5, "trained_on": 5, "influence_mean": 0.01, "lost": {"unsafe": 1}}
        numbers["zero_gradient_baseline"] = 0.0
        _result(run, "warm_up", numbers)
    if "optimize_prompt" in done and run.recipe.optimizers.prompt.enabled:
        history = [
            {"judged": 4, "status": "start", "score": 0.01, "best": 0.01},
            {"judged": 6, "status": "rejected", "score": 0.005, "best": 0.01},
            {"status": "proposal failed", "reason": text},
            {"judged": 10, "status": "accepted", "score": 0.02, "best": 0.02},
        ]
        _write(run, "optimize_prompt/history.jsonl", history)
        run.path("optimize_prompt", "guiding_text.txt").write_text(f"{BETTER} {text}\n", encoding="utf-8")
        numbers = {"enabled": True, "start_score": 0.01, "score": 0.02, "candidates": 3, "judged": 10, "changed": True}
        _result(run, "optimize_prompt", numbers)
    if "train_policy" in done and run.recipe.optimizers.policy.enabled:
        history = [{"step": i, "reward": 0.01 * i, "reward_std": 0.01, "valid": 0.5 + 0.1 * i} for i in (1, 2, 3)]
        _write(run, "train_policy/history.jsonl", history)
        numbers = {"enabled": True, "steps": 3, "group_size": 4, "reward_first": 0.01, "reward_last": 0.03}
        _result(run, "train_policy", numbers)
    for stage in done:
        if stage in ("optimize_prompt", "train_policy") and not run.path(stage, "result.json").is_file():
            _result(run, stage, {"enabled": False})
    if "synthesize" in done:
        write_synthesis(run, draw, candidates, text)
    if "fine_tune" in done:
        _result(run, "fine_tune", {v: {"pairs": 4, "loss_first": 4.0, "loss_last": 3.0} for v in variants})
    if "evaluate" in done:
        write_evaluation(run, draw)
    with ManifestFile(run.folder / "manifest.json").change() as manifest:
        for place, name in enumerate(done):
            record = manifest.stage(name)
            record.status, record.attempts, record.seconds = "finished", 1, 60.0 + place
            record.peak_memory_bytes = 1_500_000_000
            record.cost = Usage(replies=10, input_tokens=1000, output_tokens=200, cost_usd=0.05)
        manifest.cost = Usage(
            replies=10 * stages, input_tokens=1000 * stages, output_tokens=200 * stages, cost_usd=0.05 * stages
        )
    return run


def write_synthesis(run: Run, draw: random.Random, candidates: int, text: str) -> None:
    losses = {}
    for place, variant in enumerate(run.recipe.variants):
        rows = [judgement(variant, i, draw.gauss(0.02 + 0.01 * place, 0.01), text=text) for i in range(candidates)]
        rows.append(judgement(variant, candidates, None, text=text))
        kept = sorted(rows[:-1], key=lambda row: -(row.influence or 0.0))[:4]
        _write(run, f"synthesize/{variant}.candidates.jsonl", [row.model_dump(mode="json") for row in rows])
        pairs = [row.pair.model_dump(mode="json") for row in kept if row.pair]
        _write(run, f"synthesize/{variant}.selected.jsonl", pairs)
        _write(run, f"synthesize/{variant}.judged.jsonl", [row.model_dump(mode="json") for row in kept])
        losses[variant] = {
            "candidates": candidates + 1,
            "invalid": 1,
            "invalid: grounded": 1,
            "duplicate": 0,
            "not selected": candidates - 4,
            "kept": 4,
        }
        if variant == run.recipe.dataset_variant:
            best = sorted(rows[:-1], key=lambda row: -(row.influence or 0.0))
            chosen = best if len(best) <= 6 else [*best[:3], *best[-3:]]
            pairs = tuple(shares_of(row.pair, row.influence) for row in chosen if row.pair and row.influence)
            found = TokenShares(variant=variant, estimator="adam_linear, dot", pairs=pairs)
            found.write(run.path("synthesize", SHARES_FILE))
    _result(run, "synthesize", {"pairs": 4, "dataset": run.recipe.dataset_variant, "losses": losses})


def metric_row(variant: str, metric: str, value: float, difference: float | None, half: float) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": variant, "metric": metric, "value": value, "low": value - half, "n": 20}
    row |= {"high": value + half, "difference": difference}
    row["difference_low"] = None if difference is None else difference - half
    row["difference_high"] = None if difference is None else difference + half
    return row


def write_evaluation(run: Run, draw: random.Random) -> None:
    rows, against = [], []
    for metric, start, step, half in (("answer_loss", 3.0, -0.31, 0.1), ("accuracy", 0.25, 0.013, 0.1)):
        rows.append(metric_row("target", metric, start, None, half))
        for place, variant in enumerate(run.recipe.variants, 1):
            change = step * place + draw.uniform(0, 0.01)
            rows.append(metric_row(variant, metric, start + change, change, half))
            versus = None if place == 1 else 0.001 * place
            against.append(metric_row(variant, metric, start + change, versus, half))
    _write(run, "evaluation.json", rows)
    _write(run, "evaluate/against_no_rubric.json", against)
    _result(run, "evaluate", {}, [[row["variant"], row["metric"], row["value"], 0, 0, row["n"]] for row in rows])


def stop(run: Run, stage: str, status: str, *, reason: str = "the service is down", cell: int | None = 3) -> None:
    """Lets a stage end in a way other than finished."""
    with ManifestFile(run.folder / "manifest.json").change() as manifest:
        record = manifest.stage(stage)
        record.status, record.attempts, record.seconds = status, 2, 12.0  # type: ignore[assignment]
        if status != "running":
            record.error = f"ServiceError: {reason}"
            record.failure = Failure(
                kind="ServiceError", cell=cell, source="result = synthesize.run(run)", reason=reason
            )


class Page(HTMLParser):
    """Reads a page and complains about what is not well-formed or would be loaded from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()
        if self.open:
            self.problems.append(f"never closed: {self.open}")
        if len(self.ids) != len(set(self.ids)):
            self.problems.append("an id is there twice")
        self.problems += [
            f"no such section: {link}" for link in self.links if link[0] == "#" and link[1:] not in self.ids
        ]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if len({name for name, _ in attrs}) != len(attrs):
            self.problems.append(f"<{tag}>: an attribute is there twice")
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name == "href" and tag == "a":
                self.links.append(value or "")
            if name.startswith("on"):
                self.problems.append(f"<{tag}> has a handler {name}")
            loads = name in ("src", "srcset", "data", "poster") or (tag == "link" and name == "href")
            if (loads and not (value or "").startswith("data:")) or (name == "style" and "url(" in (value or "")):
                self.problems.append(f"<{tag}> loads {value}")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-3:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def attributes_of(self, tag: str) -> list[tuple[str, str]]:
        """Names and values of the attributes of all elements of a kind."""
        return [(name, value) for owner, name, value in self.attributes if owner == tag]

    @property
    def words(self) -> str:
        """All text outside of tags and styles, blanks squeezed."""
        return " ".join(" ".join(self.text).split())


def check_page(html: str) -> Page:
    """The page, which is whole, well-formed and complete in itself."""
    page = Page(html)
    assert page.problems == []
    assert html.startswith('<!doctype html>\n<html lang="en">')
    assert "script" not in page.tags and "img" not in page.tags and "iframe" not in page.tags
    assert page.tags.count("h1") == 1
    assert ("meta", "name", "viewport") in page.attributes
    assert "@import" not in html and "url(" not in html
    return page
