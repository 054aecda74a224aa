"""A scorer from outside of optimsyn in the place of influence, through a run and its report."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import bm25s
import pytest
import torch

from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.base.files import iter_json
from optimsyn.influence.factory import build_scorer
from optimsyn.machine.preflight import validate
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.influence import Influence
from optimsyn.report.facts import RunFacts
from optimsyn.report.page.report import context_of, write_report
from optimsyn.reward.look.record import RewardLook, reward_look_rows
from optimsyn.runs.folder import Run
from optimsyn.stages.shared import Tools
from optimsyn.target.target import Target
from tests.extend_helpers import Written, example
from tests.influence_helpers import tiny_target
from tests.runs_helpers import tiny_recipe
from tests.stages_helpers import run_stage
from tests.training_helpers import QUESTIONS, make_pairs

BM25 = "our_scorers:Bm25"


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(dtype=torch.float32)


@pytest.fixture(autouse=True)
def scorers(written: Written) -> None:
    written("our_scorers", example("scorer"))


def _scorer(target: Target, questions: Any = QUESTIONS, name: str = BM25) -> Any:
    return build_scorer(target, questions, Influence(scorer=name))


def test_its_numbers_are_the_scores(target: Target) -> None:
    pairs = make_pairs()
    scores = _scorer(target).score(pairs)
    index = bm25s.BM25()
    index.index([question.question.lower().replace("?", "").split() for question in QUESTIONS], show_progress=False)
    text = f"{pairs[0].question} {pairs[0].answer}".lower().replace("?", " ").replace(".", " ")
    known = [word for word in text.split() if word in index.vocab_dict]
    assert float(scores.total[0]) == pytest.approx(float(index.get_scores(known).mean()), rel=1e-5)
    assert scores.ids == tuple(pair.id for pair in pairs)
    # What the report shows beside a score is the target's own.
    influence = build_scorer(target, QUESTIONS, Influence(method="exact")).score(pairs)
    assert scores.loss.tolist() == pytest.approx(influence.loss.tolist(), rel=1e-4)
    assert scores.label_tokens.tolist() == influence.label_tokens.tolist()


def test_its_identity_is_its_source_its_word_and_its_questions(target: Target, written: Written) -> None:
    before = _scorer(target).fingerprint
    assert _scorer(target).fingerprint == before != _scorer(target, QUESTIONS[1:]).fingerprint
    written("our_scorers", example("scorer") + '\n    fingerprint = "revision 2"\n')
    second = _scorer(target).fingerprint
    written("our_scorers", example("scorer").replace(".lower()", ""))
    assert len({before, second, _scorer(target).fingerprint}) == 3


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("return [1.0]", "gave 1 scores for 3 pairs"),
        ("return [float('nan') for pair in pairs]", "every score must be a finite number"),
        (
            "return {pair.id: 1.0 for pair in pairs}",
            "wrong_scorer:Wrong gave {'.*; score returns a number a pair",
        ),
        ("return None", "wrong_scorer:Wrong gave None .*; score returns a number a pair"),
        ("return 1 / 0", "score of wrong_scorer:Wrong raised ZeroDivisionError: division by zero; fix it"),
        ("import sys; sys.exit(3)", "score of wrong_scorer:Wrong raised SystemExit: 3"),
        (
            "return Scores.finished(['a'] * 3, ['b', 'c'], 'mean', by_subtask=torch.ones(3, 2), gradient_norm=None, "
            "loss=torch.ones(3), label_tokens=torch.ones(3))",
            "gave scores by b, c, and its attribute `subtasks` has all; set it to those",
        ),
    ],
)
def test_wrong_numbers_stop_the_run(target: Target, written: Written, score: str, message: str) -> None:
    written(
        "wrong_scorer",
        "import torch\nfrom optimsyn.influence.scores import Scores\n"
        f"class Wrong:\n    def __init__(self, context): pass\n    def score(self, pairs): {score}\n",
    )
    with pytest.raises(ModelError, match=message):
        _scorer(target, name="wrong_scorer:Wrong").score(make_pairs()[:3])
    written("wrong_scorer", "def made(context):\n    return context.nothing\n")
    with pytest.raises(ModelError, match=r"influence.scorer: wrong_scorer:made raised AttributeError"):
        _scorer(target, name="wrong_scorer:made")
    written("wrong_scorer", "def made(context):\n    return object()\n")
    with pytest.raises(RecipeError, match=r"made a object, which has no method score"):
        _scorer(target, name="wrong_scorer:made")


def test_a_run_is_scored_by_it(recipe: Recipe, tmp_path: Path) -> None:
    raw = recipe.model_dump(mode="json")
    raw["influence"] = {"scorer": BM25}
    raw["optimizers"]["prompt"]["enabled"] = False
    mine = Recipe.parse(raw)
    assert mine.fingerprint != recipe.fingerprint
    assert not [problem for problem in validate(mine, ask=False).problems if "influence" in problem]
    run = Run.open(mine, tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize"):
        run_stage(run, stage)
    rows = [row for row in iter_json(run.path("rewards.jsonl")) if row["valid"]]
    from our_scorers import Bm25, words  # type: ignore[import-not-found]

    class Context:
        def __init__(self) -> None:
            self.questions = Tools(run).validation

    own = Bm25(Context())
    for row in rows:
        wanted = own.one(words(f"{row['pair']['question']} {row['pair']['answer']}"))
        assert row["influence"] == row["reward"] == pytest.approx(wanted, rel=1e-6)
        assert row["scorer"].startswith("own-") and math.isfinite(row["loss"])
        assert row["feedback"].startswith("Valid, score ")
    look = RewardLook.from_json(run.manifest.stage("warm_up").notes["reward_look"])
    assert look.own_scorer and look.method == BM25
    shown = {row[0]: row[1] for row in reward_look_rows(look)}
    assert shown["scored by"] == BM25 and "numerical error" not in shown
    assert f"in its place scorer {BM25}" in str(context_of(RunFacts.read(run)))
    page = write_report(run).read_text(encoding="utf-8")
    assert f"In the place of influence stands what scorer {BM25} gives a pair" in page
    assert f"chosen by scorer {BM25}." in run.dataset.card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"influence": {"scorer": "our_scorers:Bm26"}}, "influence.scorer: .* module our_scorers has no Bm26"),
        ({"influence": {"scorer": "re:IGNORECASE"}}, "is no scorer: it is neither a class nor a function"),
        ({"influence": {"scorer": "bm25"}}, "influence.scorer: there is no scorer 'bm25'"),
    ],
)
def test_validate_refuses_what_cannot_be_one(changes: dict[str, Any], message: str) -> None:
    problems = "\n".join(validate(tiny_recipe(**changes), offline=True).problems)
    assert re.search(message, problems), problems


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"influence": {"scorer": BM25, "method": "twin"}}, "method twin is a way of computing influence"),
        ({"influence": {"scorer": BM25}, "reward": {"given": "judged"}}, "scorer our_scorers:Bm25 has none"),
    ],
)
def test_what_belongs_to_influence_is_refused_beside_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(**changes)
