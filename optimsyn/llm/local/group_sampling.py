"""Samples of one prompt by a local model: it runs the prompt once, and cuts candidates without sorting a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from optimsyn.llm.local.sampling import MIN_P, TOP_K, TOP_P, truncated


class Candidates(LogitsProcessor):
    """Cuts a whole batch's candidates as `optimsyn.llm.local.sampling.truncated` does, then applies temperature.

    Args:
        top_k: Most candidates.
        top_p: Keep the fewest candidates whose probabilities sum to at least this.
        min_p: Drop candidates less likely than this share of the most likely one.
        temperature: Sampling temperature.
    """

    def __init__(self, top_k: int, top_p: float, min_p: float, temperature: float) -> None:
        self.top_k = top_k
        self.top_p = top_p
        self.min_p = min_p
        self.temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, vocabulary], minus infinity except at candidates."""
        return truncated(scores, self.top_k, self.top_p, self.min_p) / self.temperature


def caches_keys_and_values(model: Any) -> bool:
    """Whether a model of transformers caches keys and values only; state-space and hybrid layers cache other things."""
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


@torch.no_grad()
def sample_group(
    model: Any, prompt: Sequence[int], count: int, *, temperature: float, max_tokens: int, pad: int | None
) -> list[list[int]]:
    """Samples several continuations of one prompt, cut as llama.cpp cuts by default; seed torch beforehand.

    Args:
        model: A causal language model of transformers, or a PEFT model of one, in evaluation mode.
        prompt: Tokens of the prompt.
        count: How many continuations.
        temperature: Sampling temperature.
        max_tokens: Longest continuation.
        pad: The token after the end of a continuation that is shorter than the longest one.

    Returns:
        Tokens after the prompt, of equal length: padded after the end.
    """
    ids = torch.tensor([list(prompt)], device=model.device)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    cache = None
    if count > 1 and len(prompt) > 1 and caches_keys_and_values(causal):
        cache = DynamicCache(config=causal.config)
        causal.base_model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(count)
    ids = ids.repeat(count, 1)
    written = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        logits_processor=LogitsProcessorList([Candidates(TOP_K, TOP_P, MIN_P, temperature)]),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_p=None,
        max_new_tokens=max_tokens,
        pad_token_id=pad,
    )
    continued: list[list[int]] = written[:, len(prompt) :].tolist()
    return continued
