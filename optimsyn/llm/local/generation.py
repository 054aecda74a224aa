"""Batched sampling with transformers in which every row has its own seed, temperature, length and stop texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from optimsyn.llm.control_tokens import controls_of, data_ids, end_ids, rendered
from optimsyn.llm.local.prompt_cache import caches_keys_and_values, causal_of, read_prompts
from optimsyn.llm.local.sampling import draw
from optimsyn.recipe.sections.models import NO_THINKING

# Stop sequences are searched only at the end of the reply; each of their tokens has at least one character.
_STOP_WINDOW = 8
# A tokenizer may drop the space before a text's first word, so a reply is decoded behind the prompt's last tokens.
_PROMPT_TAIL = 8
# Bytes for each row and token of the vocabulary while a token is sampled: logits, and copies of them.
_SAMPLING_BYTES = 16
# The sampling's share of the memory that is free when a batch begins; target and training need the rest.
_MEMORY_SHARE = 0.25


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
    """One reply: its text without stop sequence and special tokens, its tokens with an end token, and why it ended."""

    text: str
    ids: list[int]
    finish_reason: str

    @property
    def tokens(self) -> int:
        """Its length."""
        return len(self.ids)


class SeededSampling(LogitsProcessor):
    """Turns the arg max of greedy decoding into a sample of each row's own distribution; see `draw`."""

    def __init__(self, rows: Sequence[Row], device: torch.device | str = "cpu") -> None:
        """For the rows of one batch, on the device of its scores."""
        if torch.device(device).type == "mps":
            device = "cpu"  # MPS has no float64
        self._temperatures = torch.tensor([row.temperature for row in rows], dtype=torch.float64, device=device)
        self._seeds = torch.tensor([row.seed % 2**63 for row in rows], device=device)
        self._steps = torch.zeros_like(self._seeds)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores [B, vocabulary] whose arg max is the sampled token of each row."""
        drawn = draw(scores.to(self._seeds.device), self._temperatures, self._seeds, self._steps).unsqueeze(1)
        self._steps += 1
        return torch.full_like(scores, float("-inf")).scatter_(1, drawn.to(scores.device), 0.0)  # type: ignore[return-value]


class RowLimits(StoppingCriteria):
    """Ends each row at its own length or stop sequence, or when it is given up."""

    def __init__(
        self, rows: Sequence[Row], tokenizer: Any, prompt_length: int, given_up: Sequence[Callable[[], bool]]
    ) -> None:
        self._rows = rows
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length
        self._given_up = given_up
        self._window = _STOP_WINDOW + max((len(stop) for row in rows for stop in row.stop), default=0)
        self._may_complete: dict[tuple[tuple[str, ...], int], bool] = {}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Which rows have ended [B]."""
        new = input_ids[:, self._prompt_length :]
        length = new.shape[1]
        tails = new[:, -self._window :].tolist()
        done = [length >= row.max_tokens or self._stops(row, tail) for row, tail in zip(self._rows, tails, strict=True)]
        for index, given_up in enumerate(self._given_up):
            done[index] = done[index] or given_up()
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]

    def _stops(self, row: Row, tail: list[int]) -> bool:
        if not row.stop or not self._completes(row.stop, tail[-1]):
            return False
        text = self._tokenizer.decode(tail, skip_special_tokens=True)
        return any(stop in text for stop in row.stop)

    def _completes(self, stops: tuple[str, ...], token: int) -> bool:
        """Whether a token may complete a stop sequence; most cannot, so most steps decode nothing."""
        known = self._may_complete.get((stops, token))
        if known is None:
            piece = self._tokenizer.decode([token], skip_special_tokens=True)
            # A decoder may drop a space, and a letter of several bytes may come in several tokens.
            known = any(stop[-1] in piece or stop[-1] == " " or not stop[-1].isascii() for stop in stops)
            self._may_complete[stops, token] = known
        return known


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
def row_bytes(model: Any, tokens: int) -> int:
    """About the memory that a row of a batch needs: keys and values of its tokens, and sampling.

    Args:
        model: A causal language model of transformers.
        tokens: Tokens of prompt and reply.
    """
    output = model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=True)
    # State-space layers keep no keys; their memory does not grow with the tokens.
    layers = getattr(getattr(output, "past_key_values", None), "layers", ())
    kept = [tensor for layer in layers for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    token: int = sum(tensor.nbytes for tensor in kept if tensor is not None)
    vocabulary: int = model.config.get_text_config().vocab_size
    return tokens * token + _SAMPLING_BYTES * vocabulary


def fitting(model: Any, rows: Sequence[Row]) -> Sequence[Row]:
    """The first rows, as many as are estimated to fit the sampling's share of a GPU's free memory; on a CPU all."""
    if model.device.type != "cuda":
        return rows
    free = torch.cuda.mem_get_info(model.device)[0]
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    tokens = max(len(row.ids) for row in rows) + max(row.max_tokens for row in rows)
    return rows[: max(1, int(free * _MEMORY_SHARE / row_bytes(model, tokens)))]


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    given_up: Sequence[Callable[[], bool]] = (),
    ends: Sequence[int] | None = None,
) -> list[Generated]:
    """Replies to a batch of prompts, in order; equal prompts are read once.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer; rows are padded here, on the left.
        rows: The prompts.
        given_up: For each row, whether its reply is no longer wanted; it then ends where it is.
        ends: The tokens that end a reply; None: those of the model.
    """
    width = max(len(row.ids) for row in rows)
    pad = tokenizer.pad_token_id
    places: dict[tuple[int, ...], int] = {}
    place = torch.tensor([places.setdefault(tuple(row.ids), len(places)) for row in rows], device=model.device)
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in places], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in places], device=model.device)
    causal, cache = causal_of(model), None
    if len(places) < len(rows) and width > 1 and caches_keys_and_values(causal):
        cache = read_prompts(causal, ids[:, :-1], mask[:, :-1], place)[1]
    ends = end_ids(model, tokenizer) if ends is None else ends
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max(row.max_tokens for row in rows),
        pad_token_id=pad,
        eos_token_id=list(ends) or None,
        use_cache=True,
    )
    output = model.generate(
        input_ids=ids[place],
        attention_mask=mask[place],
        past_key_values=cache,
        generation_config=config,
        logits_processor=LogitsProcessorList([SeededSampling(rows, model.device)]),
        stopping_criteria=StoppingCriteriaList([RowLimits(rows, tokenizer, width, given_up)]),
    )
    return [_finished(tokenizer, row, new, ends) for row, new in zip(rows, output[:, width:].tolist(), strict=True)]


def _finished(tokenizer: Any, row: Row, new: list[int], ends: Sequence[int]) -> Generated:
    new = new[: row.max_tokens]
    while new and new[-1] == tokenizer.pad_token_id and new[-1] not in ends:
        new = new[:-1]  # padding, because other rows of the batch were longer
    ended = next((index for index, token in enumerate(new) if token in ends), None)
    content = new if ended is None else new[:ended]
    tail = row.ids[-_PROMPT_TAIL:]
    before = len(tokenizer.decode(tail, skip_special_tokens=True))
    text = tokenizer.decode([*tail, *content], skip_special_tokens=True)[before:]
    cuts = [text.index(stop) for stop in row.stop if stop in text]
    if cuts:
        return Generated(text[: min(cuts)], content, "stop")
    return Generated(text, new if ended is None else new[: ended + 1], "length" if ended is None else "stop")
