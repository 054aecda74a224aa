"""Which scorer a recipe's section `influence` makes."""

from __future__ import annotations

import pytest
from influence_helpers import samples, tiny_target

from optimsyn.errors import RecipeError
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.scoring import build_scorer
from optimsyn.influence.twin import TwinScorer
from optimsyn.recipe import Influence
from tests.runs_helpers import tiny_recipe


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ({}, TwinScorer),
        ({"estimator": "sgd"}, TwinScorer),
        ({"method": "exact"}, InfluenceScorer),
        ({"estimator": "adam", "normalization": "cosine"}, InfluenceScorer),
        ({"normalization": "cosine"}, InfluenceScorer),
    ],
)
def test_the_section_chooses_the_scorer(section: dict[str, str], kind: type) -> None:
    target = tiny_target()
    target.warm_up(samples(4), steps=2, batch_size=2)
    scorer = build_scorer(target, samples(3, seed=1), Influence.model_validate(section))
    assert type(scorer) is kind
    scores = scorer.score(samples(3, seed=2))
    assert (scores.gradient_norm is None) == (kind is TwinScorer)
    exact = InfluenceScorer(
        target,
        samples(3, seed=1),
        estimator=section.get("estimator", "adam_linear"),
        normalization="cosine" if section.get("normalization") == "cosine" else "dot",
    ).score(samples(3, seed=2))
    assert scores.total.tolist() == pytest.approx(exact.total.tolist(), rel=1e-2, abs=1e-3)


def test_several_subtasks_are_cheaper_by_one_backward_pass() -> None:
    target = tiny_target()
    target.warm_up(samples(4), steps=2, batch_size=2)
    questions = samples(4, seed=1, subtasks=("a", "b"))
    assert type(build_scorer(target, questions, Influence())) is InfluenceScorer
    assert type(build_scorer(target, questions, Influence(method="twin"))) is TwinScorer


def test_twins_of_a_score_that_is_no_derivative_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"influence: method twin .* adam with dot is not; .* method to exact"):
        tiny_recipe(influence={"method": "twin", "estimator": "adam"})
