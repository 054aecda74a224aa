"""How recipe, run, scores, dataset and preflight show themselves in a notebook and in a terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from report_helpers import HOSTILE, Page, judgement, make_recipe, stop, write_run
from rich.console import Console

from optimsyn.base.errors import DataError
from optimsyn.influence.scores import Scores
from optimsyn.machine.preflight_result import Preflight
from optimsyn.runs.datasets.dataset import Dataset
from optimsyn.runs.datasets.export import export_dataset


def words_of(shown: Any) -> str:
    """The words of what a notebook shows, once its HTML has been checked for what suits both themes."""
    html = shown._repr_html_()
    page = Page(html)
    assert page.problems == []
    assert "script" not in page.tags and "img" not in page.tags
    assert not re.search(r"background|#[0-9a-f]{3,6}\b|\bcolor:", html), "colours are the theme's"
    return page.words


def terminal(shown: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_a_recipe_says_what_it_does_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITAMIN_KEY", "hunter2-correct-horse")
    models = {
        "generator": {"name": "openai/x", "api_base": "http://localhost:1/v1", "api_key_env": "VITAMIN_KEY"},
        "reflection": "openai/gpt-5-mini",
    }
    limits = {"cost_usd": 20, "stage_minutes": 90}
    recipe = make_recipe(models=models, limits=limits, optimizers={"policy": {"enabled": False}})
    for shown in (words_of(recipe), terminal(recipe, 200)):
        assert f"Recipe vitamins, fingerprint {recipe.fingerprint}" in shown
        assert "openai/x, at http://localhost:1/v1, key from $VITAMIN_KEY" in shown
        assert "hunter2" not in shown
        assert "openai/gpt-5-mini" in shown and "20 USD, 90 minutes a stage" in shown
        assert "guiding text by GEPA, 40 judged pairs" in shown and "GRPO" not in shown
        assert "the dataset is that of the optimised guiding text" in shown
        assert "Ask one short question about vitamins." in shown
        assert "50% of the validation questions' groups, held back" in shown
    assert repr(recipe) == f"Recipe('vitamins', fingerprint {recipe.fingerprint})"
    hostile = make_recipe(description=HOSTILE, questions={"validation": "a.jsonl", "test": {"hub": "a/b", "limit": 9}})
    assert "hub:a/b, train, at most 9" in words_of(hostile)


def test_a_run_shows_stages_state_and_outcome_but_no_clock(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", stages=4)
    stop(run, "synthesize", "failed", reason=f"no reply {HOSTILE}")
    shown = words_of(run)
    assert f"Run {run.name}" in shown
    assert "1. Prepare ✓ finished 4 documents, 9 passages, 12 validation and 20 test questions, 2 rows lost" in shown
    assert "✗ failed ServiceError: no reply <script>" in shown
    assert "· pending" in shown
    assert not re.search(r"\d+ (s|min)\b", shown)
    finished = write_run(tmp_path / "more")
    assert "5 targets on 20 test questions" in words_of(finished)
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    assert words_of(finished) == words_of(finished)
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before, "showing changes nothing"
    assert "the dataset is that of the trained policy" in terminal(finished, 200)


def test_scores_show_their_quantiles() -> None:
    by_subtask = torch.tensor([[0.1, 0.3], [0.2, 0.4], [0.3, 0.5]], dtype=torch.float64)
    scores = Scores(
        ids=("a", "b", "c"),
        subtasks=("doses", "food_sources"),
        total=by_subtask.mean(1),
        by_subtask=by_subtask,
        gradient_norm=None,
        loss=torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64),
        label_tokens=torch.tensor([2, 3, 4]),
    )
    shown = words_of(scores)
    assert "Scores of 3 samples" in shown
    assert "influence 0.200 0.250 0.300 0.350 0.400 0.300" in shown
    assert "food sources 0.300 0.350 0.400 0.450 0.500 0.400" in shown
    assert "loss 1.00 1.50 2.00 3.00 4.00 2.33" in shown
    assert "gradient norm" not in shown
    assert "influence" in terminal(scores)
    assert repr(scores) == "Scores(3 samples, subtasks doses, food_sources)"
    none = torch.zeros(0, dtype=torch.float64)
    empty = Scores((), ("all",), none, torch.zeros(0, 1), none, none, torch.zeros(0, dtype=torch.int64))
    assert "Scores of 0 samples" in words_of(empty)


def test_the_dataset_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", stages=5)
    with pytest.raises(DataError, match="no dataset yet; the stage synthesize writes it"):
        _ = run.dataset
    rows = [judgement("policy", i, 0.01 * i, text=HOSTILE.replace("\x00", "")) for i in range(8)]
    export_dataset(run.folder / "dataset", rows, recipe=run.recipe, variant="policy", losses={"kept": 8})
    dataset = run.dataset
    assert isinstance(dataset, Dataset)
    assert len(dataset) == 8
    assert list(dataset) == [row.pair for row in rows]
    assert dataset[-1] == rows[-1].pair
    assert dataset[2:4] == [rows[2].pair, rows[3].pair]
    assert dataset.influence == [row.influence for row in rows]
    assert dataset.card.startswith("---\n") and "# vitamins" in dataset.card
    assert "influence" in dataset.columns
    shown = words_of(dataset)
    assert "8 pairs from 1 document: trained policy" in shown
    assert shown.index("policy 7 is safe") < shown.index("policy 6 is safe"), "highest influence first"
    assert "5 of 8" in shown
    assert "policy 7" in terminal(dataset, 200)
    assert repr(dataset).startswith("Dataset(8 pairs, ")


def test_a_preflight_shows_problems_and_notes() -> None:
    fine = Preflight(warnings=["few questions"], counts={"documents": 1200})
    assert "Nothing would stop this run" in words_of(fine)
    assert "read 1,200 documents" in words_of(fine)
    bad = Preflight(problems=[f"documents: {HOSTILE}"])
    assert "One thing would stop this run" in words_of(bad) and "<script>" in words_of(bad)
    assert "2 things would stop this run" in terminal(Preflight(problems=["a", "b"]))
