"""Shares of label tokens: one autograd pass per token in float64, and that they sum to what they split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import by_hand, byte_tokenizer, flat, samples, tiny, tiny_target
from influence_reference import (
    MAKES,
    probability_votes,
    put,
    random_target,
    reference_gamma,
    reference_gradients,
    reference_scores,
)

from optimsyn.base.errors import ModelError
from optimsyn.influence.estimators import BUILT_IN
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint


def token_gradients(target: Target, item: Any) -> torch.Tensor:
    """[T, all parameters]: autograd's gradient of each label token's loss, from the model's own logits."""
    encoded = by_hand(target, item, "pair")
    ids, labels = torch.tensor([encoded.input_ids]), torch.tensor(encoded.labels[1:])
    logits = target.model(input_ids=ids).logits[0, :-1]
    kept = labels != -100
    losses = torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="none")
    names, parameters = list(target.parameters), list(target.parameters.values())
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, retain_graph=True)
        rows.append(flat(dict(zip(names, found, strict=True))))
    return torch.stack(rows)


def gain(name: str, g: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
    """D(g): what is left of Γ without momentum, over g. By hand, on one long vector."""
    v, t = flat(checkpoint.exp_avg_sq), checkpoint.step
    without = reference_gamma(name, g, torch.zeros_like(g), v, t)
    return torch.where(g == 0, torch.zeros_like(g), without / g)


@settings(max_examples=6, deadline=None)
@given(
    kind=st.sampled_from(["llama", "gemma"]),
    make=st.sampled_from(MAKES),
    seed=st.integers(0, 10_000),
    name=st.sampled_from(list(BUILT_IN)),
    normalization=st.sampled_from(["cosine", "dot"]),
    across=st.sampled_from(["mean", "max"]),
    question_gradients=st.sampled_from(["plain", "unit", "probability"]),
    recompute=st.booleans(),
)
def test_shares_are_one_autograd_pass_a_token(
    kind: str,
    make: str,
    seed: int,
    name: str,
    normalization: Any,
    across: Any,
    question_gradients: Any,
    recompute: bool,
) -> None:
    target = random_target(kind, make, seed=seed, checkpoints=2, recompute=recompute)
    questions, pairs = samples(3, seed=seed, subtasks=("b", "a")), samples(3, seed=seed + 1)
    scorer = InfluenceScorer(
        target,
        questions,
        estimator=name,
        normalization=normalization,
        across_subtasks=across,
        question_gradients=question_gradients,
        batch_tokens=400,
    )
    scores = scorer.score(pairs, token_shares=True)
    plain = scorer.score(pairs)
    assert plain.token_shares is None
    assert torch.equal(plain.total, scores.total)
    gradients = reference_gradients(target, questions, pairs)
    _, by_subtask = reference_scores(
        target, questions, pairs, name, normalization == "cosine", gradients, question_gradients
    )
    wanted = [torch.zeros(int(n), dtype=torch.float64) for n in scores.label_tokens]
    momentum = torch.zeros(len(pairs), dtype=torch.float64)
    total_lr = sum(c.lr for c in target.checkpoints)
    for checkpoint, everything in zip(target.checkpoints, gradients, strict=True):
        put(target, checkpoint)
        m, v, t = flat(checkpoint.exp_avg), flat(checkpoint.exp_avg_sq), checkpoint.step
        val, own = everything[:3], everything[3:]
        rms = torch.stack([reference_gamma(name, g, m, v, t).norm() ** 2 for g in val]).mean().sqrt()
        usual = torch.stack([g @ g for g in val]).mean().sqrt()
        if question_gradients == "probability":
            votes = probability_votes(target, questions)
            val = [g * vote for g, vote in zip(val, votes, strict=True)]
            usual = torch.stack([g @ g for g in val]).mean().sqrt()
        divided = [g / (g.norm() if question_gradients == "unit" else usual) for g in val]
        mean = torch.stack([torch.stack(part).mean(0) for part in (divided[1:2], divided[::2])])
        for i, (pair, g) in enumerate(zip(pairs, own, strict=True)):
            gamma = reference_gamma(name, g, m, v, t)
            norm = gamma.norm() if normalization == "cosine" else rms
            direction = mean.mean(0) if across == "mean" else mean[by_subtask[i].argmax()]
            w, tokens = direction * gain(name, g, checkpoint), token_gradients(target, pair)
            weight = checkpoint.lr / total_lr / norm
            wanted[i] += weight * (tokens @ w) / len(tokens)
            momentum[i] += weight * direction @ (gamma - gain(name, g, checkpoint) * g)
    assert scores.token_shares is not None
    for share, reference in zip(scores.token_shares, wanted, strict=True):
        torch.testing.assert_close(share, reference, rtol=1e-6, atol=1e-8 * float(reference.abs().mean()))
    sums = torch.stack([share.sum() for share in scores.token_shares])
    torch.testing.assert_close(sums + momentum, scores.total, rtol=1e-6, atol=1e-8 * float(scores.total.abs().mean()))
    if name in ("adam_momentum_free", "adam_linear", "sgd"):
        torch.testing.assert_close(sums, scores.total, rtol=1e-6, atol=1e-8 * float(scores.total.abs().mean()))


def test_batches_and_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    target = random_target("llama", "full", seed=3, checkpoints=1)
    questions, pairs = samples(2, seed=1), samples(4, seed=2)
    scorer = InfluenceScorer(target, questions, estimator="adam", normalization="cosine")
    whole = scorer.score(pairs, token_shares=True)
    baseline = scorer.zero_gradient_baseline()["total"]
    monkeypatch.setattr("optimsyn.influence.gradients.taps.HOLD_BYTES", 1)
    # Five output rows a slice: neither weight divides by it.
    monkeypatch.setattr("optimsyn.influence.gradients.taps.SLICE_BYTES", 16 * 8 * 5)
    scorer = InfluenceScorer(target, questions, estimator="adam", normalization="cosine")
    sliced = scorer.score(pairs, token_shares=True)
    torch.testing.assert_close(sliced.total, whole.total, rtol=1e-10, atol=1e-12)
    assert sliced.gradient_norm is not None
    torch.testing.assert_close(sliced.gradient_norm, whole.gradient_norm, rtol=1e-10, atol=1e-12)
    assert scorer.zero_gradient_baseline()["total"] == pytest.approx(baseline, rel=1e-10)
    assert sliced.token_shares is not None
    assert whole.token_shares is not None
    for a, b in zip(sliced.token_shares, whole.token_shares, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert scorer.score([], token_shares=True).token_shares == ()


def test_a_trained_output_layer_and_gpt2() -> None:
    model = tiny("llama").requires_grad_(False)
    model.lm_head.requires_grad_(True)
    trained = Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)
    trained.warm_up(samples(2, seed=5), steps=2, batch_size=2)
    for target in (trained, tiny_target("gpt2")):
        scores = InfluenceScorer(target, samples(2, seed=1)).score(samples(3, seed=2), token_shares=True)
        assert scores.token_shares is not None
        sums = torch.stack([share.sum() for share in scores.token_shares])
        torch.testing.assert_close(sums, scores.total, rtol=1e-8, atol=1e-10)


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] / 2


def test_a_model_without_forward_derivatives_is_refused_by_name() -> None:
    target = tiny_target()
    target.causal.base_model.layers[1].mlp.register_forward_hook(lambda m, i, out: _Halve.apply(out))
    scorer = InfluenceScorer(target, samples(2, seed=1))
    scorer.score(samples(1))
    with pytest.raises(ModelError, match="score without token shares"):
        scorer.score(samples(1), token_shares=True)
