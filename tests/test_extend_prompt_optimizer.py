"""A prompt optimiser from outside of optimsyn: the page's example in a real run, and what holds for every method."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optimize_helpers import BASE_TEXT, WORTH, PairWriter, RubricModel, Shape, make_reward, passages

import optimsyn
from optimsyn.base.errors import ModelError, RecipeError, StageError
from optimsyn.base.extensions import PROMPT_OPTIMIZERS
from optimsyn.base.files import append_jsonl
from optimsyn.llm.replies import ReplyCache
from optimsyn.optimize.history import read_history
from optimsyn.optimize.methods import method_problems
from optimsyn.optimize.prompt import PromptResult, optimize_guiding_text
from optimsyn.optimize.prompt_task import PromptTask
from optimsyn.programs.rubric import RubricWriter
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.optimizers import PromptOptimizer
from optimsyn.report import look
from optimsyn.runs.folder import Run
from tests.docs_helpers import ROOT, blocks
from tests.report_helpers import write_run
from tests.stages_helpers import run_stage

[EXAMPLE] = blocks("python", ROOT / "docs" / "extend" / "prompt_optimizer.md")
GOOD = "Question types that taught most: mechanism."
BAD = "Question types that taught most: definition."


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes a module outside of optimsyn, which can be imported from then on."""
    written = []

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source, "utf-8")
        written.append(name)
        sys.modules.pop(name, None)

    monkeypatch.syspath_prepend(str(tmp_path))
    # Modules of one name, written twice within a second, are two all the same.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture
def registered() -> Iterator[Callable[[Any], str]]:
    names = []

    def register(method: Any) -> str:
        optimsyn.register("prompt_optimizer", method)
        names.append(method.__name__)
        return names[-1]

    yield register
    for name in names:
        PROMPT_OPTIMIZERS.forget(name)


def search(folder: Path, method: str, *, calls: int = 12, reward: Any = None) -> PromptResult:
    config = PromptOptimizer(method=method, metric_calls=calls, passages=3)
    writer = RubricWriter(RubricModel(ReplyCache(folder / "replies.sqlite")), BASE_TEXT)
    return optimize_guiding_text(
        PromptTask(config, writer, reward or make_reward(), passages(8), Shape(), 5, folder / "search")
    )


@pytest.mark.slow
def test_the_pages_example_searches_in_a_real_run(
    recipe: Recipe, tmp_path: Path, package: Callable[[str, str], None]
) -> None:
    assert len(EXAMPLE.code.splitlines()) <= 30
    package("my_search", EXAMPLE.code)
    # A text of several lines, as YAML writes them, ends in a line break.
    text = recipe.guiding_text + "\n"
    changes = {"optimizers.prompt.method": "my_search:add_hints", "guiding_text": text}
    recipe = changed(recipe, changes)
    assert method_problems(recipe) == []
    assert "by my_search:add_hints" in str(recipe._repr_html_())
    run = Run.open(recipe, tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt"):
        result = run_stage(run, stage)
    rows = read_history(run.path("optimize_prompt", "history.jsonl"))
    assert [row["status"] for row in rows] == ["start", "compared", "compared", "compared"]
    assert all(row["guiding_text"].startswith(recipe.guiding_text.strip()) for row in rows)
    assert "Ask for a number with its unit." in " ".join(row["guiding_text"] for row in rows)
    assert result.judged <= 8
    best = max(row["score"] for row in rows)
    chosen = run.path("optimize_prompt", "guiding_text.txt").read_text("utf-8").strip()
    assert chosen == next(row["guiding_text"] for row in rows if row["score"] == best)
    assert result.changed == (best > rows[0]["score"])
    noted = run.manifest.stage("optimize_prompt").notes["optimizer"]
    assert noted["method"] == "my_search:add_hints"
    assert len(noted["source"]) == 32
    assert "my_search:add_hints" in result.title
    assert "my_search:add_hints" in look.guiding_texts(run).title


def test_a_text_is_taken_if_it_gained_whatever_the_method_says(
    tmp_path: Path, registered: Callable[[Any], str]
) -> None:
    def better(task: PromptTask) -> str:
        [first, *_] = task.judge(f"{BASE_TEXT} {GOOD}", task.comparison[:1])
        assert first.feedback.startswith("Valid, influence +0.")
        return f"{BASE_TEXT} {GOOD}"

    def worse(task: PromptTask) -> str:
        return f"{BASE_TEXT} {BAD}"

    found = search(tmp_path / "a", registered(better))
    assert found.guiding_text == f"{BASE_TEXT} {GOOD}"
    assert found.score == pytest.approx(WORTH["mechanism"], abs=0.02)
    assert (found.judged, found.candidates) == (6, 2)
    found = search(tmp_path / "b", registered(worse))
    assert found.guiding_text == BASE_TEXT
    assert found.score == found.start_score
    assert [row["status"] for row in found.history] == ["start", "compared"]


def test_what_was_given_up_early_is_on_record(tmp_path: Path, registered: Callable[[Any], str]) -> None:
    def hasty(task: PromptTask) -> str:
        task.judge(f"{BASE_TEXT} {GOOD}", task.training[:2])
        assert not set(task.training) & set(task.comparison)
        assert [candidate.passages for candidate in task.candidates] == [3, 2]
        return task.start

    found = search(tmp_path, registered(hasty))
    assert [(row["status"], row["judged"]) for row in found.history] == [("start", 3), ("rejected", 5)]


def test_not_one_pair_more_than_the_budget_is_judged(tmp_path: Path, registered: Callable[[Any], str]) -> None:
    def greedy(task: PromptTask) -> str:
        return max((task.compare(f"{BASE_TEXT} Try {n}.") for n in range(20)), key=lambda one: one.score).guiding_text

    reward = make_reward()
    with pytest.raises(StageError, match=r"'greedy' asked for more than the 10 judged pairs.*metric_calls"):
        search(tmp_path, registered(greedy), calls=10, reward=reward)
    # The tenth may be given up for the error of the eleventh, which is asked for beside it.
    assert 9 <= reward.different <= 10


def test_the_budget_that_is_left_is_enough_for_texts_that_are_known(
    tmp_path: Path, registered: Callable[[Any], str]
) -> None:
    def twice(task: PromptTask) -> str:
        first = task.compare(f"{BASE_TEXT} {GOOD}")
        assert task.left == 0
        assert task.compare(first.guiding_text) == first
        return first.guiding_text

    assert search(tmp_path, registered(twice), calls=6).judged == 6


@pytest.mark.parametrize("answer", [None, "", 3])
def test_a_method_that_returns_no_text_is_told_so(
    tmp_path: Path, registered: Callable[[Any], str], answer: object
) -> None:
    def silent(task: PromptTask) -> Any:
        return answer

    with pytest.raises(ModelError, match=r"'silent' returned .*a guiding text"):
        search(tmp_path, registered(silent))


def test_an_edited_method_searches_anew_and_buys_nothing_twice(
    tmp_path: Path, package: Callable[[str, str], None]
) -> None:
    source = "def add(task):\n    return task.compare(task.start + ' {}').guiding_text\n"
    package("edited", source.format(BAD))
    writer = PairWriter()
    first = search(tmp_path, "edited:add", reward=make_reward(tmp_path / "rewards.jsonl", writer=writer))
    assert first.guiding_text == BASE_TEXT
    assert search(tmp_path, "edited:add") == first
    package("edited", source.format(GOOD))
    second = search(tmp_path, "edited:add", reward=make_reward(tmp_path / "rewards.jsonl", writer=writer))
    assert second.guiding_text == f"{BASE_TEXT} {GOOD}"
    # The start text's three pairs were not written again.
    assert len(writer.written) == 9


def test_rows_of_its_own_do_not_disturb_what_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path, stages=3)
    rows = [{"hint": "Why?", "score": 0.2}, {"tried": 3}, {"guiding_text": "Ask why.", "score": 0.2}]
    append_jsonl(run.path("optimize_prompt", "history.jsonl"), rows)
    assert [row[-1] for row in look.guiding_texts(run).rows] == ["Ask why."]


def test_an_error_of_the_method_itself_surfaces(tmp_path: Path, registered: Callable[[Any], str]) -> None:
    def broken(task: PromptTask) -> str:
        raise KeyError("no such hint")

    with pytest.raises(KeyError, match="no such hint"):
        search(tmp_path, registered(broken))


def hints(task: PromptTask) -> str:
    """A method at the top of a module."""
    return task.start


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("gpa", "optimizers.prompt.method: there is no prompt optimiser 'gpa'; did you mean `gepa`?"),
        ("nowhere:search", "optimizers.prompt.method: 'nowhere:search' cannot be imported"),
        ("json:JSONDecoder", "is no prompt optimiser: it is a class"),
        ("math:pi", "is no prompt optimiser: it cannot be called"),
        ("os:getcwd", "it cannot be called with the task"),
        (
            "miprov2",
            "optimizers.prompt.method: miprov2 has its texts written by a language model; name one in models.r",
        ),
    ],
)
def test_validate_refuses_a_wrong_method(recipe: Recipe, method: str, told: str) -> None:
    from optimsyn.machine.preflight import validate

    wrong = changed(recipe, {"optimizers.prompt.method": method})
    assert any(told in problem for problem in validate(wrong, deep=False, offline=True).problems)
    off = changed(wrong, {"optimizers.prompt.enabled": False})
    assert method_problems(off) == []


def test_a_method_says_itself_what_a_recipe_lacks(recipe: Recipe, package: Callable[[str, str], None]) -> None:
    source = """
        class Picky:
            def __call__(self, task):
                return task.start

            def problem(self, recipe):
                return "it wants three passages" if recipe.optimizers.prompt.passages < 3 else None

        picky = Picky()
    """
    package("picky_search", "\n".join(line[8:] for line in source.splitlines()))
    change = {"optimizers.prompt.method": "picky_search:picky"}
    assert method_problems(changed(recipe, change)) == ["optimizers.prompt.method: it wants three passages"]
    assert method_problems(changed(recipe, {**change, "optimizers.prompt.passages": 3})) == []


def test_a_recipe_takes_the_function_itself_and_a_method_belongs_to_its_identity(recipe: Recipe) -> None:
    mine = changed(recipe, {"optimizers.prompt.method": hints})
    assert mine.optimizers.prompt.method == f"{__name__}:hints"
    assert mine.fingerprint != recipe.fingerprint
    assert changed(recipe, {"optimizers.prompt.method": "gepa"}).fingerprint == recipe.fingerprint
    with pytest.raises(RecipeError, match=r"optimizers.prompt.method.*no name to import it by"):
        changed(recipe, {"optimizers.prompt.method": lambda task: task.start})


def test_a_method_is_looked_up_without_anything_heavy() -> None:
    code = (
        "import sys; from optimsyn.optimize.methods import prompt_method, policy_method; "
        "prompt_method('gepa'), prompt_method('miprov2'), policy_method('grpo'); "
        "print([name for name in ('torch', 'dspy', 'trl', 'litellm', 'optuna') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == "[]"
