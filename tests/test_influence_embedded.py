"""The influence engine on the embedded model: the cheap way to its losses, and its gradients in float32."""

from __future__ import annotations

import pytest
import torch
from influence_helpers import by_hand, flat, plain_gradient, plain_loss, samples

from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.recipe.recipe import TargetSpec
from optimsyn.target.target import Target


@pytest.mark.slow
def test_scores_of_the_embedded_model_are_exact_in_float32() -> None:
    target = Target.load(TargetSpec(name="embedded", max_length=200))
    target.warm_up(samples(2, seed=1), steps=2, batch_size=2)
    questions, pairs = samples(2, seed=2), samples(2, seed=3)
    scores = InfluenceScorer(target, questions, estimator="sgd", normalization="cosine").score(pairs)
    assert target.label_loss.fused, "logits at label positions only, through the frozen output layer"
    directions = [flat(plain_gradient(target, by_hand(target, q, "question"))) for q in questions]
    direction = torch.stack(directions).mean(0) / torch.stack(directions).square().sum(1).mean().sqrt()
    for i, pair in enumerate(pairs):
        counted = by_hand(target, pair, "pair")
        gradient = flat(plain_gradient(target, counted))
        assert float(scores.total[i]) == pytest.approx(float(direction @ gradient / gradient.norm()), abs=2e-4)
        assert float(scores.gradient_norm[i]) == pytest.approx(float(gradient.norm()), rel=1e-3)
        assert float(scores.loss[i]) == pytest.approx(float(plain_loss(target, counted).detach()), rel=1e-4)
