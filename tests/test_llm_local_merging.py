"""Adapters in the weights of a local model while it samples, and prompts that several rows share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from llm_helpers import save_tiny_model

from optimsyn.llm.local.merging import merge_for_good, merged
from optimsyn.llm.local.prompt_cache import caches_keys_and_values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_a_lora_is_merged_while_it_samples_and_the_weights_come_back_exactly(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        model = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear")).eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        ids = torch.tensor([[5, 6, 7, 8]])
        with torch.no_grad():
            apart = model(input_ids=ids).logits
            with merged(model):
                together = model(input_ids=ids).logits
                assert any(not torch.equal(model.state_dict()[name], before[name]) for name in before)
            torch.testing.assert_close(together, apart, atol=tolerance, rtol=tolerance)
            assert torch.equal(model(input_ids=ids).logits, apart)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        with pytest.raises(ZeroDivisionError), merged(model):
            raise ZeroDivisionError
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_that_16_bits_would_round_away_is_not_merged(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[5, 6, 7, 8]])
    for size, is_merged in ((1e-5, False), (1.0, True)):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        config = LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear", exclude_modules=["lm_head"])
        model = get_peft_model(model, config).eval()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(size)
        with torch.no_grad():
            apart = model(input_ids=ids).logits
            with merged(model):
                assert torch.equal(model(input_ids=ids).logits, apart) is not is_merged
        assert (merge_for_good(model) is not model) is is_merged
        assert is_merged or all(torch.equal(t, before[n]) for n, t in model.state_dict().items() if "lora" not in n)


def test_layers_that_share_their_weights_are_not_merged(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    first, second = (layer.mlp.up_proj for layer in model.get_decoder().layers[:2])
    second.weight = first.weight
    model = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules=["up_proj"])).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        apart = model(input_ids=ids).logits
        with merged(model):
            assert torch.equal(model(input_ids=ids).logits, apart)


def test_an_error_while_a_lora_is_taken_out_leaves_the_weights_as_they_were(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import Linear
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"]),
    ).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        apart = model(input_ids=ids).logits

        def fails(_: Any) -> None:
            raise MemoryError

        with monkeypatch.context() as patch, pytest.raises(MemoryError), merged(model):
            patch.setattr(Linear, "unmerge", fails)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(model(input_ids=ids).logits, apart)


def test_rows_share_a_prompt_only_where_nothing_else_is_cached(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert caches_keys_and_values(model)
    assert not caches_keys_and_values(model.base_model)
    model.base_model.rope_deltas = None
    assert not caches_keys_and_values(model)


def test_an_output_layer_tied_to_the_embedding_is_not_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=True, **sizes)).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "lm_head"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path), config).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        apart = model(input_ids=ids).logits
        with merged(model):
            assert torch.equal(model(input_ids=ids).logits, apart)
        assert merge_for_good(model) is model
        untied = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=False), config
        ).eval()
        apart = untied(input_ids=ids).logits
        torch.testing.assert_close(merge_for_good(untied)(input_ids=ids).logits, apart)
