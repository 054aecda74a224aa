"""A run whose reward is noise stops after the warm-up, says why, and goes on when the recipe says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_helpers import check_page, write_run
from reward_look_helpers import OldDifference, Shuffled
from rich.console import Console

from optimsyn.base.errors import StageError
from optimsyn.recipe.recipe import Recipe
from optimsyn.report import look
from optimsyn.report.page.report import write_report
from optimsyn.reward.look.record import RewardLook
from optimsyn.runs.folder import Run
from optimsyn.stages.preview import preview
from tests.llm_helpers import Service
from tests.stages_helpers import asked_twice, run_stage
from tests.test_reward_look import LOOK


def changed(recipe: Recipe, **sections: Any) -> Recipe:
    """The recipe with fields of `reward`, or `dtype` of the target, changed."""
    raw = recipe.model_dump(mode="json")
    if "dtype" in sections:
        raw["models"]["target"]["dtype"] = sections.pop("dtype")
    raw["reward"] |= sections
    return Recipe.parse(raw)


@pytest.mark.slow
@pytest.mark.parametrize(("scorer", "dtype"), [(Shuffled, "float32"), (OldDifference, "bfloat16")])
def test_noise_stops_the_run_after_the_warm_up_and_the_same_run_goes_on(
    recipe: Recipe, served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorer: Any, dtype: str
) -> None:
    monkeypatch.setattr("optimsyn.influence.factory.build_scorer", scorer)
    recipe = changed(recipe, dtype=dtype, look={"subsets": 0})
    run = Run.open(recipe, tmp_path / "runs")
    run_stage(run, "prepare")
    with pytest.raises(StageError, match=r"the reward is noise.*influence\.method: exact.*reward\.on_noise: warn"):
        run_stage(run, "warm_up")
    record = run.manifest.stage("warm_up")
    assert record.status == "failed" and record.notes["reward"] == "noise"
    found = RewardLook.load(run.path("warm_up", "reward_look.json"))
    assert record.notes["reward_look"] == found.to_json()
    page = write_report(run).read_text(encoding="utf-8")
    check_page(page)
    assert "Is the reward sound?" in page and "The reward is noise" in page and "on_noise" in page
    bought = len(served.requests)

    again = Run.open(changed(recipe, on_noise="warn"), tmp_path / "runs")
    assert again.folder == run.folder, "another folder would buy everything again"
    result = run_stage(again, "warm_up")
    assert result.reward == "noise" and again.manifest.stage("warm_up").notes["reward"] == "noise"
    assert len(served.requests) == bought and asked_twice(served) == []
    assert "chosen at random" in write_report(again).read_text(encoding="utf-8")


def test_a_run_keeps_its_look_and_shows_it(recipe: Recipe, tmp_path: Path) -> None:
    run = Run.open(changed(recipe, look={"steps": 3, "subsets": 3}), tmp_path / "runs")
    run_stage(run, "prepare")
    result = run_stage(run, "warm_up")
    found = RewardLook.load(run.path("warm_up", "reward_look.json"))
    assert found.verdict != "noise" and result.reward_look == found
    assert ("a look at the reward", found.verdict, "; ".join(found.reasons)) == result.rows[-1]
    assert look.reward(run) == found
    page = write_report(run).read_text(encoding="utf-8")
    assert "Is the reward sound?" in page and f"the reward is {found.verdict}" in page
    # The preview of a run that is warm shows what the run found.
    assert preview(run).look == found


@pytest.mark.slow
def test_a_look_can_be_left_out(recipe: Recipe, tmp_path: Path) -> None:
    off = Run.open(changed(recipe, look={"pairs": 0}), tmp_path / "runs")
    assert off.folder == Run.folder_of(recipe, tmp_path / "runs"), "a look changes no result"
    run_stage(off, "prepare")
    result = run_stage(off, "warm_up")
    assert result.reward_look is None and "reward.look.pairs: 0" in result.rows[-1][-1]
    assert not off.path("warm_up", "reward_look.json").exists()
    assert "reward.look.pairs: 0" in look.reward(off)._repr_html_()
    page = write_report(off).read_text(encoding="utf-8")
    assert "Is the reward sound?" not in page and "none: the recipe has reward.look.pairs: 0" in page
    assert preview(off).look is None


def test_preview_looks_too_and_says_that_three_pairs_are_few(recipe: Recipe, tmp_path: Path) -> None:
    shown = preview(Run.open(recipe, tmp_path / "runs"), 3)
    assert shown.look is not None and shown.look.training is None
    assert shown.look.verdict in ("too few to tell", "doubtful") and shown.look.trained_on == shown.look.pairs
    assert "A look at the reward" in shown._repr_html_()
    console = Console(width=120, record=True)
    console.print(shown)
    assert "A look at the reward" in console.export_text()


@pytest.mark.parametrize("verdict", ["sound", "doubtful", "noise", "too few to tell"])
def test_the_report_shows_every_verdict(tmp_path: Path, verdict: Any) -> None:
    from dataclasses import replace

    run = write_run(tmp_path)
    found = replace(LOOK, verdict=verdict, reasons=("because <b>",))
    found.save(run.path("warm_up", "reward_look.json"))
    page = write_report(run).read_text(encoding="utf-8")
    check_page(page)
    few = verdict == "too few to tell"
    said = "Too few pairs to tell about the reward" if few else f"The reward is {verdict}"
    assert f"{said}: because &lt;b&gt;." in page
    # What makes every other number doubtful also stands at the top.
    assert page.count(said) == (2 if verdict in ("noise", "doubtful") else 1)
    assert json.loads(run.path("warm_up", "reward_look.json").read_text())["verdict"] == verdict
