"""All stages of a run judge by the same checks and the same scorer; what is judged by others is judged again."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optimsyn.base.errors import StageError
from optimsyn.base.files import append_jsonl, iter_json
from optimsyn.recipe.recipe import Recipe
from optimsyn.report import look
from optimsyn.report.facts import RunFacts
from optimsyn.runs.folder import Run
from optimsyn.stages import synthesize
from optimsyn.stages.judged_by import NOTE, refuse_another
from optimsyn.stages.shared import Tools
from tests.llm_helpers import Service
from tests.stages_helpers import run_stage

PLUGIN = 'WORD = "platinum"\n\ndef no_word(pair, context):\n    return "a word" if WORD in pair.answer else None\n'


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes the plugin, as an editor would between two processes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(word: str) -> None:
        (tmp_path / "mine_checks.py").write_text(PLUGIN.replace("platinum", word))
        sys.modules.pop("mine_checks", None)
        importlib.invalidate_caches()

    write("platinum")
    yield write
    sys.modules.pop("mine_checks", None)


def _recipe(recipe: Recipe, *, prompt: bool) -> Recipe:
    raw = recipe.model_dump(mode="json")
    raw["checks"]["plugins"] = ["mine_checks:no_word"]
    raw["optimizers"]["prompt"]["enabled"] = prompt
    return Recipe.parse(raw)


@pytest.mark.slow
def test_stages_of_one_run_judge_by_the_same(
    recipe: Recipe, served: Service, tmp_path: Path, plugin: Callable[[str], None]
) -> None:
    run = Run.open(_recipe(recipe, prompt=True), tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy"):
        run_stage(run, stage)
    notes = {record.name: record.notes for record in run.manifest.stages}
    assert notes["warm_up"][NOTE].keys() == {"scorer"}
    assert notes["optimize_prompt"][NOTE]["scorer"] == notes["warm_up"][NOTE]["scorer"]
    assert "the plugin mine_checks:no_word" in notes["optimize_prompt"][NOTE]["checks"]
    bought = len(served.requests)
    plugin("silver")
    with pytest.raises(
        StageError,
        match=r"stage optimize_prompt judged .*: the plugin mine_checks:no_word changed since .* another --root",
    ):
        run_stage(run, "synthesize")
    assert len(served.requests) == bought, "nothing is bought before it is refused"
    other = {**notes["optimize_prompt"][NOTE], "scorer": "exact-0"}
    with pytest.raises(StageError, match=r"stage warm_up judged .*: the scorer \(the target"):
        refuse_another(run, other)
    plugin("platinum")
    run_stage(run, "synthesize")
    assert run.done("synthesize") and run.manifest.stage("synthesize").notes["passed_over"] == 0


@pytest.mark.slow
def test_an_unfinished_stage_judges_anew_under_other_checks(
    recipe: Recipe, tmp_path: Path, plugin: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(_recipe(recipe, prompt=False), tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy"):
        run_stage(run, stage)

    def stop(*_: Any) -> None:
        raise StageError("stopped behind all candidates")

    with monkeypatch.context() as patch:
        patch.setattr(synthesize, "passed_over", stop)
        with pytest.raises(StageError, match="stopped"):
            run_stage(run, "synthesize")
    before = list(iter_json(run.path("rewards.jsonl")))
    word = next(row["pair"]["answer"] for row in before if row["valid"])
    refused = sum(row["pair"]["answer"] == word for row in before)
    plugin(word)
    result = run_stage(run, "synthesize")
    assert f"{len(before)} earlier judgements in rewards.jsonl" in " ".join(result.notes)
    rows = list(iter_json(run.path("rewards.jsonl")))[len(before) :]
    assert {row["checks"] for row in rows} == {Tools(run).checker.fingerprint} != {row["checks"] for row in before}
    assert sum("mine_checks:no_word" in row["failed"] for row in rows) >= refused
    for variant in run.recipe.variants:
        candidates = list(iter_json(run.path("synthesize", f"{variant}.candidates.jsonl")))
        assert {row["checks"] for row in candidates} == {rows[0]["checks"]}
        assert all(not row["valid"] for row in candidates if row["pair"]["answer"] == word)


@pytest.mark.slow
def test_looks_and_reports_do_not_mix_identities(recipe: Recipe, tmp_path: Path, plugin: Callable[[str], None]) -> None:
    run = Run.open(_recipe(recipe, prompt=False), tmp_path / "runs")
    run_stage(run, "prepare")
    run_stage(run, "warm_up")
    asked = {"passage_id": "p", "kind": "free", "valid": False, "reward": -0.1, "source": "train_policy"}
    ledger = run.path("rewards.jsonl")
    for number, identity in enumerate(("old", "old", "new", "old", "new")):
        row = {**asked, "key": f"k{number}", "identity": identity, "batch_row": 0, "batch_rows": 1}
        append_jsonl(ledger, [row])
    assert len(look.policy_groups(run).rows) == 2
    assert RunFacts.read(run).judged["train_policy"].pairs == 2
