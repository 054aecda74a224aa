"""An estimator from outside of optimsyn: its scores, methods, fingerprints and kept directions."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.influence.conditional import MovedScorer
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.directions import Directions
from optimsyn.influence.estimators import BUILT_IN
from optimsyn.influence.factory import build_scorer
from optimsyn.influence.moments import Moments
from optimsyn.influence.reference.plain import plain_scores
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.store.store import GradientStore
from optimsyn.machine.preflight import validate
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.evaluation import FineTune
from optimsyn.recipe.sections.influence import IS_LINEAR, Influence
from optimsyn.runs.folder import Run
from optimsyn.target.target import Target
from tests.extend_helpers import Written, example
from tests.influence_helpers import samples, tiny_target
from tests.runs_helpers import tiny_recipe
from tests.stages_helpers import run_stage

HALF = "our_estimators:HalfAdam"
TANH = "our_tanh:Tanh"
# Not linear, without momentum; a module beside it holds a part of it.
TANH_SOURCE = """
import torch
from our_scale import SCALE

class Tanh:
    def bind(self, moments):
        return lambda gradient: torch.tanh(gradient * SCALE)
"""
PAIRS = samples(5, seed=2)


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@pytest.fixture(autouse=True)
def estimators(written: Written) -> None:
    written("our_estimators", example("estimator"))
    written("our_scale", "SCALE = 30.0\n")
    written("our_tanh", TANH_SOURCE)


@pytest.mark.parametrize("normalization", ["dot", "cosine"])
@pytest.mark.parametrize("estimator", [HALF, TANH])
def test_scores_are_those_of_plain_autograd(target: Target, estimator: str, normalization: Any) -> None:
    questions = samples(4, seed=1, subtasks=("a", "b"))
    config = Influence(estimator=estimator, normalization=normalization, method="exact")
    found = build_scorer(target, questions, config).score(PAIRS)
    wanted = plain_scores(target, PAIRS, questions, config)
    torch.testing.assert_close(found.total, wanted.total, rtol=1e-6, atol=1e-9)


def test_a_linear_one_may_be_read_off_losses(target: Target) -> None:
    questions = samples(4, seed=1)
    exact = build_scorer(target, questions, Influence(estimator=HALF, method="exact")).score(PAIRS)
    for method in ("auto", "twin", "forward"):
        scorer = build_scorer(target, questions, Influence(estimator=HALF, method=method))
        assert isinstance(scorer, TwinScorer) == (method != "forward")
        torch.testing.assert_close(scorer.score(PAIRS).total, exact.total, rtol=1e-3, atol=1e-4)
    assert type(build_scorer(target, questions, Influence(estimator=TANH))) is InfluenceScorer
    with pytest.raises(RecipeError, match="our_tanh:Tanh is not linear in the gradient"):
        build_scorer(target, questions, Influence(estimator=TANH, method="twin"))
    linear = {name: estimator.linear for name, estimator in BUILT_IN.items()}
    assert linear == {name: IS_LINEAR[name] for name in BUILT_IN}


def test_a_linear_one_may_be_taken_on_top_of_what_was_judged(target: Target, written: Written) -> None:
    """One that computes what a built-in one does gives its scores, with a history too."""
    same = example("estimator").replace(".rsqrt()", ".reciprocal()")
    written("our_linear", same.replace("HalfAdam", "Linear"))
    questions, judged = samples(4, seed=1), samples(3, seed=7)
    found = []
    for name in ("adam_linear", "our_linear:Linear"):
        config = Influence(estimator=name, method="exact")
        base = InfluenceScorer(target, questions, estimator=name)
        scorer = MovedScorer(base, target, questions, config, FineTune(steps=12, batch_size=4, lr=0.3))
        scorer.judged(judged)
        assert not torch.allclose(scorer.score(PAIRS).total, base.score(PAIRS).total, rtol=1e-3)
        found.append(scorer.score(PAIRS).total)
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("estimator", [HALF, TANH])
def test_shares_of_tokens_sum_to_the_score(target: Target, estimator: str) -> None:
    scorer = InfluenceScorer(target, samples(3, seed=1), estimator=estimator)
    scores = scorer.score(PAIRS, token_shares=True)
    assert scores.token_shares is not None
    sums = [float(share.sum()) for share in scores.token_shares]
    assert sums == pytest.approx(scores.total.tolist(), rel=1e-4, abs=1e-6)


def test_one_with_momentum_says_what_shares_need() -> None:
    class Pushed:
        def bind(self, moments: Moments) -> Any:
            return lambda gradient: gradient + 1

    from optimsyn.influence.estimators import OwnEstimator

    estimator = OwnEstimator(HALF, Pushed)
    with pytest.raises(ModelError, match=r"gives a direction to a gradient of 0, .* add a method gain"):
        estimator.gain(Moments(torch.zeros(2), torch.ones(2), 1, (0.9, 0.99), 1e-8))


def test_kept_directions_serve_an_estimator_that_came_later(target: Target, tmp_path: Path) -> None:
    questions = samples(3, seed=1)
    first = InfluenceScorer(target, questions, folder=tmp_path, estimator="adam")
    files = sorted(tmp_path.glob("directions-*"))
    later = InfluenceScorer(target, questions, folder=tmp_path, estimator=HALF)
    assert sorted(tmp_path.glob("directions-*")) == files
    wanted = InfluenceScorer(target, questions, estimator=HALF).score(PAIRS).total
    torch.testing.assert_close(later.score(PAIRS).total, wanted)
    kept = Directions.load(files[0])
    assert set(kept.reference_norms) == {*BUILT_IN, later.estimator.identity}
    assert kept.vectors.keys() == first.directions[0].vectors.keys()


def test_the_source_belongs_to_the_identity(target: Target, written: Written, tmp_path: Path) -> None:
    questions = samples(3, seed=1)

    def fingerprint(name: str = TANH) -> str:
        return InfluenceScorer(target, questions, estimator=name).fingerprint

    before = fingerprint()
    store = GradientStore.open_or_create(tmp_path / "store", target, estimator=TANH, projection=None)
    assert store.manifest["estimator"] == TANH
    # The same text again is the same estimator.
    written("our_tanh", TANH_SOURCE)
    assert fingerprint() == before
    GradientStore.open_or_create(tmp_path / "store", target, estimator=TANH, projection=None)
    written("our_scale", "SCALE = 31.0\n")
    written("our_tanh", TANH_SOURCE)
    assert fingerprint() != before
    with pytest.raises(ModelError, match="another estimator_source"):
        GradientStore.open_or_create(tmp_path / "store", target, estimator=TANH, projection=None)
    assert fingerprint("sgd") == InfluenceScorer(copy.copy(target), questions, estimator="sgd").fingerprint


@pytest.mark.slow
def test_a_run_takes_it_by_name(recipe: Recipe, tmp_path: Path) -> None:
    raw = recipe.model_dump(mode="json")
    raw["influence"] = {"estimator": HALF}
    raw["reward"]["look"] = {"subsets": 0}
    mine = Recipe.parse(raw)
    assert not [problem for problem in validate(mine, ask=False).problems if "influence" in problem]
    run = Run.open(mine, tmp_path / "runs")
    run_stage(run, "prepare")
    run_stage(run, "warm_up")
    assert run.done("warm_up") and run.manifest.stage("warm_up").notes["reward"] != "noise"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"estimator": "no_such_module:X"}, "influence.estimator: 'no_such_module:X' cannot be imported"),
        ({"estimator": "json:loads"}, "'json:loads' is no estimator: it has no method bind"),
        ({"estimator": TANH, "method": "twin"}, "our_tanh:Tanh does not say that it is linear .* method twin needs"),
    ],
)
def test_validate_refuses_what_cannot_be_one(section: dict[str, Any], message: str) -> None:
    problems = "\n".join(validate(tiny_recipe(influence=section), offline=True).problems)
    assert re.search(message, problems), problems


def test_a_misspelled_name_is_refused_at_once() -> None:
    with pytest.raises(RecipeError, match=r"influence.estimator: there is no estimator 'adam_liner'; did you mean"):
        tiny_recipe(influence={"estimator": "adam_liner"})


class Sign:
    """An estimator at the top of a module."""

    def bind(self, moments: Moments) -> Any:
        return torch.sign


sign = Sign()


def test_an_object_is_taken_by_its_name() -> None:
    assert tiny_recipe(influence={"estimator": sign}).influence.estimator == f"{__name__}:sign"
    with pytest.raises(RecipeError, match=r"influence.estimator: .*Sign object.* has no name to import it by; give it"):
        tiny_recipe(influence={"estimator": Sign()})
    with pytest.raises(RecipeError, match=r"influence.scorer: must be text \(got \['a'\]\)"):
        tiny_recipe(influence={"scorer": ["a"]})


def test_a_run_can_be_opened_where_its_estimator_is_not(tmp_path: Path) -> None:
    text = tiny_recipe().to_yaml().replace("estimator: adam_linear", "estimator: registered_elsewhere")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert Recipe.load(tmp_path / "recipe.yaml", of_run=True).influence.estimator == "registered_elsewhere"
    with pytest.raises(RecipeError, match="no estimator 'registered_elsewhere'"):
        Recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("    def bind(self): ...", RecipeError, "its method bind: it cannot be called with self and moments"),
        (
            "    def __init__(self, a): ...\n    def bind(self, moments): ...",
            RecipeError,
            "cannot be made without arguments",
        ),
        ("    def bind(self, moments): return None", ModelError, "bind of our_wrong:Wrong gave None"),
        ("    def bind(self, moments): return 1 / 0", ModelError, "bind of our_wrong:Wrong raised ZeroDivisionError"),
        ("    def bind(self, moments): return lambda g: None", ModelError, "our_wrong:Wrong gave None for gradients"),
        ("    def bind(self, moments): return lambda g: g.half()", ModelError, "torch.float16 for gradients"),
        ("    def bind(self, moments): return lambda g: g[:, :1]", ModelError, "have the gradients' shape and dtype"),
    ],
)
def test_one_that_is_wrong_is_named(
    body: str, error: type[Exception], message: str, written: Written, target: Target
) -> None:
    written("our_wrong", f"class Wrong:\n{body}\n")
    with pytest.raises(error, match=re.escape(message)):
        InfluenceScorer(target, samples(3, seed=4), estimator="our_wrong:Wrong", normalization="dot").score(PAIRS)
