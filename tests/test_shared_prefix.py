"""Samples that begin alike in one sequence have the log-probabilities and gradients that they have alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from prefer_writer import loss_of
from shared_prefix import mean_log_probs, tree_of

PASSAGE = [1, *range(20, 33)]
# Two prompts of a passage; a reply twice, one that begins as another, and one that is the beginning of another.
SAMPLES = [
    ([*PASSAGE, 4, 5], [6, 7, 8, 2]),
    ([*PASSAGE, 4, 5], [6, 7, 9, 2]),
    ([*PASSAGE, 4, 5], [6, 7]),
    ([*PASSAGE, 4, 6, 7], [8, 2]),
    ([*PASSAGE, 4, 6, 7], [8, 2]),
    ([1], [9, 9, 2]),
]


def model() -> Gemma3ForCausalLM:
    """Gemma 3 with random weights, of which one layer sees everything and one six tokens."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        tie_word_embeddings=False,
    )
    causal = Gemma3ForCausalLM(config).double()
    causal.get_output_embeddings().weight.requires_grad_(False)
    return causal


def alone(causal: Gemma3ForCausalLM, prompt: Sequence[int], reply: Sequence[int]) -> torch.Tensor:
    logits = causal(input_ids=torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(reply)[:, None]).mean()


def test_a_sample_is_worth_what_it_is_worth_alone() -> None:
    causal = model()
    weights = [p for p in causal.parameters() if p.requires_grad]
    tree = tree_of(SAMPLES)
    assert len(tree.ids) == len(PASSAGE) + 2 + 4 + 2 + 2 + 2 + 3  # the reply that comes twice is there once
    factors = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0, -1.0], dtype=torch.float64)
    together = mean_log_probs(causal, tree)
    each = torch.stack([alone(causal, *sample) for sample in SAMPLES])
    # The model's norms compute in float32.
    torch.testing.assert_close(together, each, rtol=1e-5, atol=1e-5)
    slopes = torch.autograd.grad((factors * together).sum(), weights)
    torch.testing.assert_close(slopes, torch.autograd.grad((factors * each).sum(), weights), rtol=1e-4, atol=1e-5)


def test_samples_must_begin_alike() -> None:
    with pytest.raises(ValueError, match="same token"):
        tree_of([([1, 2], [3]), ([4, 2], [3])])


def test_the_loss_is_that_of_odds_ratios() -> None:
    """Equations 3 to 7 of arXiv 2403.07691, with probabilities in place of their logarithms."""
    probabilities = torch.tensor([0.4, 0.7, 0.2, 0.9], dtype=torch.float64)
    log_probs = probabilities.log().requires_grad_()
    odds = probabilities / (1 - probabilities)
    likely = -(probabilities[0].log() + probabilities[3].log())
    ratio = -torch.stack([torch.sigmoid((odds[0] / odds[one]).log()).log() for one in (1, 2)]).mean()
    loss = loss_of(log_probs, [0, 3], [[1, 2], []], 0.3)
    torch.testing.assert_close(loss, likely + 0.3 * ratio)
    torch.testing.assert_close(loss_of(log_probs, [0, 3], [[], []], 0.3), likely)
    # It makes the better reply more likely, and the worse ones less.
    (slope,) = torch.autograd.grad(loss, log_probs)
    assert slope[0] < 0 < slope[1]
    assert slope[2] > 0 > slope[3]
