"""Whole weights of chosen linear layers in place of a LoRA."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from influence_helpers import byte_tokenizer, samples, tiny, tiny_target
from influence_reference import reference_scores

from optimsyn.base.errors import ModelError
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.recipe.recipe import TargetSpec
from optimsyn.target.target import Target, train_full_weights


def test_a_recipe_names_layers_and_their_scores_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(spec: Any, **_: Any) -> Any:
        return tiny("llama"), byte_tokenizer()

    monkeypatch.setattr("optimsyn.llm.local.loading.load_causal_lm", load)
    target = Target.load(TargetSpec(name="some/model", full_weights=("o_proj", r"layers\.1\.mlp\.down_proj")))
    assert set(target.parameters) == {
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    }
    target.warm_up(samples(3, seed=9), steps=2, batch_size=2, lr=1e-3)
    # Smaller than one sample's gradient: weights come in slices of rows.
    monkeypatch.setattr("optimsyn.influence.gradients.taps.SLICE_BYTES", 16 * 8 * 3)
    pairs, questions = samples(3, seed=2), samples(2, seed=3)
    scores = InfluenceScorer(target, questions, estimator="adam", normalization="cosine").score(pairs)
    _, wanted = reference_scores(target, questions, pairs, "adam", True)
    torch.testing.assert_close(scores.by_subtask, wanted, rtol=1e-5, atol=1e-8)


def test_patterns_that_match_nothing_are_refused_with_the_nearest() -> None:
    model = tiny("llama")
    with pytest.raises(ModelError, match="'down_prj' matches no linear layer of the model; the nearest is 'down_proj'"):
        train_full_weights(model, ["o_proj", "down_prj"])
    with pytest.raises(ModelError, match="not a regular expression"):
        train_full_weights(model, ["("])
    assert train_full_weights(model, ["lm_head"]) == ["lm_head"]
    # The end of a name only after a dot.
    with pytest.raises(ModelError, match="'proj' matches no linear layer"):
        train_full_weights(model, ["proj"])


def test_building_a_lora_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        tiny_target(warm=False)
