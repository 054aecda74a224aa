"""`optimsyn study`: a design checked before anything runs, resumable runs, and a page with numbers that hold."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats
from study_helpers import FAKE_CELL, fake_command, write_study

from optimsyn.base.errors import RecipeError, StageError
from optimsyn.batch import engines as batch_engines
from optimsyn.batch.plan import BatchLimits
from optimsyn.machine.preflight_result import Preflight
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.reward import Reward
from optimsyn.study.arms.forecast import pilot_power
from optimsyn.study.arms.outcomes import choice_loss, group_of
from optimsyn.study.arms.study import Study, conduct
from optimsyn.study.arms.study_file import StudyFile
from optimsyn.study.opening import open_study

DRIVER = """
import sys
from rich.console import Console
from optimsyn.batch import engines as batch_engines
from optimsyn.batch.plan import BatchLimits
from optimsyn.study.arms.study import Study, conduct
fake, path, root = sys.argv[1:]
batch_engines.run_command = lambda arguments: [sys.executable, "-c", fake, *arguments]
sys.exit(conduct(Study.open(path, root), BatchLimits(jobs=2), console=Console(width=140)))
"""


@pytest.fixture
def fake_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_engines, "run_command", fake_command)


def _conduct(path: Path, root: Path) -> tuple[int, str, dict[str, Any]]:
    text = io.StringIO()
    study = Study.open(path, root)
    code = conduct(study, BatchLimits(jobs=2), console=Console(file=text, width=140))
    return code, text.getvalue(), json.loads((study.folder / "study.json").read_text())


def _losses(folder: Path, domain: str, seed: int, arm: str) -> dict[str, float]:
    """The study's metric from the files, computed anew."""
    (run,) = folder.glob(f"{domain}-influence-s{seed}-*")
    losses = {}
    for line in (run / "evaluate" / f"{arm}.jsonl").read_text().splitlines():
        row = json.loads(line)
        losses[row["id"]] = row["loss"]
        if row["choice_scores"]:
            e = np.exp(row["choice_scores"])
            losses[row["id"]] = -np.log(e[2] / e.sum())
    return losses


def _by_hand(folder: Path, domain: str) -> tuple[float, float, float]:
    """Mean, variance of the mean and its degrees of freedom by the textbook's mean squares of a balanced design."""
    table = np.zeros((2, 8))
    for seed in (0, 1):
        one, other = (_losses(folder, domain, seed, arm) for arm in ("policy", "static"))
        values = [one[f"q{i}"] - other[f"q{i}"] for i in range(24)]
        table[seed] = np.reshape(values, (8, 3)).mean(1)
    mean, rows, columns = table.mean(), table.mean(1), table.mean(0)
    ms_rows, ms_columns = 8 * rows.var(ddof=1), 2 * columns.var(ddof=1)
    ms_both = ((table - rows[:, None] - columns + mean) ** 2).sum() / 7
    variance = (max(ms_rows, ms_both) + max(ms_columns, ms_both) - ms_both) / 16
    return mean, variance, ((ms_rows / 16) ** 2) / 1 + ((ms_columns / 16) ** 2) / 7 + ((ms_both / 16) ** 2) / 7


def test_a_killed_study_goes_on_buys_nothing_twice_and_its_page_has_the_right_numbers(
    tmp_path: Path, fake_cells: None
) -> None:
    path, root = write_study(tmp_path), tmp_path / "runs"
    folder = root / "toy"
    folder.mkdir(parents=True)
    (folder / "hang").touch()
    command = [sys.executable, "-c", DRIVER, FAKE_CELL, str(path), str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        end = time.monotonic() + 600
        while len(list(folder.glob("*/pid.txt"))) < 2 and time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert json.loads((folder / "batch.json").read_text())["state"] == "running"
    (folder / "hang").unlink()

    code, said, found = _conduct(path, root)
    assert code == 0, said
    sold = (folder / "sold.txt").read_text().split()
    assert len(sold) == len({*sold}) == 4 * 7
    assert {(each["domain"], each["seed"], each["state"]) for each in found["cells"]} == {
        (domain, seed, "finished") for domain in ("law", "music") for seed in (0, 1)
    }

    parts = {domain: _by_hand(folder, domain) for domain in ("law", "music")}
    (contrast,) = found["contrasts"]
    for domain, (mean, variance, below) in parts.items():
        half = stats.t.ppf(0.975, variance**2 / below) * variance**0.5
        shown = contrast["domains"][domain]
        assert [shown[k] for k in ("value", "low", "high")] == pytest.approx([mean, mean - half, mean + half])
    mean = float(np.mean([each[0] for each in parts.values()]))
    variance = sum(each[1] for each in parts.values()) / 4
    df = (4 * variance) ** 2 / sum(each[2] for each in parts.values())
    pooled = contrast["pooled"]
    assert pooled["value"] == pytest.approx(mean)
    assert pooled["p"] == contrast["holm_p"] == pytest.approx(2 * stats.t.sf(abs(mean) / variance**0.5, df))
    assert (contrast["better_in"], pooled["better"], pooled["questions"], pooled["groups"]) == (2, True, 48, 16)
    page = (folder / "study.html").read_text()
    for number in (mean, pooled["low"], pooled["high"], *(each[0] for each in parts.values())):
        assert f"{number:+.3f}".replace("-", "−") in page
    assert "policy asks for a fact" in page
    assert "+0.02 [+0.005, +0.035]" in page
    assert [each["kl"] for each in found["checks"]] == [0.03] * 4
    assert "http://" not in page.replace("http://www.w3.org", "")

    # The same command again starts nothing.
    code, said, again = _conduct(path, root)
    assert code == 0
    assert "finished earlier" in said
    assert (folder / "sold.txt").read_text().split() == sold
    for facts in (found, again):
        facts.pop("written")
    assert found == again


def test_what_changes_after_the_start_is_told_and_failures_have_a_reason(tmp_path: Path, fake_cells: None) -> None:
    root = tmp_path / "runs"
    folder = root / "toy"
    folder.mkdir(parents=True)
    (folder / "fail-music").touch()
    code, _, found = _conduct(write_study(tmp_path), root)
    assert code == 1
    reasons = {each["domain"]: each["reason"] for each in found["cells"]}
    assert "no luck" in reasons["music"]
    assert reasons["law"] == ""
    assert "no luck" in (folder / "study.html").read_text()
    assert [*found["contrasts"][0]["domains"]] == ["law"]

    changed = write_study(
        tmp_path,
        arms=["static", "policy", "no_rubric"],
        contrasts=[["static", "no_rubric"]],
        metric="accuracy",
        alpha=0.01,
    )
    found = Study.open(changed, root).write().model_dump()
    assert [(each["contrast"], each["registered"]) for each in found["contrasts"]] == [
        ("policy − static", True),
        ("static − no_rubric", False),
    ]
    assert found["contrasts"][1]["holm_p"] is None
    assert (found["metric"], found["alpha"]) == ("loss", 0.05)
    text = "\n".join(found["changed"])
    for words in ("contrasts: static − no_rubric added", "contrasts: policy − static removed", "metric: loss at the"):
        assert words in text
    page = (folder / "study.html").read_text()
    assert "Changed after start" in page
    assert "added after start" in page


def test_a_pilot_says_what_the_seeds_can_find(tmp_path: Path, fake_cells: None) -> None:
    _, _, found = _conduct(write_study(tmp_path), tmp_path / "runs")
    (own,) = found["power"]
    assert own["sd_rest"].keys() == {"law", "music"}
    pilot = StudyFile.load(write_study(tmp_path, name="large", pilot="runs/toy", seeds=[0, 1, 2, 3], smallest=0.2))
    (power,) = pilot_power(pilot)
    assert power.detectable[10] < power.detectable[5] < power.detectable[4] < power.detectable[3]
    assert power.detectable[3] == pytest.approx(own["detectable"]["3"])
    assert power.seeds_needed is not None
    wrong = StudyFile.load(write_study(tmp_path, pilot="nowhere"))
    with pytest.raises(RecipeError, match="no readable study.json"):
        pilot_power(wrong)


def test_a_recipe_and_a_study_are_told_apart(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    with pytest.raises(RecipeError, match="toy.yaml: is a study, not a recipe; use `optimsyn study .*toy.yaml`"):
        Recipe.load(study)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(Recipe.load("quickstart").to_yaml(), encoding="utf-8")
    for given in (str(recipe), "quickstart"):
        with pytest.raises(RecipeError, match=f"{given}: is a recipe, not a study; use `optimsyn run {given}`"):
            open_study(given, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contrast": []}, ["contrast: unknown field; did you mean `contrasts`"]),
        ({"arms": ["static", "polcy"], "contrasts": [["polcy", "static"]]}, ["'polcy'; did you mean `policy`"]),
        ({"contrasts": [["policy", "statc"]]}, ["contrasts.0: there is no arm 'statc'; did you mean `static`"]),
        ({"contrasts": [["policy@randm", "static"]], "controls": ["influence", "random"]}, ["did you mean `random`"]),
        ({"contrasts": [["policy", "policy"]]}, ["both sides"]),
        ({"recipes": {"law": {"recipee": "law.yaml"}}}, ["recipes.law.recipee: unknown field; did you mean `recipe`"]),
        ({"recipes": {"law": "lw.yaml"}}, ["recipes.law", "Did you mean"]),
        ({"set": {"synthesis.pair": 3}}, ["did you mean `synthesis.pairs`"]),
        (
            {"controls": {"influence": None, "odd": {"reward.invalid_penalt": 1}}},
            ["toy.yaml:\n  recipes.law, recipes.music: controls.odd: ", "reward.invalid_penalty"],
        ),
        ({"metric": "los"}, ["metric"]),
        ({"seeds": [1, 1]}, ["seeds: 1 is named twice"]),
        ({"seeds": None, "arms": None}, ["arms: required"]),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RecipeError) as refused:
        Study.open(write_study(tmp_path, **changes), tmp_path / "runs")
    for word in words:
        assert word in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_all_faults_of_a_study_and_its_recipes_come_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimsyn.machine.preflight.checked", lambda recipe, root, ask: Preflight([f"{recipe.seed}!"]))
    changes: dict[str, Any] = {
        "recipes": {"law": "quickstart", "music": "musc", "odd": {"recipee": "x"}},
        "arms": ["static", "polcy"],
        "contrasts": [["policy", "static"], ["statc", "static"]],
        "metric": "los",
        "pilot": "nowhere",
        "set": {"reward.invalid_penalty": 0.2},
        "controls": ["influence", "random"],
    }
    with pytest.raises(RecipeError) as refused:
        open_study(write_study(tmp_path, **changes), tmp_path / "runs", lambda text: None)
    first, *lines = str(refused.value).splitlines()
    assert first.endswith("toy.yaml:")
    expected = (
        "recipes.odd.recipe: required",
        "recipes.odd.recipee: unknown field; did you mean `recipe`?",
        "metric: Input should be",
        "arms: there is no variant 'polcy'; did you mean `policy`?",
        "contrasts.1: there is no arm 'statc'; did you mean `static`?",
        "recipes.music: recipe: musc: there is no such recipe",
        "pilot: ",
        "recipes.law: 0!",
    )
    for line, words in zip(lines, expected, strict=True):
        assert line.strip().startswith(words)
    with pytest.raises(RecipeError) as only_read:
        open_study(tmp_path / "toy.yaml", tmp_path / "runs")
    assert str(only_read.value).splitlines() == [first, *lines[:6]]


def test_controls_are_words_or_recipe_fields_and_arms_may_meet_across_them(tmp_path: Path) -> None:
    controls = {"influence": None, "harsh": {"reward.invalid_penalty": 0.5}}
    path = write_study(tmp_path, controls=controls, contrasts=[["policy", "policy@harsh"]])
    study = Study.open(path, tmp_path / "runs")
    assert [each.name for each in study.cells[:4]] == [
        "law-influence-s0",
        "law-harsh-s0",
        "music-influence-s0",
        "music-harsh-s0",
    ]
    assert {each.recipe.synthesis.pairs for each in study.cells if each.domain == "music"} == {9}
    assert {each.recipe.fine_tune.steps for each in study.cells} == {3}
    assert StudyFile.parse(
        {**study.file.model_dump(), "controls": ["random"], "contrasts": [["policy@random", "static@random"]]}
    ).controls == {"random": {"reward.source": "random"}}
    with pytest.raises(StageError, match="has not started"):
        study.result()


@pytest.mark.skipif("source" not in Reward.model_fields, reason="this version has no other source of the reward")
def test_the_control_other_takes_the_questions_of_the_next_domain(tmp_path: Path) -> None:
    path = write_study(tmp_path, controls=["influence", "random", "other"], contrasts=[["policy", "policy@other"]])
    for domain in ("law", "music"):
        raw = yaml.safe_load((tmp_path / f"{domain}.yaml").read_text())
        raw["questions"]["validation"]["path"] = "embedded:law" if domain == "law" else "embedded:medicine"
        (tmp_path / f"{domain}.yaml").write_text(yaml.safe_dump(raw))
    sources = {each.name: each.recipe.reward.model_dump(mode="json") for each in Study.open(path, tmp_path).cells}
    assert sources["law-random-s0"]["source"] == "random"
    assert sources["law-other-s0"]["other_questions"]["path"] == "embedded:medicine"
    assert sources["music-other-s1"]["other_questions"]["path"] == "embedded:law"


def test_choices_are_scored_over_their_options_and_groups_are_documents() -> None:
    scores = [-3.0, -1.0, -2.0]
    expected = -np.log(np.exp(-2) / np.exp(scores).sum())
    assert choice_loss({"choice_scores": scores, "correct": False}, {"answer_index": 2}) == pytest.approx(expected)
    two = -np.log(np.exp(-3) / np.exp([-3.0, -1.0]).sum())
    assert choice_loss({"choice_scores": scores[:2], "correct": False}, {}) == pytest.approx(two)
    assert choice_loss({"choice_scores": None, "correct": True}, {}) is None
    assert group_of({"id": "q", "group": "", "document_id": "d", "context": "c"}) == "d"
    assert group_of({"id": "q"}) != group_of({"id": "r"})


def test_the_command_tells_the_design_and_starts_nothing_for_its_status(tmp_path: Path) -> None:
    path = write_study(tmp_path)

    def optimsyn(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "optimsyn", "study", str(path), "--root", str(tmp_path / "runs"), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shown = optimsyn("--status", "--json")
    assert shown.returncode == 0, shown.stderr
    facts = json.loads(shown.stdout)["result"]
    assert (facts["forecast"]["runs"], facts["forecast"]["finished"], facts["forecast"]["seconds"]) == (4, 0, None)
    assert facts["forecast"]["requests"]["expected"] > 100
    assert not (tmp_path / "runs").exists()
    early = optimsyn("--page-only")
    assert early.returncode == 1
    assert "has not started" in early.stderr
    assert optimsyn("--status", "--page-only").returncode == 2
