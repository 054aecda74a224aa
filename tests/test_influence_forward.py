"""Scores in forward mode, scores of 16-bit models, and the error that every scorer measures of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from influence_helpers import byte_tokenizer, modules_of, samples, tiny, tiny_target
from influence_reference import random_target, reference_scores

from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.influence import accuracy
from optimsyn.influence.accuracy import MOST_ERROR, relative_error
from optimsyn.influence.derivative import forward
from optimsyn.influence.derivative.forward import ForwardScorer
from optimsyn.influence.derivative.step_size import Step
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.factory import build_scorer
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.machine.preflight import validate
from optimsyn.recipe.recipe import Lora
from optimsyn.recipe.sections.influence import Influence
from optimsyn.target.target import Target
from optimsyn.target.upcast import in_float32, is_narrow
from tests.runs_helpers import tiny_recipe

NARROW = [torch.bfloat16, torch.float16]


def both(kind: str, dtype: torch.dtype) -> tuple[Target, Target]:
    """A target with 16-bit weights and one with the same weights in float32, at the same checkpoint."""

    def made(model: Any) -> Target:
        lora = Lora(r=2, alpha=4, target_modules=modules_of(kind))
        return Target.from_model(model, byte_tokenizer(), lora=lora, max_length=200)

    narrow, wide = made(tiny(kind, dtype=dtype)), made(tiny(kind, dtype=dtype).float())
    wide.warm_up(samples(6, seed=9), steps=6, batch_size=2, lr=1e-2)
    narrow.checkpoints = wide.checkpoints
    narrow.load_checkpoint(narrow.checkpoints[-1])
    return narrow, wide


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("estimator", ["adam_linear", "sgd"])
def test_scores_and_losses_are_those_of_the_exact_scorer(kind: str, estimator: str) -> None:
    target = tiny_target(kind)
    questions, pairs = samples(3, seed=1), samples(5, seed=2)
    exact = InfluenceScorer(target, questions, estimator=estimator).score(pairs)
    scorer = ForwardScorer(target, questions, estimator=estimator, batch_tokens=400)
    found = scorer.score(pairs)
    torch.testing.assert_close(found.by_subtask, exact.by_subtask, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.loss, exact.loss, rtol=1e-9, atol=1e-9)
    assert found.ids == exact.ids and found.gradient_norm is None and found.token_shares is None
    assert torch.equal(found.label_tokens, exact.label_tokens)
    assert scorer.method == "forward" and scorer.numerical_error < 1e-5
    assert scorer.fingerprint.startswith("forward-") and scorer.zero_gradient_baseline()["total"] == 0
    assert len(scorer.score([])) == 0


@pytest.mark.parametrize("make", ["lora", "full", "reused"])
@pytest.mark.parametrize("across", ["mean", "max"])
def test_subtasks_checkpoints_and_token_shares(make: str, across: Literal["mean", "max"]) -> None:
    target = random_target("llama", make, seed=4, checkpoints=2)
    questions, pairs = samples(3, seed=1, subtasks=("a", "b")), samples(3, seed=2)
    scorer = ForwardScorer(target, questions, across_subtasks=across)
    found = scorer.score(pairs, token_shares=True)
    _, wanted = reference_scores(target, questions, pairs, "adam_linear", cosine=False)
    torch.testing.assert_close(found.by_subtask, wanted, rtol=1e-7, atol=1e-10)
    total = wanted.mean(1) if across == "mean" else wanted.max(1).values
    torch.testing.assert_close(found.total, total, rtol=1e-7, atol=1e-10)
    split = InfluenceScorer(target, questions, across_subtasks=across).score(pairs, token_shares=True)
    assert found.token_shares is not None and split.token_shares is not None
    for share, other in zip(found.token_shares, split.token_shares, strict=True):
        torch.testing.assert_close(share, other, rtol=1e-6, atol=1e-9)
    if across == "mean":
        one = ForwardScorer(target, questions, by_subtask=False)
        assert one.subtasks == ("mean",)
        torch.testing.assert_close(one.score(pairs).total, total, rtol=1e-7, atol=1e-10)
        assert one.fingerprint != scorer.fingerprint


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
def test_sixteen_bits(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Exact and forward are right to a few per cent, in float32 to a thousandth; twins are noise, and refused."""
    narrow, wide = both(kind, dtype)
    assert {p.dtype for p in narrow.parameters.values()} == {torch.float32}
    questions, pairs = samples(6, seed=1), samples(12, seed=2)
    reference = InfluenceScorer(wide, questions).score(pairs, token_shares=True)
    exact = InfluenceScorer(narrow, questions, folder=tmp_path)
    assert {v.dtype for v in exact.directions[0].vectors.values()} == {torch.float32}
    limit = 0.06 if dtype == torch.bfloat16 else 0.01
    assert relative_error(exact.score(pairs).total, reference.total) < limit
    assert 1e-5 < exact.numerical_error < limit
    scorer = ForwardScorer(narrow, questions, folder=tmp_path, most_error=limit)
    found = scorer.score(pairs, token_shares=True)
    assert relative_error(found.total, reference.total) < limit
    assert 1e-5 < scorer.numerical_error < limit
    assert found.token_shares is not None and reference.token_shares is not None
    assert relative_error(torch.cat(found.token_shares), torch.cat(reference.token_shares)) < 2 * limit
    assert [float(s.sum()) for s in found.token_shares] == pytest.approx(found.total.tolist(), rel=1e-9)
    mixed = InfluenceScorer(narrow, questions, precision="mixed", folder=tmp_path)
    assert relative_error(mixed.score(pairs).total, reference.total) < limit
    assert 1e-6 < mixed.numerical_error < exact.numerical_error
    assert 1e-6 < ForwardScorer(narrow, questions, precision="mixed", folder=tmp_path).numerical_error < limit
    right = InfluenceScorer(narrow, questions, precision="float32", folder=tmp_path)
    assert relative_error(right.score(pairs).total, reference.total) < 2e-3
    assert right.numerical_error < 1e-4
    assert len({right.fingerprint, mixed.fingerprint, exact.fingerprint, scorer.fingerprint}) == 4


def test_a_finite_difference_in_bfloat16_is_noise_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a step as it would be in float32; a tiny model is so nearly linear that a long one would do."""
    narrow, wide = both("llama", torch.bfloat16)
    step = Step(epsilon=1e-7, error=1.08, forward_epsilon=1e-7, forward_error=1.08, length=1.0)
    monkeypatch.setattr("optimsyn.influence.derivative.twin.measure_step", lambda *_, **__: step)
    questions, pairs = samples(6, seed=1), samples(12, seed=2)
    with pytest.raises(ModelError, match=r"twin is off by .* are noise; set influence\.method to exact or auto"):
        TwinScorer(narrow, questions)
    noise = TwinScorer(narrow, questions, most_error=1e9)
    reference = InfluenceScorer(wide, questions).score(pairs).total
    assert noise.numerical_error > 0.5
    assert relative_error(noise.score(pairs).total, reference) > 0.5


@pytest.mark.parametrize("dtype", NARROW)
def test_a_model_at_work_in_float32_keeps_no_wide_weight_for_the_backward_pass(dtype: torch.dtype) -> None:
    narrow, wide = both("gemma", dtype)
    (batch,) = narrow.batches(samples(2, seed=3), 4096)
    with narrow.scoring(), in_float32():
        losses = narrow.losses(batch)
        found = torch.autograd.grad(losses.sum(), list(narrow.parameters.values()))
    assert losses.dtype == torch.float32 and is_narrow(narrow.model)
    with wide.scoring():
        wanted = torch.autograd.grad(wide.losses(batch).sum(), list(wide.parameters.values()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=1e-3 * float(other.abs().max()))


def test_auto_takes_the_cheapest_way_that_is_right_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow, wide = both("llama", torch.bfloat16)
    questions = samples(6, seed=1)
    plain = build_scorer(wide, questions, Influence(), tmp_path)
    assert type(plain) is TwinScorer and plain.choice is not None
    assert plain.choice.method == "twin" and list(plain.choice.errors) == ["twin"]
    assert plain.choice.errors["twin"] == plain.numerical_error < MOST_ERROR

    scorer = build_scorer(narrow, questions, Influence(), tmp_path)
    assert scorer.method in ("forward", "exact") and scorer.numerical_error < MOST_ERROR
    assert scorer.choice is not None and "twin is not tried in 16 bits" in scorer.choice.reason
    assert list(scorer.choice.errors) == ["exact"], "the first that is right ends the search"

    # Where the model's own arithmetic is too coarse for all, gradients in float32 are left.
    monkeypatch.setattr("optimsyn.influence.factory.WANTED_ERROR", 1e-4)
    monkeypatch.setattr("optimsyn.influence.factory.MOST_ERROR", 1e-4)
    last = build_scorer(narrow, questions, Influence(), tmp_path)
    assert last.choice is not None and last.method == "exact"
    ways = ["exact", "forward", "exact, mixed", "forward, mixed", "exact, float32"]
    assert list(last.choice.errors) == ways and last.numerical_error < 1e-4
    named = build_scorer(narrow, questions, Influence(method="exact"), tmp_path)
    assert named.choice is not None and list(named.choice.errors) == [ways[0], ways[2], ways[4]]
    assert named.choice.reason.startswith("influence.method is exact, and exact, float32 is the cheapest way")
    with pytest.raises(ModelError, match=r"method: forward is off by .* exact or auto, or models\.target\.dtype"):
        build_scorer(narrow, questions, Influence(method="forward"), tmp_path)


def test_errors_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, questions = tiny_target(), samples(3, seed=1)
    first = ForwardScorer(target, questions, folder=tmp_path).numerical_error
    with monkeypatch.context() as patch:
        patch.setattr(forward, "token_slopes", None)
        assert ForwardScorer(target, questions, folder=tmp_path).numerical_error == first
    assert ForwardScorer(target, questions).numerical_error == first
    for damaged in tmp_path.glob("error-*.json"):
        damaged.write_text("{}")
    with pytest.raises(ModelError, match=r"error-.*delete the file"):
        ForwardScorer(target, questions, folder=tmp_path)


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] / 2


def test_a_model_without_forward_derivatives_is_scored_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target()
    target.causal.base_model.layers[1].mlp.register_forward_hook(lambda m, i, out: _Halve.apply(out))
    questions = samples(3, seed=1)
    with pytest.raises(ModelError, match=r"forward-mode derivatives are needed.*set influence\.method to exact"):
        ForwardScorer(target, questions)
    patched = Influence(method="auto", estimator="sgd")
    scorer = build_scorer(target, questions, patched)
    assert scorer.method == "twin", "needs no derivative of the model's"
    narrow, _ = both("llama", torch.bfloat16)
    narrow.causal.base_model.layers[1].mlp.register_forward_hook(lambda m, i, out: _Halve.apply(out))
    monkeypatch.setattr("optimsyn.influence.factory.WANTED_ERROR", 1e-4)
    monkeypatch.setattr("optimsyn.influence.factory.MOST_ERROR", 1e-4)
    last = build_scorer(narrow, questions, Influence())
    assert last.choice is not None and list(last.choice.errors) == ["exact", "exact, mixed", "exact, float32"]
    assert "an operation of this model has none" in last.choice.reason
    with pytest.raises(ModelError, match="forward-mode derivatives are needed"):
        build_scorer(narrow, questions, Influence(method="forward"))


def test_an_own_adapter_in_sixteen_bits_is_scored_right() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny("llama", dtype=torch.bfloat16), config, autocast_adapter_dtype=False)
    target = Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)
    assert {p.dtype for p in target.parameters.values()} == {torch.float32}, "a small step would be rounded away"
    target.warm_up(samples(4, seed=9), steps=3, batch_size=2, lr=1e-2)
    questions, pairs = samples(4, seed=1), samples(6, seed=2)
    reference = InfluenceScorer(target, questions, precision="float32").score(pairs).total
    for scorer in (InfluenceScorer(target, questions), ForwardScorer(target, questions, most_error=0.1)):
        assert relative_error(scorer.score(pairs).total, reference) < 0.06


def test_full_weights_in_sixteen_bits_are_scored_right() -> None:
    def made(model: Any) -> Target:
        model.requires_grad_(False)
        model.model.layers[1].mlp.down_proj.weight.requires_grad_(True)
        return Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)

    narrow, wide = made(tiny("llama", dtype=torch.bfloat16)), made(tiny("llama", dtype=torch.bfloat16).float())
    narrow.warm_up(samples(4, seed=9), steps=3, batch_size=2, lr=1e-2)
    wide.checkpoints = narrow.checkpoints
    questions, pairs = samples(4, seed=1), samples(6, seed=2)
    reference = InfluenceScorer(wide, questions).score(pairs).total
    for scorer in (InfluenceScorer(narrow, questions), ForwardScorer(narrow, questions, most_error=0.1)):
        assert relative_error(scorer.score(pairs).total, reference) < 0.06


def test_twins_on_a_sixteen_bit_target_are_refused_before_anything_is_bought(monkeypatch: pytest.MonkeyPatch) -> None:
    target = {"name": "embedded", "dtype": "bfloat16"}
    with pytest.raises(RecipeError, match=r"twin is a small difference.*bfloat16 rounds away; set influence\.method"):
        tiny_recipe(influence={"method": "twin"}, models={"target": target})
    recipe = tiny_recipe(influence={"method": "twin"})
    said = "auto is bfloat16 on this machine"
    assert not any(said in problem for problem in validate(recipe, offline=True).problems)
    monkeypatch.setattr("optimsyn.llm.local.loading.resolve_dtype", lambda *_: torch.bfloat16)
    assert any(said in problem for problem in validate(recipe, offline=True).problems)
    with pytest.raises(RecipeError, match="method forward reads off a derivative"):
        tiny_recipe(influence={"method": "forward", "estimator": "adam"})


def test_an_error_is_a_share_of_the_reference() -> None:
    wanted = torch.tensor([3.0, 4.0])
    assert relative_error(wanted, wanted) == 0
    assert relative_error(wanted + torch.tensor([0.5, 0.0]), wanted) == pytest.approx(0.1)
    assert relative_error(wanted, torch.zeros(2)) == float("inf")
    assert relative_error(torch.tensor([float("nan"), 1.0]), wanted) == float("inf")
    assert accuracy.percent(0.031) == "3.1 %" and accuracy.percent(1.08) == "108 %"
