"""Caches are told apart by everything that changes what a target computes, not by its weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from influence_helpers import byte_tokenizer, modules_of, samples, tiny
from influence_reference import reference_scores

from optimsyn.base.errors import ModelError
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.store.store import GradientStore
from optimsyn.recipe.recipe import Lora
from optimsyn.target.target import Target

QUESTIONS = [s.model_copy(update={"subtask": "all"}) for s in samples(3, seed=5)]


def _target(lora: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Target:
    """The same weights each time."""
    model = tiny("gemma")
    for name, value in (config or {}).items():
        setattr(model.config, name, value)
    settings = Lora(**{"r": 2, "alpha": 4, "target_modules": modules_of("gemma"), **(lora or {})})
    target = Target.from_model(model, byte_tokenizer(), lora=settings, max_length=200)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in target.parameters.items():
        parameter.data = parameter.data.double()
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return target


@pytest.mark.parametrize("other", [{"lora": {"alpha": 64}}, {"config": {"final_logit_softcapping": 1.0}}])
def test_another_scale_or_configuration_is_another_target(other: dict[str, Any], tmp_path: Path) -> None:
    first, same, second = _target(), _target(), _target(**other)
    assert first.fingerprint() == same.fingerprint() != second.fingerprint()
    first.warm_up(samples(4), steps=2, folder=tmp_path / "warm-up")
    second.checkpoints = list(first.checkpoints)
    pairs = samples(4, seed=8)
    InfluenceScorer(first, QUESTIONS, folder=tmp_path / "kept")
    found = InfluenceScorer(second, QUESTIONS, folder=tmp_path / "kept").score(pairs).by_subtask
    expected = reference_scores(second, QUESTIONS, pairs, "adam_linear", cosine=False)[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    GradientStore.open_or_create(tmp_path / "pool", first).add(pairs)
    with pytest.raises(ModelError, match="another target"):
        GradientStore.open_or_create(tmp_path / "pool", second)


@pytest.mark.parametrize("lora", [{"alpha": 64}, {"dropout": 0.5}])
def test_a_warm_up_of_another_adapter_is_not_taken_over(lora: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 2, "lr": 1e-2, "seed": 3}
    _target().warm_up(samples(4), **settings, folder=tmp_path)
    found = _target(lora).warm_up(samples(4), **settings, folder=tmp_path)[-1]
    expected = _target(lora).warm_up(samples(4), **settings)[-1]
    assert found.fingerprint == expected.fingerprint
    steps: list[tuple[int, int]] = []
    _target(lora).warm_up(samples(4), **settings, folder=tmp_path, report=lambda *step: steps.append(step))
    assert not steps, "the same once more comes from the folder"


def test_a_broken_weight_is_named_and_not_the_samples() -> None:
    target = _target()
    name, weight = next((name, p) for name, p in target.causal.named_parameters() if name.endswith("norm.weight"))
    weight.data[0] = torch.nan
    with pytest.raises(ModelError, match=rf"the weight {name} contains NaN or infinite values; download the model's"):
        target.warm_up(samples(4), steps=2)


@pytest.mark.parametrize("kind", [InfluenceScorer, TwinScorer])
def test_an_adapter_that_is_not_at_work_is_refused(kind: type[InfluenceScorer] | type[TwinScorer]) -> None:
    target = _target()
    target.warm_up(samples(4), steps=2)
    scorer = kind(target, QUESTIONS)
    pairs = samples(3, seed=8)
    before = scorer.score(pairs).total
    target.model.disable_adapter_layers()
    with pytest.raises(ModelError, match=r"q_proj: the target's adapter is switched off.*model\.enable_adapter_layers"):
        scorer.score(pairs)
    target.model.enable_adapter_layers()
    target.model.merge_adapter()
    with pytest.raises(ModelError, match=r"merged into the layer.*model\.unmerge_adapter"):
        scorer.score(pairs)
    target.model.unmerge_adapter()
    target.model.add_adapter("other", target.model.peft_config["default"])
    target.model.set_adapter("other")
    with pytest.raises(ModelError, match=r"not the active one \(other\).*model\.set_adapter"):
        kind(target, QUESTIONS)
    target.model.set_adapter("default")
    torch.testing.assert_close(scorer.score(pairs).total, before, rtol=1e-4, atol=1e-8)


def test_names_and_attention_kernels_are_no_part_of_the_identity() -> None:
    renamed = _target(config={"_name_or_path": "elsewhere", "use_cache": False, "pad_token_id": 1})
    assert renamed.fingerprint() == _target().fingerprint()
