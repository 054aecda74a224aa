"""Per-sample gradients: batched = single = autograd, whatever the model does with its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import byte_tokenizer, flat, plain_gradient, samples, tiny, tiny_target

from optimsyn.base.errors import ModelError
from optimsyn.influence.gradients.taps import GradientTaps
from optimsyn.target.target import Target


class Keep:
    """A sink that keeps everything, rows in their places."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.got: dict[str, torch.Tensor] = {}
        self.seen: dict[str, list[int]] = {}

    def take(self, name: str, rows: slice, gradients: torch.Tensor) -> None:
        if name not in self.got:
            self.got[name] = torch.full((self.rows, *gradients.shape[1:]), torch.nan, dtype=gradients.dtype)
        self.got[name][rows] = gradients
        self.seen.setdefault(name, []).extend(range(self.rows)[rows])


def per_sample(target: Target, batch: Any) -> list[torch.Tensor]:
    taps, keep = GradientTaps(target), Keep(len(batch))
    with taps.attached():
        taps.run(batch, keep)
    assert set(keep.got) == set(target.parameters)
    assert all(sorted(rows) == list(range(len(batch))) for rows in keep.seen.values()), "each row exactly once"
    return [flat({name: got[row] for name, got in keep.got.items()}) for row in range(len(batch))]


def assert_exact(target: Target, count: int = 4, *, rtol: float = 1e-8) -> None:
    encoded = [target.encode(s) for s in samples(count)]
    (batch,) = target.batches(encoded, 10**6)
    found = per_sample(target, batch)
    for row, i in enumerate(batch.indices):
        wanted = flat(plain_gradient(target, encoded[i]))
        assert float(wanted.norm()) > 0
        assert float((found[row] - wanted).norm()) <= rtol * float(wanted.norm())
    assert all(p.grad is None for p in target.parameters.values())


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
def test_batched_gradients_are_autograds(kind: str) -> None:
    assert_exact(tiny_target(kind))


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["llama", "gemma", "gpt2"]), st.integers(0, 1000), st.integers(1, 5))
def test_batched_gradients_are_autograds_of_random_models(kind: str, seed: int, count: int) -> None:
    assert_exact(tiny_target(kind, seed=seed, warm=False), count)


def test_padding_changes_nothing_and_has_no_gradient() -> None:
    target = tiny_target("gemma")
    encoded = target.encode(samples(1)[0])
    (alone,) = target.batches([encoded], 10**6)
    wide = type(alone)(
        alone.indices,
        alone.ids,
        torch.nn.functional.pad(alone.input_ids, (0, 40), value=77),
        torch.nn.functional.pad(alone.labels, (0, 40), value=-100),
    )
    a, b = per_sample(target, alone)[0], per_sample(target, wide)[0]
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    hidden: list[torch.Tensor] = []
    layer = target.causal.base_model.layers[0]
    with target.scoring():
        handle = layer.register_forward_hook(lambda m, i, out: (out.retain_grad(), hidden.append(out))[0])
        target.losses(wide).sum().backward()
        handle.remove()
    width = alone.input_ids.shape[1]
    assert hidden[0].grad is not None
    assert bool((hidden[0].grad[:, width:] == 0).all()), "gradients at padding are exactly 0"
    assert bool((hidden[0].grad[:, :width] != 0).any())


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing_and_is_done(kind: str, reentrant: bool) -> None:
    target = tiny_target(kind)
    target.causal.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    first = next(m for name, m in target.model.named_modules() if name.endswith(("mlp", "mlp.c_fc")))
    # Before, not after: recomputation stops at the last tensor that is needed.
    first.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_exact(target)
    batch = next(iter(target.batches(samples(2), 10**6)))
    calls.clear()
    per_sample(target, batch)
    assert len(calls) == 2, "the layer is computed again in the backward pass"


def test_reused_layers_add_up_before_anything_else_sees_them() -> None:
    model = tiny("llama", layers=3)
    layers = model.model.layers
    # One attention projection at three depths, and one weight under two names.
    layers[1].self_attn.q_proj = layers[2].self_attn.q_proj = layers[0].self_attn.q_proj
    layers[2].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    model.requires_grad_(False)
    layers[0].self_attn.q_proj.weight.requires_grad_(True)
    layers[0].mlp.up_proj.weight.requires_grad_(True)
    target = Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)
    assert len(target.parameters) == 2
    assert_exact(target)
    model.gradient_checkpointing_enable()
    assert_exact(target)


def test_full_weights_biases_and_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimsyn.influence.gradients.taps.SLICE_BYTES", 16 * 16 * 8)
    model = tiny("llama").requires_grad_(False)
    model.model.layers[0].self_attn.o_proj.requires_grad_(True)
    model.model.layers[1].mlp.down_proj = torch.nn.Linear(24, 16, bias=True).double()
    assert_exact(Target.from_model(model, byte_tokenizer(), lora=None, max_length=200))


def test_a_trained_output_layer_tells_samples_apart() -> None:
    model = tiny("llama").requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert_exact(Target.from_model(model, byte_tokenizer(), lora=None, max_length=200))


def test_a_parameter_that_the_loss_never_reaches_gives_zeros() -> None:
    model = tiny("llama").requires_grad_(False)
    model.model.layers[0].self_attn.o_proj.requires_grad_(True)
    model.unused = torch.nn.Linear(3, 2, bias=False).double()
    target = Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)
    keep, taps = Keep(2), GradientTaps(target)
    with taps.attached():
        taps.run(next(iter(target.batches(samples(2), 10**6))), keep)
    assert torch.equal(keep.got["unused.weight"], torch.zeros(2, 2, 3, dtype=torch.float64))


def test_dropout_is_off_and_modes_come_back() -> None:
    target = tiny_target("gpt2")
    target.model.train()
    assert_exact_in_eval = [target.encode(s) for s in samples(2)]
    (batch,) = target.batches(assert_exact_in_eval, 10**6)
    a, b = per_sample(target, batch), per_sample(target, batch)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert target.model.training
    assert not any("forward" in module.__dict__ for module in target.model.modules())
    with torch.no_grad():
        assert torch.equal(per_sample(target, batch)[0], a[0])


def test_bfloat16_base_accumulates_in_float32() -> None:
    exact, half = tiny_target(warm=False), tiny_target(warm=False, dtype=torch.float32)
    for name, parameter in half.model.named_parameters():
        if name not in half.parameters:
            parameter.data = parameter.data.bfloat16()
    assert half.dtype == torch.float32
    (a,), (b,) = exact.batches(samples(3), 10**6), half.batches(samples(3), 10**6)
    for x, y in zip(per_sample(exact, a), per_sample(half, b), strict=True):
        assert float(torch.nn.functional.cosine_similarity(x, y, dim=0)) > 0.999
    GradientTaps(half).verify([half.encode(sample) for sample in samples(3)])


def test_what_cannot_be_scored_is_refused() -> None:
    model = tiny("llama").requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ModelError, match=r"model\.norm\.weight is trained, but it belongs to a LlamaRMSNorm"):
        GradientTaps(Target.from_model(model, byte_tokenizer(), lora=None))
    broken = tiny_target()
    with torch.no_grad():
        broken.causal.base_model.layers[1].mlp.gate_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"'s0-0'.*not finite"):
        per_sample(broken, next(iter(broken.batches(samples(1), 10**6))))


def test_a_weight_used_outside_its_layer_is_noticed() -> None:
    model = tiny("llama").requires_grad_(False)
    projection = model.model.layers[0].self_attn.o_proj
    projection.weight.requires_grad_(True)
    model.model.layers[1].mlp.register_forward_hook(lambda m, i, out: out + out @ projection.weight)
    target = Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)
    with pytest.raises(ModelError, match="outside of its linear layer"):
        GradientTaps(target).verify([target.encode(sample) for sample in samples(2)])


def test_layers_that_mix_samples_are_refused() -> None:
    model = tiny("llama").requires_grad_(False)
    mlp = model.model.layers[0].mlp
    mlp.up_proj.requires_grad_(True)
    inner = mlp.forward
    mlp.forward = lambda x: inner(x.flatten(0, 1)).view_as(x)
    target = Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)
    with pytest.raises(ModelError, match="cannot be told apart"):
        per_sample(target, next(iter(target.batches(samples(2), 10**6))))
    assert_exact(target, 1)
