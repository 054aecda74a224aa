"""A check from outside of optimsyn: a module, a registered name, a notebook cell."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import optimsyn
from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import CHECKS
from optimsyn.base.files import iter_json
from optimsyn.data.records import Pair
from optimsyn.execution.runner import run_stages
from optimsyn.machine.preflight import validate
from optimsyn.programs.checker import Checker, check_problems
from optimsyn.programs.checks import CheckContext
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.synthesis import Checks
from optimsyn.runs.folder import Run
from tests.extend_helpers import Cell, Written, example
from tests.programs_helpers import pair, passage
from tests.runs_helpers import tiny_recipe
from tests.stages_helpers import run_stage

REFERENCE = "our_checks:names_a_clause"
OF_HALF = """
WORDS = ("dig for",)

def no_digging(pair, context):
    return "it asks what was dug for" if any(word in pair.question for word in WORDS) else None
"""


def test_the_example_of_the_page_is_a_check(written: Written) -> None:
    written("our_checks", example("check"))
    verdict = Checker(Checks(plugins=(REFERENCE,))).check(pair(), passage())
    assert verdict.failed == (REFERENCE,)
    assert verdict.reasons[REFERENCE] == "the question names no clause"


@pytest.mark.slow
def test_a_run_judges_by_a_check_of_a_notebook_cell(recipe: Recipe, tmp_path: Path, cell: Cell) -> None:
    here = cell(OF_HALF)
    mine = changed(recipe, {"checks.plugins": [here["no_digging"]], "optimizers.prompt.enabled": False})
    assert mine.checks.plugins == ("__main__:no_digging",)
    assert not [problem for problem in validate(mine, ask=False).problems if "checks" in problem]
    run = Run.open(mine, tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize"):
        run_stage(run, stage)
    rows = list(iter_json(run.path("rewards.jsonl")))
    refused = [row for row in rows if "__main__:no_digging" in row["failed"]]
    assert refused and len(refused) < len(rows)
    assert all("dig for" in row["pair"]["question"] for row in refused)
    assert "dig for" not in run.path("synthesize", "static.selected.jsonl").read_text(encoding="utf-8")
    # The stages of `optimsyn run` have processes of their own: one in which the cell was not run finds nothing.
    with pytest.raises(RecipeError, match=r"checks.plugins: '__main__:no_digging' is known only in this notebook"):
        run_stages(run)
    del here["no_digging"]
    assert "no_digging is defined in a notebook or script, and this process has none" in "\n".join(
        validate(mine, ask=False).problems
    )


def test_editing_what_a_cell_uses_makes_another_check(cell: Cell) -> None:
    checks = Checks(plugins=(cell(OF_HALF)["no_digging"],))
    before = Checker(checks)
    cell('WORDS = ("mines",)')
    after = Checker(checks)
    assert {name for name in after.parts if after.parts[name] != before.parts[name]} == {
        "the plugin __main__:no_digging"
    }


def test_a_registered_check_is_named_without_its_module(written: Written) -> None:
    written("our_checks", example("check"))
    optimsyn.register("check", CHECKS.get(REFERENCE))
    try:
        assert Checker(Checks(plugins=("names_a_clause",))).check(pair(), passage()).failed == ("names_a_clause",)
        assert CHECKS.only_here("names_a_clause")
    finally:
        CHECKS.forget("names_a_clause")


def test_what_has_no_name_is_refused_when_it_is_given_and_one_check_needs_no_list() -> None:
    with pytest.raises(RecipeError, match="checks.plugins.0: .*lambda.* has no name"):
        tiny_recipe(checks={"plugins": lambda pair, context: None})
    checks = tiny_recipe(checks={"plugins": no_question, "disabled": "format", "unsafe_words": "ward 3"}).checks
    assert checks == Checks(plugins=[f"{__name__}:no_question"], disabled=["format"], unsafe_words=["ward 3"])
    with pytest.raises(RecipeError, match="checks.plugins: must be a list"):
        tiny_recipe(checks={"plugins": 3})


def no_question(pair: Pair, context: CheckContext) -> None:
    """A check at the top of a module."""


def leaves(pair: Pair, context: CheckContext) -> None:
    """A check that ends the program."""
    sys.exit("no such word list")


def test_a_check_that_is_named_twice_is_refused() -> None:
    mine = f"{__name__}:no_question"
    assert check_problems(Checks(plugins=(mine, mine))) == [f"checks.plugins: '{mine}' is there twice; remove one"]
    optimsyn.register("check", no_question, name="spare")
    try:
        [problem] = check_problems(Checks(plugins=("spare", mine)))
    finally:
        CHECKS.forget("spare")
    assert problem == f"checks.plugins: '{mine}' and 'spare' are the same check; remove one"


def test_a_check_that_ends_the_program_is_named() -> None:
    with pytest.raises(RecipeError, match="the check .*:leaves raised SystemExit: no such word list"):
        Checker(Checks(plugins=(f"{__name__}:leaves",))).check(pair(), passage())
