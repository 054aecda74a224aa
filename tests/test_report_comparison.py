"""Several runs on one page, and how a run is found by what one types."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from report_helpers import HOSTILE, check_page, make_recipe, stop, write_run
from typer.testing import CliRunner

from optimsyn.base.errors import StageError
from optimsyn.cli import app
from optimsyn.report.comparison import differing, write_comparison
from optimsyn.report.page.report import write_report
from optimsyn.runs.folder import Run
from optimsyn.runs.lookup import find_run


def page_of(runs: list[Run], path: Path) -> tuple[str, str]:
    html = write_comparison(runs, path).read_text(encoding="utf-8")
    return html, check_page(html).words


def test_two_finished_runs_side_by_side(tmp_path: Path) -> None:
    one = write_run(tmp_path / "runs", recipe=make_recipe(name="one"))
    other = write_run(tmp_path / "runs", recipe=make_recipe(name="other", synthesis={"pairs": 30}), seed=0)
    write_report(one)
    html, words = page_of([one, other], tmp_path / "pages" / "both.html")
    assert f'href="../runs/{one.name}/report.html"' in html, "relative to the page"
    assert f'href="../runs/{other.name}/report.html"' not in html, "it has none"
    assert "synthesis.pairs" in words and "warm_up.pairs" not in words, "only what differs"
    for run in (one, other):
        for row in json.loads(run.path("evaluation.json").read_text()):
            if row["variant"] == "policy":
                change = f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
                assert change.replace("-", "−") in words
    assert "All have the same seed" in words
    assert "different sets" not in words
    assert html.count("<svg") == 2


def test_twenty_runs_of_all_states_and_domains(tmp_path: Path) -> None:
    runs = []
    for i in range(20):
        recipe = make_recipe(
            name=f"r{i:02d}", seed=i % 3, guiding_text=f"Ask one short question about {i} {HOSTILE[:8]}."
        )
        runs.append(write_run(tmp_path / "runs", recipe=recipe, stages=7 if i % 4 else i // 4 + 1, seed=i % 5))
    stop(runs[4], "optimize_prompt" if not runs[4].done("optimize_prompt") else "train_policy", "failed")
    stop(runs[8], "train_policy", "interrupted")
    html, words = page_of(runs, tmp_path / "compare.html")
    assert "20 runs compared" in words
    assert "have 5 different sets of test questions, marked A, B, C, D, E" in words
    assert "change against the target as it came" in words
    assert "failed" in words and "interrupted" in words
    assert "seed" in words and "r01" in words
    assert len(html) < 400_000
    heights = [int(h) for h in re.findall(r'viewBox="0 0 380 (\d+)"', html)]
    assert max(heights) < 2200


def test_what_may_not_be_compared_is_said(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", recipe=make_recipe(), stages=1)
    target = {"name": "other/model", "max_length": 99}
    other = write_run(tmp_path / "b", recipe=make_recipe(models={"target": target}), stages=0)
    _, words = page_of([one, other], tmp_path / "c.html")
    assert "different targets (embedded, other/model)" in words
    scaled = write_run(tmp_path / "c", recipe=make_recipe(influence={"estimator": "sgd"}), stages=0)
    assert "different ways" in page_of([one, scaled], tmp_path / "c.html")[1]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / root, stages=1) for root in ("monday", "tuesday"))
    _, words = page_of([one, other, one], tmp_path / "c.html")
    assert "2 runs compared" in words
    assert f"monday/{one.name}" in words and f"tuesday/{one.name}" in words
    assert "Nothing, apart from name and text." in words
    with pytest.raises(StageError, match="two runs or more"):
        write_comparison([one, one], tmp_path / "c.html")


def test_differing_fields_group_the_recipes_by_value() -> None:
    recipes = {
        "a": make_recipe(),
        "b": make_recipe(models={"reflection": "openai/gpt-5-mini"}),
        "c": make_recipe(models={"reflection": "openai/gpt-5-mini"}, checks={"disabled": ["length"]}),
    }
    found = dict(differing(recipes))
    assert found["models.reflection.name"] == [("–", ["a"]), ("openai/gpt-5-mini", ["b", "c"])]
    assert found["checks.disabled"] == [("[]", ["a", "b"]), ('["length"]', ["c"])]
    assert not any(name.startswith("guiding_text") for name in found)


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "runs", recipe=make_recipe(seed=seed)) for seed in (1, 2)]
    first = write_comparison(runs, tmp_path / "c.html").read_bytes()
    assert write_comparison(runs, tmp_path / "c.html").read_bytes() == first


def test_a_run_is_found_by_its_folder_or_the_right_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "runs", stages=0)
    monkeypatch.chdir(tmp_path)
    assert find_run(f"runs/{run.name}").folder == run.folder
    wrong = run.name[:-1] + ("0" if run.name[-1] != "0" else "1")
    for typed in (run.name, "vitamins", "runs/vitamins"):
        assert find_run(typed).folder == run.folder
    for typed in (f"runs/{wrong}", wrong):
        with pytest.raises(StageError, match=rf"did you mean runs/{run.name}\?"):
            find_run(typed)
    other = write_run(tmp_path / "runs", recipe=make_recipe(seed=9), stages=0)
    both = ", ".join(sorted((run.name, other.name)))
    with pytest.raises(StageError, match=rf"vitamins: 2 runs begin with this name; name one of {both}"):
        find_run("vitamins")
    other_first = min(run.name, other.name)
    with pytest.raises(StageError, match=rf"a folder of runs, not a run; name one of them, such as runs/{other_first}"):
        find_run("runs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StageError, match=r"empty: not a run folder .*`optimsyn run RECIPE` makes one"):
        find_run(str(tmp_path / "empty"))
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "empty" and may(path, mode))
    monkeypatch.setattr(Path, "is_file", _refusing(Path.is_file, tmp_path / "empty" / "manifest.json"))
    with pytest.raises(StageError, match="not a run folder"):
        find_run(".")


def _refusing(is_file: Callable[[Path], bool], closed: Path) -> Callable[[Path], bool]:
    def asked(path: Path) -> bool:
        if path.absolute() == closed:
            raise PermissionError(path)
        return is_file(path)

    return asked


def test_the_commands_write_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [write_run(tmp_path / "runs", recipe=make_recipe(seed=seed)) for seed in (1, 2)]
    monkeypatch.chdir(tmp_path)
    for run in runs:
        told = CliRunner().invoke(app, ["report", str(run.folder)])
        assert told.exit_code == 0
        assert told.output.strip() == str(run.folder / "report.html")
    told = CliRunner().invoke(app, ["compare", *(str(run.folder) for run in runs), "--output", "out/c.html"])
    assert told.exit_code == 0, told.output
    assert "../runs/" in (tmp_path / "out" / "c.html").read_text()
    (tmp_path / "runs" / "batch-logs").mkdir()
    told = CliRunner().invoke(app, ["compare", "runs"])
    assert told.exit_code == 0, "a folder of runs is all of its runs"
    assert "2 runs compared" in check_page((tmp_path / "compare.html").read_text()).words
