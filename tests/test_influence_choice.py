"""Which scorer a recipe's section `influence` makes."""

from __future__ import annotations

import pytest
import torch
from influence_helpers import byte_tokenizer, samples, tiny_target
from influence_reference import reference_scores
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.influence.derivative.smoothness import choice_of
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.factory import build_scorer
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.recipe.recipe import Lora
from optimsyn.recipe.sections.influence import Influence
from optimsyn.target.target import Target
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


def test_a_mixture_of_experts_is_scored_from_gradients() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 260, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, **experts, num_key_value_heads=1, intermediate_size=24))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    lora = Lora(r=2, alpha=4, target_modules=("q_proj", "v_proj"))
    target = Target.from_model(model, byte_tokenizer(), lora=lora, max_length=200)
    target.warm_up(samples(4), steps=2, batch_size=2)
    questions = [s.model_copy(update={"subtask": "all"}) for s in samples(3, seed=1)]
    scorer = build_scorer(target, questions, Influence())
    assert type(scorer) is InfluenceScorer
    found = scorer.score(samples(3, seed=2)).by_subtask
    _, expected = reference_scores(target, questions, samples(3, seed=2), "adam_linear", cosine=False)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match=r"topk, as in a mixture of experts.* set influence\.method to exact"):
        build_scorer(target, questions, Influence(method="twin"))


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
def test_a_dense_model_makes_no_choice(kind: str) -> None:
    assert choice_of(tiny_target(kind, warm=False), samples(2)) is None


def test_twins_of_a_score_that_is_no_derivative_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"influence: method twin .* adam with dot is not; .* method to exact"):
        tiny_recipe(influence={"method": "twin", "estimator": "adam"})
