"""Several samples of each prompt by a local model, in batches."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from optimsyn.base.errors import ModelError
from optimsyn.base.seeds import derive_seed
from optimsyn.llm.local.generation import Row, fitting, generate
from optimsyn.llm.local.loading import LARGE_BATCH
from optimsyn.llm.local.merging import merged
from optimsyn.llm.local.prompt_cache import caches_keys_and_values, causal_of
from optimsyn.llm.local.sampling import MIN_P, TOP_K, TOP_P, truncated
from optimsyn.llm.local.turns import SHARED_DEVICES, turn

MOST_ROWS_ON_CPU = 32
"""Continuations sampled in one batch on a CPU; what comes of one batch is begun before the next one is sampled."""

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Sampling:
    """How continuations are sampled.

    Attributes:
        count: How many of each prompt.
        temperature: Sampling temperature.
        max_tokens: Longest continuation.
        ends: The tokens that end one.
    """

    count: int
    temperature: float
    max_tokens: int
    ends: tuple[int, ...]


def rows_at_once(device: Any) -> int:
    """Continuations in a batch: as many as pay on a CPU, and on a GPU a large batch."""
    return MOST_ROWS_ON_CPU if device.type in SHARED_DEVICES else LARGE_BATCH


def sample_groups(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int], how: Sampling
) -> Generator[list[list[int]]]:
    """Samples several continuations of each prompt, cut as llama.cpp cuts by default, in batches.

    A group is yielded when its batch has been sampled; the next batch is sampled when its first group is asked for.

    Args:
        model: A causal language model of transformers, or a PEFT model of one, in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Tokens of the prompts.
        seeds: A seed for each prompt.
        how: How many continuations of each, and how they are sampled.

    Yields:
        For each prompt the tokens after it, with the end token where there is one.

    Raises:
        ModelError: A GPU's memory is too small for a single continuation.
    """
    rows = [
        Row(list(prompt), how.temperature, how.max_tokens, derive_seed(seed, index))
        for prompt, seed in zip(prompts, seeds, strict=True)
        for index in range(how.count)
    ]
    replies: list[list[int]] = []
    most, given = rows_at_once(model.device), 0
    while given < len(rows):
        with turn(model.device), merged(model):
            batch = fitting(model, rows[len(replies) :][:most])
            written = _replies(model, tokenizer, batch, how.ends)
        replies += written
        if not written:
            most = len(batch) // 2
            if most == 0:
                raise ModelError(
                    "the policy: too little GPU memory for a batch of one rubric; lower optimizers.policy.max_tokens, "
                    "use shorter passages, or choose a smaller model"
                )
            _log.warning("the policy: too little GPU memory for %d rubrics at once; going on with %d", 2 * most, most)
        while given + how.count <= len(replies):
            yield replies[given : given + how.count]
            given += how.count


def _replies(model: Any, tokenizer: Any, rows: Sequence[Row], ends: Sequence[int]) -> list[list[int]]:
    """The tokens of the rows' replies; none if the GPU's memory ran out."""
    replies: list[list[int]] = []
    with suppress(torch.cuda.OutOfMemoryError):
        replies = [reply.ids for reply in generate(model, tokenizer, rows, ends=ends)]
    if not replies:
        # Not in a handler: the error's traceback holds the tensors of the batch.
        torch.cuda.empty_cache()
    return replies


def up_to_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens with the first end token as the last one; all where there is none."""
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    return tokens if end is None else tokens[: end + 1]


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
    causal = causal_of(model)
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
        use_cache=True,
    )
    continued: list[list[int]] = written[:, len(prompt) :].tolist()
    return continued
