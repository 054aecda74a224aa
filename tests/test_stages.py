"""The whole run in small: a service that writes rubrics and pairs, a tiny random target, every stage, every file."""

from __future__ import annotations

import io
import json
import random
import re
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from optimsyn.base.errors import ServiceError, StageError
from optimsyn.base.files import iter_json
from optimsyn.execution.status_line import Screen, Steps
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.report import look
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES
from optimsyn.runs.results.reading import MODELS
from optimsyn.stages.preview import preview
from tests.llm_helpers import KEY, Answer, Service, refused, said
from tests.stages_helpers import answer, asked_twice, run_stage

# Those that ask services, and the dataset is there.
BUYING = STAGES[: STAGES.index("synthesize") + 1]


def run_all(run: Run, stages: Sequence[str] = STAGES) -> None:
    for stage in stages:
        run_stage(run, stage)


def requests_of(run: Run) -> int:
    with sqlite3.connect(run.path("replies.sqlite")) as connection:
        return int(connection.execute("select count(*) from replies").fetchone()[0])


def test_a_run_leaves_every_file_that_others_build_on(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    run = Run.open(recipe, tmp_path / "runs")
    run_all(run)
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(run.path("dataset", "train.parquet")).to_pylist()
    chats = [json.loads(line) for line in run.path("dataset", "train.jsonl").read_text().splitlines()]
    assert len(rows) == len(chats) == 4
    passages = {json.loads(line)["id"]: json.loads(line) for line in run.path("prepare", "passages.jsonl").open()}
    documents = {json.loads(line)["id"]: json.loads(line) for line in run.path("prepare", "documents.jsonl").open()}
    for row, chat in zip(rows, chats, strict=True):
        assert row["variant"] == "optimized"
        assert [message["role"] for message in chat["messages"]] == ["user", "assistant"]
        assert row["answer"] in chat["messages"][1]["content"]
        text = documents[row["document_id"]]["text"][row["char_start"] : row["char_end"]]
        assert text == passages[row["passage_id"]]["text"]
    evaluation = json.loads(run.path("evaluation.json").read_text())
    assert {row["variant"] for row in evaluation} == {"target", "no_rubric", "static", "optimized"}
    assert all(row["low"] <= row["value"] <= row["high"] and row["n"] == 6 for row in evaluation)
    assert run.path("summary.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads(run.path("summary.json").read_text())
    assert summary["dataset_pairs"] == 4
    for counts in summary["losses"].values():
        lost = counts["invalid"] + counts["duplicate"] + counts["not selected"]
        assert counts["candidates"] == lost + counts["kept"]
    assert [record.status for record in run.manifest.stages] == ["finished"] * len(STAGES)
    assert run.manifest.cost.replies == len(served.requests)
    assert asked_twice(served) == []
    assert not any(KEY.encode() in file.read_bytes() for file in run.folder.rglob("*") if file.is_file())
    for stage in STAGES:
        assert "<table" in run_stage(run, stage)._repr_html_()
    assert run.manifest.cost.replies == len(served.requests), "a finished stage asked again"


@pytest.mark.slow
def test_selection_by_influence_keeps_the_candidates_of_highest_influence(recipe: Recipe, tmp_path: Path) -> None:
    run = Run.open(changed(recipe, {"synthesis.select": "influence"}), tmp_path / "runs")
    for stage in STAGES[:5]:
        run_stage(run, stage)
    judged = [json.loads(line) for line in run.path("synthesize", "static.candidates.jsonl").open()]
    kept = {json.loads(line)["key"] for line in run.path("synthesize", "static.judged.jsonl").open()}
    worst_kept = min(row["influence"] for row in judged if row["key"] in kept)
    questions = {row["pair"]["question"] for row in judged if row["key"] in kept}
    for row in judged:
        if row["valid"] and row["key"] not in kept and row["pair"]["question"] not in questions:
            assert row["influence"] <= worst_kept


@pytest.mark.parametrize("stage", [pytest.param("warm_up", marks=pytest.mark.slow), "synthesize"])
def test_a_failed_service_stops_the_run_and_the_next_start_buys_nothing_twice(
    recipe: Recipe, served: Service, tmp_path: Path, stage: str
) -> None:
    undisturbed = Run.open(recipe, tmp_path / "undisturbed")
    run_all(undisturbed, BUYING)
    good = len(served.requests)
    served.requests.clear()

    run = Run.open(recipe, tmp_path / "runs")
    for earlier in STAGES[: STAGES.index(stage)]:
        run_stage(run, earlier)
    before = len(served.requests)

    def fails_after_three(number: int, request: dict[str, Any]) -> Answer:
        return answer(number, request) if number < before + 3 else refused(500, "out of order")

    served.answer = fails_after_three
    with pytest.raises(ServiceError, match="500|out of order"):
        run_stage(run, stage)
    assert run.manifest.stage(stage).status == "failed"
    refusals = len(served.requests) - before - 3
    served.requests = served.requests[: before + 3]
    served.answer = answer
    run_all(run, BUYING)
    assert refusals > 0
    assert asked_twice(served) == []
    assert requests_of(run) == good
    for name in ("train.jsonl", "train.parquet"):
        assert run.path("dataset", name).read_bytes() == undisturbed.path("dataset", name).read_bytes()


@pytest.mark.slow
def test_a_generator_of_garbage_stops_loudly(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    served.answer = lambda number, request: said("certainly! <html>")
    run = Run.open(recipe, tmp_path / "runs")
    run_stage(run, "prepare")
    with pytest.raises(ServiceError, match="none of 6 replies could be read"):
        run_stage(run, "warm_up")
    served.answer = answer
    assert run_stage(run, "warm_up").valid > 0, "the garbage was remembered"
    assert run.replies.totals().replies > 6, "what it cost was forgotten"


def test_a_first_draft_that_fails_says_why_in_the_message_and_in_a_file(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    def poor(number: int, request: dict[str, Any]) -> Answer:
        name = re.findall(r"The city of (\w+) mined", request["messages"][-1]["content"])[-1:]
        if "trainability" not in json.dumps(request.get("response_format", {})):
            return said(json.dumps({"quote": "", "question": "Which metal came from the mines?", "answer": "platinum"}))
        return said('{"question_type": "fa', finish="length") if name[0] < "D" else answer(number, request)

    served.answer = poor
    run = Run.open(recipe, tmp_path / "runs")
    run_stage(run, "prepare")
    with pytest.raises(StageError) as caught:
        run_stage(run, "warm_up")
    message = str(caught.value)
    assert re.match(
        r"only 0 of \d+ first-draft pairs are valid: grounded \d+x, such as: the answer's platinum", message
    )
    assert re.search(r"rubric_cut \d+x, such as: .* Raise models.rubric.max_tokens", message)
    assert str(run.path("warm_up", "invalid.jsonl")) in message
    rows = list(iter_json(run.path("warm_up", "invalid.jsonl")))
    assert {name for row in rows for name in row["reasons"]} >= {"rubric_cut", "grounded"}
    assert all((row["pair"] is None) == (row["failed"] == ["rubric_cut"]) and row["passage_id"] for row in rows)


def test_preview_shows_scored_pairs_and_the_run_does_not_pay_for_them_again(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    run = Run.open(recipe, tmp_path / "runs")
    text = io.StringIO()
    shown = preview(run, 3, step=Steps(Screen(Console(file=text, width=120))).step)
    assert len(shown.rows) >= 3
    # Each step is told as it begins and when it has ended, what takes long among them.
    begun = [line[2:] for line in text.getvalue().splitlines() if line.startswith("… ")]
    ended = [line[2:].rpartition(" ")[0] for line in text.getvalue().splitlines() if line.startswith("✓ ")]
    assert begun == ended
    assert [label.split()[0] for label in begun][:2] == ["Reading", "Writing"]
    for words in ("Loading the target", "Warming the target up", "gradients of", "Scoring"):
        assert sum(words in label for label in begun) == 1
    assert sum(isinstance(row[-1], float) for row in shown.rows) >= 3
    # A card each, whole at 80 columns and without colour, in a terminal as in a pipe.
    assert len(shown.cards) == len(shown.rows)
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=80, no_color=True, force_terminal=terminal)
        console.print(shown)
        lines = re.sub(r"\x1b\[\d*m", "", console.file.getvalue()).splitlines()  # type: ignore[attr-defined]
        assert max(map(len, lines)) <= 80
        for word in ("Passage", "Rubric", "Question", "Answer", "Checks", "Cost"):
            assert sum(line.strip("│ ").startswith(word) for line in lines) >= 3, word
        assert sum("passed every check" in line for line in lines) >= 3
        assert any("2 replies, " in line for line in lines), "a rubric and a pair each"
        assert any("│" in line for line in lines) == terminal
    for card in shown.cards:
        assert ("failed" in dict(card.parts)["Checks"]) == (card.outcome == "not valid")
    spent = sum(int(dict(card.parts)["Cost"].split()[0]) for card in shown.cards)
    assert spent == run.bought().replies
    assert any("do not test whether an answer is true" in note for note in shown.notes)
    assert any("270 million" in note for note in shown.notes) == (recipe.models.generator.name == "embedded")
    run_stage(run, "warm_up")
    assert asked_twice(served) == []


def test_a_small_first_draft_with_too_few_valid_pairs_is_continued(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    bad = 0

    def ungrounded_at_first(number: int, request: dict[str, Any]) -> Answer:
        nonlocal bad
        if "trainability" in json.dumps(request.get("response_format", {})) or bad == 4:
            return answer(number, request)
        bad += 1
        return said(json.dumps({"quote": "", "question": "Which planet has the widest rings?", "answer": "Saturn"}))

    served.answer = ungrounded_at_first
    run = Run.open(recipe, tmp_path / "runs")
    run_stage(run, "prepare")
    result = run_stage(run, "warm_up")
    assert recipe.warm_up.pairs == 6
    assert (result.first_draft, result.valid) == (10, 6)
    assert sum(result.lost.values()) == 4
    assert asked_twice(served) == []


@pytest.mark.slow
def test_a_warm_up_that_finds_its_steps_tells_them(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    raw = recipe.model_dump(mode="json")
    raw["warm_up"] |= {"steps": None, "max_steps": 6, "every": 3}
    run = Run.open(Recipe.parse(raw), tmp_path / "runs")
    run_stage(run, "prepare")
    result = run_stage(run, "warm_up")
    assert result.steps[-1] == 6, "fewer would leave Adam's moments without meaning"
    assert result.stopped in {"settled", "overfits", "most steps"}
    assert result.lr / recipe.fine_tune.lr in {0.5, 1.0, 2.0}
    assert (result.valid, result.trained_on, result.held_out) == (6, 4, 2)
    assert [row[0] for row in result.rows][2:6] == [
        "steps",
        "learning rate",
        "loss of what ends an answer",
        "content loss of 2 unseen pairs",
    ]
    assert "Warm-up of 6 steps" in look.warm_up_curve(run).alt


def test_the_order_of_replies_changes_nothing_and_the_models_are_seen_at_work(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    """Two runs whose services reply in different orders judge the same, in the same batches, in the same order."""
    undisturbed = Run.open(recipe, tmp_path / "first")
    run_all(undisturbed, BUYING)
    draw = random.Random(3)

    def late(number: int, request: dict[str, Any]) -> Answer:
        time.sleep(draw.choice((0, 0, 0.02, 0.05)))
        return answer(number, request)

    served.answer = late
    disturbed = Run.open(recipe, tmp_path / "second")
    run_all(disturbed, BUYING)
    for path in ("rewards.jsonl", "dataset/train.jsonl", "optimize_prompt/history.jsonl"):
        assert disturbed.path(path).read_bytes() == undisturbed.path(path).read_bytes()
    for stage in ("optimize_prompt", "synthesize"):
        loads = MODELS[stage].load(disturbed).model_dump()["busy"]
        # Synthesis needs no new rubric here: those of the first draft are kept replies, which are no work.
        assert set(loads) == {"generator", "rubric", "target"} - ({"rubric"} if stage == "synthesize" else set())
        assert all(0 < load["busy"] <= 1 and load["busy"] <= load["in_flight"] + 1e-4 for load in loads.values())
