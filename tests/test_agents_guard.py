"""An agent cannot choose the test questions, nor pass the caps of a run; the smaller tools work."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from report_helpers import make_recipe, write_run

from optimsyn.agents.caps import capped
from optimsyn.agents.guard import Guard
from optimsyn.agents.jobs import Jobs
from optimsyn.agents.ledger import Ledger
from optimsyn.agents.tools import Toolbox
from optimsyn.base.errors import DataError, OptimsynError, RecipeError, StageError
from optimsyn.cli import main
from optimsyn.llm.replies import Reply, ReplyCache
from optimsyn.machine import doctor
from optimsyn.machine.doctor import Finding
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run


def rows(path: Path, name: str, count: int = 8) -> str:
    """A file of questions in groups."""
    lines = [
        {"id": f"{name}{i}", "question": f"What is thing {i} of {name}?", "answer": f"secret {i}", "group": f"g{i}"}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    """A root with a recipe that draws its test questions from a file, and one that names theirs."""
    tmp_path = tmp_path_factory.mktemp("guarded")
    mine = {"questions.validation": rows(tmp_path / "drawn.jsonl", "drawn"), "questions.test": None}
    quickstart = Recipe.load("quickstart")
    (tmp_path / "drawn.yaml").write_text(quickstart.changed({**mine, "seed": 5}).to_yaml(), encoding="utf-8")
    named = {f"questions.{part}": rows(tmp_path / f"{part}.jsonl", part) for part in ("validation", "test")}
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "named.yaml").write_text(quickstart.changed(named).to_yaml(), encoding="utf-8")
    write_run(tmp_path / "runs", stages=1)
    (tmp_path / "runs" / "old").mkdir()
    return Guard(tmp_path)


@pytest.mark.parametrize(
    ("recipe", "changes", "problem"),
    [
        ("drawn.yaml", {"seed": 8}, r"keep .*seeds.data: 5 beside another `seed`"),
        ("drawn.yaml", {"seeds.data": 8}, "an agent may not choose"),
        ("drawn.yaml", {"questions.test_fraction": 0.3}, "questions.test_fraction 0.5"),
        ("drawn.yaml", {"questions.test_fraction": 0.9, "seed": 11}, "an agent may not choose"),
        ("drawn.yaml", {"questions.test_limit": 2}, "questions.test_limit null"),
        ("drawn.yaml", {"questions.validation.limit": 3}, "an agent may not choose"),
        ("drawn.yaml", {"questions.validation.columns": {"group": "id"}}, "an agent may not choose"),
        ("drawn.yaml", {"questions.test": "validation.jsonl"}, "an agent may not choose"),
        ("drawn.yaml", {"documents.source": "drawn.jsonl"}, "keeps a part as test questions"),
        ("drawn.yaml", {"reward.source": "other", "reward.other_questions": "drawn.jsonl"}, "keeps a part as test"),
        ("quickstart", {"questions.validation": "drawn.jsonl", "questions.test": None}, "an agent may not choose"),
        ("quickstart", {"questions.validation": "drawn.jsonl"}, "an agent may not choose"),
        ("quickstart", {"questions.validation": "test.jsonl"}, "holds the test questions"),
        ("quickstart", {"documents.source": "test.jsonl", "questions.test": "test.jsonl"}, "holds the test questions"),
        ("deep/er/named.yaml", {"questions.test": None}, "an agent may not choose"),
        ("deep/er/named.yaml", {"questions.test": "drawn.jsonl"}, "an agent may not choose"),
        ("quickstart", {"documents.source": "."}, "is in the folder of a run|holds the test questions"),
        ("quickstart", {"documents.source": "runs"}, "is in the folder of a run"),
    ],
)
def test_an_agent_does_not_choose_the_test_questions(
    guard: Guard, recipe: str, changes: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(guard.root)
    with pytest.raises(RecipeError, match=problem):
        guard.recipe(recipe, changes=changes)
    # And it has not learned from the attempt that this is how they are drawn.
    with pytest.raises(RecipeError, match=problem):
        guard.recipe(recipe, changes=changes)


def test_what_leaves_the_test_questions_is_allowed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(guard.root)
    for size in ("full", "tiny"):
        assert guard.recipe("drawn.yaml", size, {"synthesis.pairs": 5, "questions.validation_limit": 2})
    assert guard.recipe("drawn.yaml", changes={"seed": 8, "seeds.data": 5}).seed == 8
    same = {"questions.validation": "drawn.jsonl", "questions.test": None, "seed": 5}
    assert guard.recipe("quickstart", changes=same).questions.test is None
    assert guard.recipe("deep/er/named.yaml", changes={"seed": 9}).seed == 9
    # A person's own recipe may cut passages from the rows of its questions.
    both = {**same, "documents.source": {"path": "drawn.jsonl", "columns": {"text": "question"}}}
    Path("both.yaml").write_text(Recipe.load("quickstart").changed(both).to_yaml(), encoding="utf-8")
    assert guard.recipe("both.yaml")


def spend(folder: Path, cost: float) -> None:
    """A run that has bought this."""
    cache = ReplyCache(folder / "replies.sqlite")
    cache.put(f"k{cost}", Reply(text="x", cost_usd=cost), {})
    cache.close()


def test_a_run_keeps_the_cap_of_a_person(tmp_path: Path) -> None:
    recipe = Recipe.load("quickstart", size="tiny")
    folder = Run.folder_of(recipe, tmp_path)

    def started(needs: float | None, **changes: Any) -> float | None:
        run = Run.open(capped(recipe.changed(changes), folder, needs), tmp_path)
        return Recipe.load(run.folder).limits.cost_usd

    assert started(None) is None and started(0.0) is None
    # A preview's cap gives way to that of the run, also when the run is named by its folder.
    assert started(0.1) == pytest.approx(0.1)
    recipe = Recipe.load(folder)
    assert started(2.0) == pytest.approx(2.0)
    spend(folder, 1.5)
    recipe = Recipe.load("quickstart", size="tiny")
    assert started(0.5) == pytest.approx(2.0)
    # A person starts it with a cap; by the recipe's file, which has none, an agent stays below it.
    Run.open(recipe.changed({"limits.cost_usd": 1.75}), tmp_path)
    assert started(5.0) == pytest.approx(1.75) and started(5.0) == pytest.approx(1.75)
    assert started(0.1) == pytest.approx(1.6) and started(5.0) == pytest.approx(1.75)
    assert started(5.0, **{"limits.cost_usd": 1.7}) == pytest.approx(1.7)


def test_a_ledger_counts_over_kernels(tmp_path: Path) -> None:
    run = tmp_path / "run"
    spend(run, 1.0)
    first = Jobs(5.0, Ledger(tmp_path / "kept"))
    first.ledger.begin(run)
    spend(run, 0.25)
    spend(tmp_path / "kept", 0.5)
    assert first.money().spent == pytest.approx(0.75)
    first.end()
    # Another kernel, and the run folder is gone: it was paid for all the same.
    for file in run.iterdir():
        file.unlink()
    assert Jobs(5.0, Ledger(tmp_path / "kept")).money().left == pytest.approx(4.25)
    assert Jobs(5.0).money().left == 5.0
    (tmp_path / "kept" / "spent.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="what was spent is unknown"):
        Ledger(tmp_path / "kept")


def test_compare_and_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = Toolbox(Guard(tmp_path), Jobs())
    questions = {"validation": {"path": "embedded:quickstart", "where": {"split": "validation"}}}
    recipes = [make_recipe(name=name, questions=questions) for name in ("one", "two")]
    names = [write_run(tmp_path / "runs", recipe=each).name for each in recipes]
    made = tools.compare(names, "both.html")
    assert (tmp_path / made.html).is_file() and [Path(run.run).name for run in made.runs] == names
    assert all(run.headline for run in made.runs) and "Figures" not in made.text()
    for output in ("both.txt", f"runs/{names[0]}/report.html", "../both.html"):
        with pytest.raises((StageError, RecipeError), match="is no page|is outside of"):
            tools.compare(names, output)
    monkeypatch.setattr(
        doctor, "diagnose", lambda *_: iter([Finding("disk", "ok", "4 GB"), Finding("keys", "fail", "none")])
    )
    found = tools.doctor()
    assert not found.ok and [each.what for each in found.findings] == ["disk", "keys"]
    assert "<table>" in found._repr_html_()
    assert (tools.run(f"runs/{names[0]}").state, tools.status(names[1]).state) == ("finished", "finished")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = builtins.__import__

    def without(name: str, *args: Any, **named: Any) -> Any:
        if name == "mcp" or name.startswith("mcp."):
            raise ImportError(name)
        return found(name, *args, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(sys, "argv", ["optimsyn", "mcp"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "pip install 'optimsyn[mcp]'" in said and "Traceback" not in said
    assert issubclass(RecipeError, OptimsynError)
