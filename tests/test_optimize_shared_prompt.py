"""The trainer that runs each prompt once gives TRL's own numbers, gradients and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from influence_helpers import byte_tokenizer, modules_of, tiny
from peft import LoraConfig
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from trl import GRPOConfig

from optimsyn.llm.local.group_sampling import Candidates, sample_group
from optimsyn.llm.local.sampling import MIN_P, TOP_K, TOP_P
from optimsyn.optimize.shared_prompt import SharedPromptTrainer
from optimsyn.target.output_layer import OutputLayer, TokenLogProbs


def trainer_of(kind: str, folder: Path, *, temperature: float = 0.7) -> Any:
    model = tiny(kind, dtype=torch.float32, seed=1)
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "left"
    trainer = SharedPromptTrainer(
        model=model,
        reward_funcs=lambda prompts, completions, **more: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            per_device_train_batch_size=4, num_generations=2, max_completion_length=12, temperature=temperature,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 4),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=list(modules_of(kind)), task_type="CAUSAL_LM"),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return trainer


def batch() -> tuple[torch.Tensor, torch.Tensor, int]:
    """Two groups of two, prompts of 21 and 30 tokens (longer than gemma's window of 16), completions of 1 to 12."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 258, (4, 42), generator=generator)
    ids[1, :30], ids[3, :30] = ids[0, :30], ids[2, :30]
    mask = torch.ones_like(ids)
    mask[2:, :9] = 0
    for row, length in enumerate((12, 1, 7, 4)):
        mask[row, 30 + length :] = 0
    order = torch.tensor([2, 0, 3, 1])  # TRL shuffles the groups
    return ids.masked_fill(mask == 0, 1)[order], mask[order], 12


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("adapter_on", [True, False])
def test_numbers_and_gradients_are_those_of_trl(kind: str, adapter_on: bool, tmp_path: Path) -> None:
    trainer = trainer_of(kind, tmp_path)
    assert trainer.shares_prompts
    ids, mask, keep = batch()
    real = mask[:, -keep:].bool()
    found = {}
    for shares in (True, False):
        trainer.shares_prompts = shares
        trainer.model.zero_grad()
        with torch.set_grad_enabled(adapter_on):
            if adapter_on:
                values = trainer._get_per_token_logps_and_entropies(
                    trainer.model, ids, mask, keep, compute_entropy=True
                )
                (values[0] * torch.linspace(-1, 1, keep))[real].sum().backward()
            else:
                with trainer.model.disable_adapter():
                    values = trainer._get_per_token_logps_and_entropies(
                        trainer.model, ids, mask, keep, compute_entropy=True
                    )
        gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        found[shares] = (values[0].detach(), values[1].detach(), gradients)
    for ours, theirs in zip(found[True][:2], found[False][:2], strict=True):
        torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-5)
        assert (ours[~real] == 0).all()
    assert found[True][2].keys() == found[False][2].keys()
    assert bool(found[True][2]) == adapter_on
    for name, gradient in found[True][2].items():
        torch.testing.assert_close(gradient, found[False][2][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_samples_are_those_of_trl(kind: str, tmp_path: Path) -> None:
    trainer = trainer_of(kind, tmp_path)
    prompts = [[0, *range(10, 35)]] * 2 + [[0, *range(40, 47)]] * 2 + [[0]] * 2
    found = []
    for shares in (True, False):
        trainer.shares_prompts = shares
        torch.manual_seed(4)
        found.append(trainer._generate_single_turn(prompts, None, {}, 2)[0])
    assert found[0] == found[1]
    assert len({tuple(row) for row in found[0]}) > 3


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_a_group_that_shares_its_prompt_is_sampled_as_row_by_row(kind: str, tmp_path: Path) -> None:
    model = trainer_of(kind, tmp_path).model.eval()
    prompt = [0, *range(10, 35)]
    torch.manual_seed(4)
    shared = sample_group(model, prompt, 5, temperature=0.9, max_tokens=12, pad=1)
    torch.manual_seed(4)
    ids = torch.tensor([prompt] * 5)
    for _ in range(len(shared[0])):
        # Without a cache and without generate; a row that has ended only pads.
        scores = Candidates(TOP_K, TOP_P, MIN_P, 0.9)(ids, model(ids).logits[:, -1])
        ids = torch.cat([ids, torch.multinomial(scores.softmax(-1), 1)], dim=1)
    ends = model.generation_config.eos_token_id
    for row, reference in zip(shared, ids[:, len(prompt) :].tolist(), strict=True):
        length = row.index(ends) + 1 if ends in row else len(row)
        assert row[:length] == reference[:length]
        assert set(row[length:]) <= {1}
    assert len({tuple(row) for row in shared}) > 3


def test_candidates_are_those_that_the_policy_is_later_sampled_from() -> None:
    scores = torch.randn(5, 300, generator=torch.Generator().manual_seed(2)) * 3
    found = Candidates(TOP_K, TOP_P, MIN_P, 0.9)(torch.zeros(5, 1), scores)
    kept = scores
    for warper in (TopKLogitsWarper(TOP_K), TopPLogitsWarper(TOP_P), MinPLogitsWarper(MIN_P)):
        kept = warper(torch.zeros(5, 1, dtype=torch.long), kept)
    torch.testing.assert_close(found, kept / 0.9)
    assert 1 <= (found[0] > float("-inf")).sum() <= TOP_K


def test_log_probs_against_autograd_in_float64() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, dtype=torch.float64)
    targets = torch.randint(0, 11, (7,))

    def plain(h: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(2.0 * torch.tanh((h @ weight.T + bias) / 2.0) / 0.7, -1)

    reference = plain(hidden)
    layer = OutputLayer(weight, bias, softcap=2.0, temperature=0.7)
    log_probs, entropies = TokenLogProbs.apply(hidden, layer, targets, True)
    torch.testing.assert_close(log_probs, reference.gather(-1, targets.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(entropies, -(reference.exp() * reference).sum(-1))
    assert torch.autograd.gradcheck(lambda h: TokenLogProbs.apply(h, layer, targets, True)[0], (hidden,), atol=1e-8)


def test_what_it_does_not_know_goes_trls_way(tmp_path: Path) -> None:
    trainer = trainer_of("llama", tmp_path)
    trainer.model.get_base_model().config.logits_scaling = 8.0
    assert not trainer.can_share()
