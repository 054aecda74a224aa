"""Keys and values of prompts that several replies of a batch begin with: each prompt is read once."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def causal_of(model: Any) -> Any:
    """The model of transformers in a PEFT model, with its adapters in place; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def caches_keys_and_values(model: Any) -> bool:
    """Whether rows can share what a model of transformers has cached of a prompt: keys and values, and nothing else.

    State-space and hybrid layers cache other things, some models for pictures keep positions of the last batch outside
    the cache, and a few have no decoder of their own that returns hidden states and takes a cache.
    """
    if model.base_model is model or "past_key_values" not in signature(model.base_model.forward).parameters:
        return False
    if any(hasattr(module, "rope_deltas") for module in model.modules()):
        return False
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of each token among the real ones of its row, as `generate` of transformers counts them; [B, T]."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def read_prompts(
    causal: Any, ids: torch.Tensor, mask: torch.Tensor, place: torch.Tensor
) -> tuple[torch.Tensor, DynamicCache]:
    """Reads prompts once for all rows that begin with them.

    Args:
        causal: A causal language model of transformers that `caches_keys_and_values`.
        ids: The different prompts, padded on the left [U, P].
        mask: 0 at padding [U, P].
        place: The prompt of each row [B].

    Returns:
        The last hidden states of the rows' prompts [B, H], and the cache of the rows.
    """
    cache = DynamicCache(config=causal.config)
    last = causal.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache, use_cache=True
    ).last_hidden_state[:, -1]
    cache.batch_select_indices(place)
    return last[place], cache
