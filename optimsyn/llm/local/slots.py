"""Rows of a running batch, each at its own position, in memory that does not move.

`transformers`' caches put all rows of a batch at the same position, so a batch runs until its longest reply ends. Here
each row has a slot: a new prompt takes the slot of a finished reply. Memory keeps its address, so on a GPU a step is
recorded once as a CUDA graph and replayed: a small model's layers take less time than launching their kernels.
(`transformers`' own continuous batching has no seed for each request, and without FlashAttention computes the attention
of every row to every other one.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from optimsyn.llm.local.rows import Row
from optimsyn.llm.local.sampling import draw

_log = logging.getLogger(__name__)

ATTENTION = "optimsyn_slots"
# Lengths of caches, and numbers of rows, for which a step is recorded.
LENGTH_STEP = 256
_FEWEST_ROWS = 8
# Tokens of prompts that are read at once.
_READ_TOKENS = {"cuda": 32768, "cpu": 2048}
# The most that the correlation of a trial's logits with the model's own may be below 1. In bfloat16 the embedded model
# is at .0008; without its window it would be at .005, with positions off by one at .02 or more.
_ALIKE, _ALIKE_16_BITS = 1e-5, 0.003
# Tokens of a trial, which on a CPU must not take seconds.
_TRIAL_TOKENS = {"cuda": 1024, "cpu": 64}


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **others: Any
) -> tuple[torch.Tensor, None]:
    """PyTorch's attention; heads that share keys are its positions in a step, so keys are not repeated for them."""
    rows, heads, length, size = query.shape
    if length > 1 or mask is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **others)
        return result
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    output = torch.nn.functional.scaled_dot_product_attention(
        grouped, key, value, attn_mask=mask, scale=others.get("scaling")
    )
    return output.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _SlotCache(Cache):
    """Keys and values of all slots; `update` writes one token for each row and returns what the rows may look at."""

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        super().__init__(layers=[])
        self.keys, self.values = keys, values
        self.length = 0
        self.positions: torch.Tensor = keys[0]
        self.places: torch.Tensor = keys[0]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [rows, heads, length, size] after the rows' new token."""
        rows = len(self.positions)
        result = []
        for kept, new in ((self.keys[layer_idx], key_states), (self.values[layer_idx], value_states)):
            kept[self.places, :, self.positions] = new[:, :, 0]
            result.append(kept[:rows, :, : self.length])
        return result[0], result[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given, so nobody asks; larger than 0, because there is a prompt."""
        return self.length


class Slots:
    """Slots for `count` rows of up to `capacity` tokens, of a model in evaluation mode."""

    def __init__(
        self, model: Any, count: int, capacity: int, like: DynamicCache, ends: Sequence[int], *, chunk: int
    ) -> None:
        """Allocates the memory.

        Args:
            model: A causal language model for which `fits` holds.
            count: Rows.
            capacity: Tokens of a row's prompt and reply.
            like: A cache of the model, for sizes and dtype.
            ends: Tokens that end a reply.
            chunk: Steps between two looks of the host.
        """
        self.model = model
        self.count, self.capacity, self.chunk = count, capacity, chunk
        self.device = model.device

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        def memory(tensor: torch.Tensor) -> torch.Tensor:
            return zeros(count, tensor.shape[1], capacity, tensor.shape[3], dtype=tensor.dtype)

        self._cache = _SlotCache([memory(layer.keys) for layer in like.layers], [memory(x.values) for x in like.layers])
        self._tokens, self._positions, self._steps, self._seeds, self._limits = (zeros(count) for _ in range(5))
        self._temperatures = zeros(count, dtype=torch.float64)
        self._done = torch.ones(count, dtype=torch.bool, device=self.device)
        self._out = zeros(count, chunk)
        self._place = zeros(1)
        self._ends = torch.tensor(ends or [-1], device=self.device)
        self._rows = torch.arange(count, device=self.device)
        self._columns = torch.arange(capacity, device=self.device)
        self._graphs: dict[tuple[int, int], Any] = {}
        self._graph_pool: Any = None
        self._records = self.device.type == "cuda"

    def start(self, entries: Sequence[tuple[int, Row]]) -> None:
        """Reads the prompts of rows and puts them into free slots."""
        for group in _by_length(entries, _READ_TOKENS.get(self.device.type, _READ_TOKENS["cpu"])):
            self._read(group)
        places = self._tensor([place for place, _ in entries])
        rows = [row for _, row in entries]
        for state, values in (
            (self._tokens, [row.ids[-1] for row in rows]),
            (self._positions, [len(row.ids) - 1 for row in rows]),
            (self._steps, [0] * len(rows)),
            (self._seeds, [row.seed % 2**63 for row in rows]),
            (self._limits, [row.max_tokens for row in rows]),
            (self._temperatures, [row.temperature for row in rows]),
            (self._done, [False] * len(rows)),
        ):
            state[places] = self._tensor(values, state.dtype)

    def _tensor(self, values: Sequence[Any], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Values on the device, copied without waiting for what it computes."""
        tensor = torch.tensor(values, dtype=dtype)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _read(self, entries: Sequence[tuple[int, Row]]) -> None:
        """Keys and values of all prompt tokens but the last, which the first step reads."""
        # Padded on the right, where causal attention never looks.
        prompts = [row.ids[:-1] for _, row in entries]
        width = max(map(len, prompts))
        if not width:
            return
        ids = self._tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
        cache = read(self.model, ids)
        places = self._tensor([place for place, _ in entries])
        for index, layer in enumerate(cache.layers):
            self._cache.keys[index][places, :, :width] = layer.keys
            self._cache.values[index][places, :, :width] = layer.values

    def stop(self, places: Sequence[int]) -> None:
        """Frees slots."""
        self._done.index_fill_(0, self._tensor(places), True)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Moves rows to free slots."""
        place, other = self._tensor(sources), self._tensor(targets)
        for tensor in (*self._cache.keys, *self._cache.values, self._tokens, self._positions, self._steps, self._seeds,
                       self._limits, self._temperatures, self._done):  # fmt: skip
            tensor[other] = tensor[place]
        self._done.index_fill_(0, place, True)

    def run(self, rows: int, longest: int) -> Callable[[], list[list[int]]]:
        """Starts `chunk` steps of the first `rows` slots.

        Args:
            rows: Slots, at most `count`.
            longest: The most tokens that a row has after it.

        Returns:
            Waits for the steps and gives each slot's tokens; -1 after a row's end and in free slots.
        """
        rows = min(self.count, max(_FEWEST_ROWS, 1 << (rows - 1).bit_length())) if self._records else rows
        # Few different lengths: each is recorded once.
        length = min(self.capacity, -(-longest // LENGTH_STEP) * LENGTH_STEP)
        self._place.zero_()
        for _ in range(self.chunk):
            self._step(rows, length)
        if self.device.type != "cuda":
            tokens: list[list[int]] = self._out[:rows].tolist()
            return lambda: tokens
        # Copied in turn with the steps, so that reading it does not wait for steps that are started later.
        host = torch.empty(rows, self.chunk, dtype=torch.int64, pin_memory=True)
        host.copy_(self._out[:rows], non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

        def wait() -> list[list[int]]:
            copied.synchronize()
            result: list[list[int]] = host.tolist()
            return result

        return wait

    def _step(self, rows: int, length: int) -> None:
        if (graph := self._graphs.get((rows, length))) is not None:
            graph.replay()
            return
        self._compute(rows, length)
        if self._records:
            self._record(rows, length)

    def _record(self, rows: int, length: int) -> None:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self.device)
        try:
            # Other threads use the GPU meanwhile: only this one must do nothing that a graph cannot hold.
            with torch.cuda.graph(graph, pool=self._graph_pool, stream=stream, capture_error_mode="thread_local"):
                self._compute(rows, length)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _log.warning("%s: its steps cannot be recorded as CUDA graphs (%s); slower", type(self.model), error)
            self._records = False
            self._graphs.clear()
            return
        self._graph_pool = graph.pool()
        self._graphs[rows, length] = graph

    def _compute(self, rows: int, length: int) -> torch.Tensor:
        """One token for each of the first `rows` slots, without a synchronisation with the host; the logits."""
        positions, done, steps = self._positions[:rows], self._done[:rows], self._steps[:rows]
        cache = self._cache
        cache.positions, cache.places, cache.length = positions, self._rows[:rows], length
        logits: torch.Tensor = self.model(
            input_ids=self._tokens[:rows].unsqueeze(1),
            attention_mask=self.masks(positions, length),
            position_ids=positions.unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        drawn = draw(logits, self._temperatures[:rows], self._seeds[:rows], steps)
        self._out[:rows].index_copy_(1, self._place, drawn.masked_fill(done, -1).unsqueeze(1))
        self._place += 1
        steps += ~done
        ended = done | torch.isin(drawn, self._ends) | (steps >= self._limits[:rows])
        positions += ~ended
        self._tokens[:rows] = torch.where(ended, self._tokens[:rows], drawn)
        done.copy_(ended)
        return logits

    def masks(self, positions: torch.Tensor, length: int) -> Any:
        """What each row may look at, [rows, 1, 1, length], for each kind of layer."""
        config = self.model.config.get_text_config()
        columns, positions = self._columns[:length], positions.unsqueeze(1)
        past = columns <= positions
        window = getattr(config, "sliding_window", None)
        near = past if window is None else past & (columns > positions - window)

        def mask(keep: torch.Tensor) -> torch.Tensor:
            least = torch.finfo(self.model.dtype).min
            empty = torch.zeros(keep.shape, dtype=self.model.dtype, device=self.device)
            return empty.masked_fill(~keep, least)[:, None, None]

        kinds = set(getattr(config, "layer_types", None) or ())
        masks = {kind: mask(near if kind == "sliding_attention" else past) for kind in kinds}
        if len(masks) > 1:
            return masks
        return next(iter(masks.values())) if masks else mask(near)


def read(model: Any, ids: torch.Tensor) -> DynamicCache:
    """Keys and values of all tokens of prompts [B, T]; also of those that a sliding window no longer sees."""
    cache = DynamicCache()
    model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def _by_length(entries: Sequence[tuple[int, Row]], tokens: int) -> list[list[tuple[int, Row]]]:
    """Groups of similar length whose padded prompts have at most so many tokens, or single rows."""
    groups: list[list[tuple[int, Row]]] = []
    for entry in sorted(entries, key=lambda entry: -len(entry[1].ids)):
        # The longest comes first, so it gives the width.
        if not groups or len(groups[-1][0][1].ids) * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(entry)
    return groups


@torch.inference_mode()
def fits(model: Any) -> bool:
    """Whether slots give this model's own numbers, which a trial shows; the model's attention is replaced if so."""
    config = model.config.get_text_config()
    layers = DynamicCache(config=model.config).layers
    # MPS has no float64 for the noise; state-space and hybrid layers keep other things than keys and values.
    usual = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    if not usual or model.device.type not in ("cpu", "cuda"):
        return False
    window = getattr(config, "sliding_window", None) or 0
    most = _TRIAL_TOKENS.get(model.device.type, _TRIAL_TOKENS["cpu"])
    # Longer than the window, where the model has a small one.
    count = max(4, min(window + 8, most, (getattr(config, "max_position_embeddings", None) or most) - 1))
    ids = torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(0))
    before = model.config._attn_implementation
    reason = ""
    try:
        ends = (count // 2, count)
        wanted = [model(input_ids=ids[None, :end].to(model.device), logits_to_keep=1).logits[0, -1] for end in ends]
        if before == "sdpa":
            model.set_attn_implementation(ATTENTION)
        slots = Slots(model, 2, count + 1, read(model, ids[None, :1].to(model.device)), [], chunk=1)
        slots.start([(place, Row(ids[:end].tolist(), 0.0, 1, 0)) for place, end in enumerate(ends)])
        given = slots._compute(2, count)
    except torch.cuda.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        pairs = [torch.stack([a, b]).double() for a, b in zip(given, wanted, strict=True)]
        worst = max(1 - torch.corrcoef(pair)[0, 1].item() for pair in pairs)
        if not worst <= (_ALIKE_16_BITS if given.element_size() == 2 else _ALIKE):
            reason = f"its logits correlate with the model's own at {1 - worst:.4f}"
    if reason:
        # On a GPU that costs most of its speed.
        level = logging.WARNING if model.device.type == "cuda" else logging.INFO
        _log.log(level, "%s: batches are generated by transformers itself (%s)", type(model).__name__, reason)
        model.set_attn_implementation(before)
    return not reason
