"""A run whose service sends poison among good replies: it ends, and has counted exactly the poison."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from optimsyn.base.errors import ServiceError
from optimsyn.base.files import iter_json
from optimsyn.base.terminal.labels import UNREAD
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.report.page.report import write_report
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import ManifestFile
from tests.llm_helpers import Answer, Service, said
from tests.stages_helpers import answer, run_stage

# Kinds of poison, what is counted for each, and what the service sends. The first two can be read.
KINDS: tuple[tuple[str, str], ...] = (
    ("half a surrogate pair", "read"),
    ("thinking", "read"),
    ("brackets", "invalid"),
    ("always cut", "cut"),
    ("all thought", "cut"),
    ("refusal", "refusal"),
    ("refusing words", "refusal"),
    ("tool", "tool_call"),
    ("empty", "empty"),
    ("cut once", "read"),
)
CUT_ONCE = len(KINDS) - 1


def identity(request: dict[str, Any]) -> str:
    """What is asked, whatever room there is for the reply."""
    return json.dumps({name: value for name, value in request.items() if name != "max_tokens"}, sort_keys=True)


class Poisoned:
    """The good service of the other tests, which sends poison to a share of what it is asked for pairs."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.seen: dict[str, int | None] = {}

    def __call__(self, number: int, request: dict[str, Any]) -> Answer:
        good = answer(number, request)
        if "trainability" in json.dumps(request.get("response_format", {})):
            return good
        draw = int.from_bytes(hashlib.sha256(identity(request).encode()).digest()[:8])
        kind = draw % len(KINDS) if (draw >> 32) % 1000 < 1000 * self.share else None
        self.seen[identity(request)] = kind
        return good if kind is None else poison(kind, good, request["max_tokens"])

    @property
    def expected(self) -> dict[str, int]:
        """What is to be counted."""
        found = Counter("read" if kind is None else KINDS[kind][1] for kind in self.seen.values())
        found["asked_again"] = sum(kind in (3, 4, CUT_ONCE) for kind in self.seen.values())
        return {name: count for name, count in found.items() if count}


def poison(kind: int, good: Answer, room: int) -> Answer:
    text: str = json.loads(good.body)["choices"][0]["message"]["content"]
    if kind == 0:
        return said(text.replace('"}', '\\ud83d"}'))
    if kind == 1:
        return said(f"<think>The set {{a,b}} is no answer.</think>{text}")
    if kind == 2:
        return said("[" * 500)
    if kind == 3 or (kind == CUT_ONCE and room <= 400):
        return said(text[:-6], finish="length")
    if kind == CUT_ONCE:
        return good
    body = json.loads(said(None).body)
    choice = body["choices"][0]
    if kind == 4:
        choice["message"]["reasoning_content"], choice["finish_reason"] = "Let me think.", "length"
    elif kind == 5:
        choice["message"]["refusal"] = "I can't help with that."
    elif kind == 6:
        choice["message"]["content"] = "I'm sorry, but I can't help with that."
    elif kind == 7:
        call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
        choice["message"]["tool_calls"], choice["finish_reason"] = [call], "tool_calls"
    return Answer(200, json.dumps(body))


def synthesize(recipe: Recipe, served: Service, root: Path, pairs: int, share: float) -> tuple[Run, Poisoned]:
    """A run until its pairs are written."""
    changes = {"synthesis.pairs": pairs, "optimizers.prompt.enabled": False, "warm_up.pairs": 6}
    run = Run.open(changed(recipe, changes), root)
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy"):
        run_stage(run, stage)
    before = run.outcomes()
    assert before["generator"].keys() == {"read"}
    poisoned = Poisoned(share)
    # What the first draft has bought already is not asked for again, and was no poison.
    poisoned.seen = {identity(r): None for r in served.requests if "trainability" not in json.dumps(r)}
    served.answer = poisoned
    run_stage(run, "synthesize")
    return run, poisoned


@pytest.mark.slow
def test_a_run_with_poison_ends_with_exactly_the_poison_counted(
    recipe: Recipe,
    served: Service,
    tmp_path: Path,
) -> None:
    run, poisoned = synthesize(recipe, served, tmp_path / "runs", pairs=32, share=0.5)
    expected = poisoned.expected
    assert {"invalid", "cut", "refusal", "asked_again"} <= expected.keys(), "the seed brings every kind"
    assert run.manifest.outcomes["generator"] == expected
    assert set(run.manifest.outcomes["rubric"]) == {"read"}
    lost: Counter[str] = Counter()
    for counts in json.loads(run.path("synthesize", "losses.json").read_text()).values():
        gone = counts["invalid"] + counts.get("not judged", 0) + counts["duplicate"] + counts["not selected"]
        assert counts["candidates"] == gone + counts["kept"]
        lost.update(counts)
    for outcome in ("cut", "refusal", "tool_call", "empty"):
        assert lost[f"not judged: pair_{outcome}"] == expected.get(outcome, 0)
    assert lost["invalid: pair_format"] == expected["invalid"]
    # Nothing that was not judged is in the ledger, and nothing in the run is unwritable.
    assert not any(row.get("unjudged") for row in iter_json(run.path("rewards.jsonl")))
    written = run.path("dataset", "train.jsonl").read_text(encoding="utf-8")
    assert "think" not in written and "sorry" not in written
    write_report(run)
    report = run.path("report.html").read_text(encoding="utf-8")
    assert "What came of the requests" in report
    assert 'data-label="read"' in report
    progress = sum(expected.get(name, 0) for name in UNREAD)
    assert progress > 0
    # Stages read again what they know, and count nothing twice.
    (run.folder / "rewards.jsonl").unlink()
    asked = len(served.requests)
    for path in (run.folder / "synthesize").glob("*.candidates.jsonl"):
        path.unlink()
    with ManifestFile(run.folder / "manifest.json").change() as manifest:
        manifest.stage("synthesize").status = "failed"
    run_stage(Run.load(run.folder), "synthesize")
    assert len(served.requests) == asked
    assert run.manifest.outcomes["generator"] == expected


@pytest.mark.slow
def test_a_service_that_only_refuses_stops_the_run_and_is_named(
    recipe: Recipe,
    served: Service,
    tmp_path: Path,
) -> None:
    with pytest.raises(ServiceError, match=r"models.generator .*refusal.*another model"):
        _refusing(recipe, served, tmp_path)


def _refusing(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    run = Run.open(changed(recipe, {"synthesis.pairs": 24, "optimizers.prompt.enabled": False}), tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy"):
        run_stage(run, stage)

    def refusing(number: int, request: dict[str, Any]) -> Answer:
        good = answer(number, request)
        return good if "trainability" in json.dumps(request.get("response_format", {})) else poison(6, good, 400)

    served.answer = refusing
    run_stage(run, "synthesize")
