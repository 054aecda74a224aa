"""A check from outside of optimsyn: a module, a registered name, a notebook cell."""

from __future__ import annotations

from pathlib import Path

import pytest

import optimsyn
from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import CHECKS
from optimsyn.base.files import iter_json
from optimsyn.execution.runner import run_stages
from optimsyn.machine.preflight import validate
from optimsyn.programs.checks import Checker
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.synthesis import Checks
from optimsyn.runs.folder import Run
from tests.extend_helpers import Cell, Written, example
from tests.programs_helpers import pair, passage
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
        assert CHECKS.is_of_this_process("names_a_clause")
    finally:
        CHECKS.forget("names_a_clause")


def test_what_has_no_name_is_refused_when_it_is_given() -> None:
    with pytest.raises(RecipeError, match="checks.plugins: .*lambda.* has no name"):
        Checks(plugins=(lambda pair, context: None,))
