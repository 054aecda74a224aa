"""Batched sampling with transformers in which every row has its own seed, temperature, length and stop texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from optimsyn.base.errors import ModelError
from optimsyn.llm.control_tokens import controls_of, data_ids, rendered
from optimsyn.recipe.sections.models import NO_THINKING

# llama.cpp's defaults, so that a model samples the same way as from its server.
TOP_K = 40
TOP_P = 0.95
MIN_P = 0.05
# Stop sequences are searched only at the end of the reply; each of their tokens has at least one character.
_STOP_WINDOW = 8


@dataclass(frozen=True)
class Row:
    """One prompt of a batch and its sampling parameters.

    Attributes:
        ids: Token ids of the prompt.
        temperature: 0 for greedy decoding.
        max_tokens: Longest reply in tokens.
        seed: Seed of the row's noise.
        stop: Stop sequences.
    """

    ids: list[int]
    temperature: float
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generated:
    """One reply: its text without stop sequence and special tokens, its length in tokens, and why it ended."""

    text: str
    tokens: int
    finish_reason: str


class SeededSampling(LogitsProcessor):
    """Turns the arg max of greedy decoding into a sample of each row's own distribution.

    Gumbel-max: the arg max of logits / T + g, with g standard Gumbel noise, is a sample of softmax(logits / T)
    (Gumbel 1954; Maddison et al. 2014, "A* sampling"). Each step draws noise for the whole vocabulary from the row's
    own generator, so it depends neither on the other rows nor on the ranking of tokens. Before that the candidates are
    truncated as in llama.cpp: top-k, then top-p, then min-p, at temperature 1.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        """Noise generators for the rows of one batch."""
        self._temperatures = [row.temperature for row in rows]
        # On the CPU, so that a seed gives the same noise on every device.
        self._generators = [torch.Generator().manual_seed(row.seed % 2**63) for row in rows]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores [B, vocabulary] whose arg max is the sampled token of each row."""
        result = scores.float()
        for index, temperature in enumerate(self._temperatures):
            if temperature == 0:
                continue
            noise = torch.empty(result.shape[1]).exponential_(generator=self._generators[index])
            gumbel = -noise.clamp_min(1e-30).log().to(result.device)
            result[index] = truncated(result[index]) / temperature + gumbel
        return result  # type: ignore[return-value]


def truncated(logits: torch.Tensor, top_k: int = TOP_K, top_p: float = TOP_P, min_p: float = MIN_P) -> torch.Tensor:
    """Logits [vocabulary] with all but the candidates at minus infinity; the most likely token always stays.

    Args:
        logits: Raw logits of one row.
        top_k: The most candidates.
        top_p: The fewest candidates whose probability, among the top k, sums to at least this.
        min_p: No candidate less likely than this fraction of the most likely one.
    """
    values, indices = logits.topk(min(top_k, logits.numel()))
    probabilities = values.softmax(0)
    before = probabilities.cumsum(0) - probabilities
    keep = (before < top_p) & (probabilities >= min_p * probabilities[0])
    keep[0] = True
    result = torch.full_like(logits, float("-inf"))
    result[indices[keep]] = values[keep]
    return result


class _RowLimits(StoppingCriteria):
    """Ends each row at its own length or stop sequence."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, prompt_length: int) -> None:
        self._rows = rows
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        new = input_ids[:, self._prompt_length :]
        length = new.shape[1]
        done = [length >= row.max_tokens or self._stops(row, new[index]) for index, row in enumerate(self._rows)]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]

    def _stops(self, row: Row, new: torch.Tensor) -> bool:
        if not row.stop:
            return False
        window = max(len(stop) for stop in row.stop) + _STOP_WINDOW
        tail = self._tokenizer.decode(new[-window:].tolist(), skip_special_tokens=True)
        return any(stop in tail for stop in row.stop)


def prompt_ids(
    tokenizer: Any, messages: Sequence[dict[str, str]], arguments: Mapping[str, Any] = NO_THINKING
) -> list[int]:
    """Token ids of a prompt: with the chat template if there is one, else the joined contents.

    Control strings in messages are text; only the template's own become control tokens.

    Args:
        tokenizer: The model's tokenizer.
        messages: The prompt.
        arguments: For the chat template; see `ModelSpec.template_arguments`.

    Raises:
        ModelError: The chat template refuses the messages.
    """
    if tokenizer.chat_template is None:
        return data_ids(tokenizer, "".join(message["content"] for message in messages))
    from jinja2 import TemplateError

    try:
        return _templated(tokenizer, messages, arguments)
    except TemplateError as error:
        # For templates without a system role, the instructions go into the first user message.
        if messages[0]["role"] != "system" or len(messages) < 2:
            raise ModelError(f"{tokenizer.name_or_path}: its chat template refuses the messages: {error}") from error
    first = {"role": messages[1]["role"], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return _templated(tokenizer, [first, *messages[2:]], arguments)


def _templated(tokenizer: Any, messages: Sequence[dict[str, str]], arguments: Mapping[str, Any]) -> list[int]:
    text = rendered(tokenizer, messages, add_generation_prompt=True, **arguments)
    return controls_of(tokenizer).encode(text, add_special_tokens=False).ids


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[Generated]:
    """Replies to a batch of prompts, in order.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer; rows are padded here, on the left.
        rows: The prompts.
    """
    width = max(len(row.ids) for row in rows)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=model.device)
    ends = _end_ids(model, tokenizer)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max(row.max_tokens for row in rows),
        pad_token_id=pad,
        eos_token_id=ends or None,
    )
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([SeededSampling(rows)]),
        stopping_criteria=StoppingCriteriaList([_RowLimits(rows, tokenizer, width)]),
    )
    return [_finished(tokenizer, row, new, ends) for row, new in zip(rows, output[:, width:].tolist(), strict=True)]


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a reply; instruction-tuned models often have several."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, list | tuple) else [configured]
    return sorted({end for end in [*ids, tokenizer.eos_token_id] if end is not None})


def _finished(tokenizer: Any, row: Row, new: list[int], ends: Sequence[int]) -> Generated:
    new = new[: row.max_tokens]
    while new and new[-1] == tokenizer.pad_token_id and new[-1] not in ends:
        new = new[:-1]  # padding, because other rows of the batch were longer
    ended = next((index for index, token in enumerate(new) if token in ends), None)
    content = new if ended is None else new[:ended]
    # Decoded together with the prompt, because a tokenizer may drop the space before a text's first word.
    prompt = tokenizer.decode(row.ids, skip_special_tokens=True)
    text = tokenizer.decode([*row.ids, *content], skip_special_tokens=True)[len(prompt) :]
    cuts = [text.index(stop) for stop in row.stop if stop in text]
    if cuts:
        return Generated(text[: min(cuts)], len(content), "stop")
    return Generated(text, len(content) + (ended is not None), "length" if ended is None else "stop")
