"""Warm-up: moments by name against a hand-written AdamW, checkpoints on disk."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from influence_helpers import byte_tokenizer, plain_loss, samples, tiny, tiny_target

from optimsyn.base.errors import ModelError
from optimsyn.target.target import Target, train_full_weights
from optimsyn.target.warm_up.checkpoints import Checkpoint, checkpoint_steps, epochs


def test_moments_are_those_of_a_hand_written_adamw_over_clipped_batch_means() -> None:
    steps, batch_size, lr, clip, seed = 5, 3, 3e-3, 0.05, 4
    pairs = samples(8)
    target, reference = tiny_target(warm=False), tiny_target(warm=False)
    kept = target.warm_up(
        pairs, steps=steps, batch_size=batch_size, lr=lr, checkpoints=2, max_grad_norm=clip, seed=seed, batch_tokens=90
    )
    theta = {name: p.detach().clone() for name, p in reference.parameters.items()}
    m = {name: torch.zeros_like(p) for name, p in theta.items()}
    v = {name: torch.zeros_like(p) for name, p in theta.items()}
    order, clipped = epochs(len(pairs), batch_size, seed), 0
    encoded = [reference.encode(pair) for pair in pairs]
    at_two = None
    for t in range(1, steps + 1):
        with torch.no_grad():
            for name, p in reference.parameters.items():
                p.copy_(theta[name])
        loss = torch.stack([plain_loss(reference, encoded[i]) for i in next(order)]).mean()
        grads = torch.autograd.grad(loss, list(reference.parameters.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        clipped += norm > clip
        scale = min(1.0, clip / (norm + 1e-6))
        for name, g in zip(theta, grads, strict=True):
            m[name] = 0.9 * m[name] + 0.1 * g * scale
            v[name] = 0.999 * v[name] + 0.001 * (g * scale) ** 2
            theta[name] = theta[name] - lr * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
        if t == 2:
            at_two = {name: value.clone() for name, value in m.items()}
    assert clipped, "the test must meet the clipping"
    assert [c.step for c in kept] == [2, 5]
    assert at_two is not None
    for name in theta:
        torch.testing.assert_close(kept[-1].exp_avg[name], m[name], rtol=1e-6, atol=1e-14)
        torch.testing.assert_close(kept[-1].exp_avg_sq[name], v[name], rtol=1e-6, atol=1e-16)
        torch.testing.assert_close(kept[-1].state[name], theta[name], rtol=1e-6, atol=1e-10)
        # A checkpoint in the middle keeps its own values, not the optimiser's later ones.
        torch.testing.assert_close(kept[0].exp_avg[name], at_two[name], rtol=1e-6, atol=1e-14)


def test_weights_of_sixteen_bits_are_warmed_up_in_float32() -> None:
    steps, lr, clip = 6, 1e-4, 1.0
    pairs = samples(4)

    def made() -> Target:
        model = tiny("llama", dtype=torch.bfloat16)
        train_full_weights(model, ["down_proj"])
        return Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)

    target, reference = made(), made()
    start = {name: p.detach().clone() for name, p in target.parameters.items()}
    (kept,) = target.warm_up(pairs, steps=steps, batch_size=4, lr=lr, max_grad_norm=clip)
    theta = {name: p.detach().float() for name, p in reference.parameters.items()}
    m = {name: torch.zeros_like(p) for name, p in theta.items()}
    v = {name: torch.zeros_like(p) for name, p in theta.items()}
    encoded = [reference.encode(pair) for pair in pairs]
    order = epochs(4, 4, 0)
    for t in range(1, steps + 1):
        (batch,) = reference.batches([encoded[i] for i in next(order)])
        grads = torch.autograd.grad(reference.losses(batch).mean(), list(reference.parameters.values()))
        norm = math.sqrt(sum(float(g.float().square().sum()) for g in grads))
        for name, gradient in zip(theta, grads, strict=True):
            g = gradient.float() * min(1.0, clip / (norm + 1e-6))
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            theta[name] -= lr * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
        with torch.no_grad():
            for name, parameter in reference.parameters.items():
                parameter.copy_(theta[name])
    for name in theta:
        torch.testing.assert_close(kept.exp_avg[name], m[name], rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(kept.exp_avg_sq[name], v[name], rtol=1e-4, atol=1e-12)
        torch.testing.assert_close(kept.state[name], theta[name].bfloat16(), rtol=8e-3, atol=0)
        assert not torch.equal(kept.state[name], start[name])
        assert target.parameters[name].grad is None


def test_checkpoints_come_back_from_disk_and_are_not_computed_again(tmp_path: Path) -> None:
    pairs = samples(4)
    first = tiny_target(warm=False)
    kept = first.warm_up(pairs, steps=3, batch_size=2, checkpoints=2, folder=tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    again = tiny_target(warm=False)
    loaded = again.warm_up(pairs, steps=3, batch_size=2, checkpoints=2, folder=tmp_path)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    assert [c.fingerprint for c in loaded] == [c.fingerprint for c in kept]
    for name, parameter in again.parameters.items():
        assert torch.equal(parameter, kept[-1].state[name])
    other = tiny_target(warm=False)
    other.warm_up(pairs, steps=4, batch_size=2, folder=tmp_path)
    assert other.checkpoints[-1].step == 4
    third = tiny_target(warm=False)
    assert [c.step for c in third.add_checkpoints_from(tmp_path)] == [4]


def test_unfinished_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    target = tiny_target()
    with pytest.raises(ModelError, match="no finished warm-up"):
        target.add_checkpoints_from(tmp_path)
    target.warm_up(samples(2), steps=1, folder=tmp_path)
    (tmp_path / "step-000001" / "exp_avg.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="not a readable warm-up checkpoint"):
        target.add_checkpoints_from(tmp_path)
    with pytest.raises(ModelError, match="another adapter"):
        target.load_checkpoint(Checkpoint(1, 0.1, {"x": torch.zeros(1)}, {}, {}))


def test_warm_up_is_repeatable_and_leaves_evaluation_mode() -> None:
    a, b = tiny_target(seed=3), tiny_target(seed=3)
    assert a.checkpoints[-1].fingerprint == b.checkpoints[-1].fingerprint
    assert not a.model.training
    assert all(p.grad is None for p in a.parameters.values())
    assert a.checkpoints[-1].losses[-1] > 0
    with pytest.raises(ModelError, match="at least one pair"):
        a.warm_up([])
    with pytest.raises(ModelError, match="fewer"):
        checkpoint_steps(2, 3)


def test_epochs_show_every_sample_once() -> None:
    order = epochs(6, 2, seed=1)
    first = [i for _ in range(3) for i in next(order)]
    assert sorted(first) == list(range(6))
    assert next(epochs(1, 4, seed=0)) == [0]
