"""Batches of replies that prompts enter and leave at any time, within a share of the GPU's memory."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from optimsyn.llm.local.rows import Generated, Row, StopTexts, end_ids, finished
from optimsyn.llm.local.sampling import draw
from optimsyn.llm.local.slots import LENGTH_STEP, Slots, fits, read

_log = logging.getLogger(__name__)

# The generator's share of the memory that is free when it starts; the target and the policy need the rest.
_MEMORY_SHARE = 0.25
# Bytes for each row and token of the vocabulary while a step samples: logits, and their largest ones.
_SAMPLING_BYTES = 16
# Steps between two looks of the host; a reply with a stop text may be computed that much too far.
CHUNK = {"cuda": 8}
# Looks that the host is behind, while the GPU goes on.
AHEAD = {"cuda": 1}
# New prompts wait until this share of the slots is free, or until all of them find a slot.
_REFILL = 1 / 8


@dataclass
class _Active:
    key: Hashable
    row: Row
    reply: list[int] = field(default_factory=list)
    ended: bool = False


class Batches:
    """Rows that wait, and rows that are being generated. Not thread-safe.

    Attributes:
        most_rows: The most rows at once; halved when memory runs out.
        ends: Tokens that end a reply.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, most_rows: int, shrunk: Callable[[int], None] | None = None
    ) -> None:
        """An empty batch.

        Args:
            model: A causal language model in evaluation mode; its attention may be replaced by one for slots.
            tokenizer: Its tokenizer.
            most_rows: The most rows at once.
            shrunk: Called with the new `most_rows` when memory ran out.
        """
        self.most_rows = most_rows
        self.ends = end_ids(model, tokenizer)
        self._model, self._tokenizer, self._shrunk = model, tokenizer, shrunk
        self._stops = StopTexts(tokenizer)
        self._waiting: deque[tuple[Hashable, Row]] = deque()
        self._active: dict[int, _Active] = {}
        self._dropped: set[Hashable] = set()
        # Steps that were started and not looked at: the rows at that time, and what waits for their tokens.
        self._started: deque[tuple[dict[int, _Active], Callable[[], list[list[int]]]]] = deque()
        self._slots: Slots | None = None
        self._slots_for = 0
        self._by_slots: bool | None = None
        self._stream: Any = None
        if model.device.type == "cuda":
            # Its own, so that steps can be recorded and run beside the scorer's work.
            torch.cuda.synchronize(model.device)
            self._stream = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]

    @property
    def busy(self) -> bool:
        """Whether a row waits or is being generated."""
        return bool(self._waiting or self._active)

    def add(self, key: Hashable, row: Row) -> None:
        """Lets a row wait for its turn; `key` names it."""
        self._waiting.append((key, row))

    def drop(self, keys: set[Hashable]) -> None:
        """Gives up rows; those that are being generated leave at the next `advance`."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] not in keys)
        self._dropped |= keys

    def clear(self) -> None:
        """Gives up all rows, after an error."""
        self._waiting.clear()
        self._active.clear()
        self._dropped.clear()
        self._started.clear()
        self._slots = None

    @torch.inference_mode()
    def advance(self) -> list[tuple[Hashable, list[int]]]:
        """Lets prompts in, generates some tokens, and returns the replies that ended, as tokens for `finished`.

        Raises:
            torch.cuda.OutOfMemoryError: There is too little memory for a single row.
        """
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            try:
                self._free([place for place, active in self._active.items() if active.key in self._dropped])
                self._dropped.clear()
                if not self.busy:
                    return []
                if self._by_slots is None:
                    self._by_slots = fits(self._model)
                return self._some_steps() if self._by_slots else self._whole_batch()
            except torch.cuda.OutOfMemoryError:
                if not self._shrink():
                    raise
        return []

    def _shrink(self) -> bool:
        """Starts the rows again with half as many at once, unless there is one; replies do not depend on it."""
        rows = self.most_rows if self._slots is None else self._slots.count
        self._waiting.extendleft((active.key, active.row) for active in reversed(self._active.values()))
        self._active.clear()
        self._started.clear()
        self._slots = None
        if self._by_slots is None or rows == 1:
            return False
        self.most_rows = rows // 2
        torch.cuda.empty_cache()
        _log.warning("too little GPU memory for a batch of %d rows; going on with %d", rows, self.most_rows)
        if self._shrunk is not None:
            self._shrunk(self.most_rows)
        return True

    def _some_steps(self) -> list[tuple[Hashable, list[int]]]:
        """Starts steps, and looks at those that were started before, so that the GPU computes meanwhile."""
        self._let_in()
        slots, active = self._slots, self._active
        assert slots is not None
        ahead = slots.chunk * len(self._started)
        if any(len(each.reply) + ahead < each.row.max_tokens for each in active.values()):
            longest = max(len(each.row.ids) + len(each.reply) for each in active.values()) + ahead + slots.chunk
            self._started.append((dict(active), slots.run(max(active) + 1, longest)))
            if len(self._started) <= AHEAD.get(self._model.device.type, 0):
                return []
        then, wait = self._started.popleft()
        replies = []
        for place, tokens in enumerate(wait()):
            each = then.get(place)
            if each is None or each.ended:
                continue
            new = [token for token in tokens if token >= 0]
            each.reply += new
            done = len(new) < slots.chunk or new[-1] in self.ends or len(each.reply) >= each.row.max_tokens
            if done or self._stops.reached(each.row, each.reply, len(new)):
                each.ended = True
                replies.append((each.key, each.reply))
        self._free([place for place, each in active.items() if each.ended])
        return replies

    def _free(self, places: Sequence[int]) -> None:
        for place in places:
            self._active.pop(place).ended = True
        if places and self._slots is not None:
            self._slots.stop(places)
        if not self._active:
            self._started.clear()
        if not self.busy and self._stream is None:
            self._slots = None  # on a CPU the memory is soon had again

    def _let_in(self) -> None:
        slots = self._slots
        # Another model that shares the weights may allow more rows.
        if slots is None or (not self._active and self._slots_for != self.most_rows):
            slots = self._allocate()
        elif self._waiting and self._waiting[0][1].length > slots.capacity:
            if self._active:
                return  # the longer prompt gets new memory as soon as nothing is left in the old
            slots = self._allocate()
        free = [place for place in range(slots.count) if place not in self._active]
        if self._waiting and (len(free) >= slots.count * _REFILL or len(self._waiting) <= len(free)):
            entries = []
            for place in free:
                if not self._waiting or self._waiting[0][1].length > slots.capacity:
                    break
                key, row = self._waiting.popleft()
                self._active[place] = _Active(key, row)
                entries.append((place, row))
            slots.start(entries)
        elif not self._waiting:
            self._close_up(slots)

    def _close_up(self, slots: Slots) -> None:
        """Moves rows to the first slots once half of them are empty."""
        count = len(self._active)
        if 2 * count > max(self._active) + 1:
            return
        sources = [place for place in self._active if place >= count]
        targets = [place for place in range(count) if place not in self._active]
        slots.move(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self._active[target] = self._active.pop(source)

    def _allocate(self) -> Slots:
        """New slots for what waits, within the share of free memory."""
        self._slots = None
        device = self._model.device
        longest = max(row.length for _, row in self._waiting)
        capacity = -(-longest // LENGTH_STEP) * LENGTH_STEP
        like = read(self._model, torch.zeros(1, 1, dtype=torch.int64, device=device))
        count = self._slots_for = self.most_rows
        if self._stream is not None:
            free = torch.cuda.mem_get_info(device)[0]
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            token = sum(tensor.nbytes for layer in like.layers for tensor in (layer.keys, layer.values))
            row = capacity * token + _SAMPLING_BYTES * self._model.config.get_text_config().vocab_size
            count = max(1, min(count, int(free * _MEMORY_SHARE / row)))
        chunk = CHUNK.get(device.type, 1)
        self._slots = Slots(self._model, count, capacity, like, self.ends, chunk=chunk)
        return self._slots

    def _whole_batch(self) -> list[tuple[Hashable, list[int]]]:
        """A batch by transformers' own `generate`, for models that slots do not fit."""
        taken = [self._waiting.popleft() for _ in range(min(self.most_rows, len(self._waiting)))]
        try:
            replies = _generate(self._model, self._tokenizer, [row for _, row in taken], self.ends, self._stops)
        except torch.cuda.OutOfMemoryError:
            self._waiting.extendleft(reversed(taken))
            raise
        return [(key, reply) for (key, _), reply in zip(taken, replies, strict=True)]


def generate(model: Any, tokenizer: Any, rows: Sequence[Row], *, most_rows: int | None = None) -> list[Generated]:
    """Replies to prompts, in order.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        tokenizer: Its tokenizer.
        rows: The prompts.
        most_rows: The most rows at once; None: all.
    """
    batches = Batches(model, tokenizer, most_rows=most_rows or len(rows))
    for index, row in enumerate(rows):
        batches.add(index, row)
    replies: dict[Hashable, list[int]] = {}
    while batches.busy:
        replies.update(batches.advance())
    return [finished(tokenizer, row, replies[index], batches.ends) for index, row in enumerate(rows)]


def _generate(
    model: Any, tokenizer: Any, rows: Sequence[Row], ends: Sequence[int], stops: StopTexts
) -> list[list[int]]:
    """The replies' tokens; padded on the left, all rows until the longest reply ends."""
    width, pad = max(len(row.ids) for row in rows), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=max(row.max_tokens for row in rows),
            pad_token_id=pad,
            eos_token_id=list(ends) or None,
        ),
        logits_processor=LogitsProcessorList([SeededSampling(rows, model.device)]),
        stopping_criteria=StoppingCriteriaList([_RowLimits(rows, stops, width)]),
    )
    replies: list[list[int]] = output[:, width:].tolist()
    for reply in replies:
        while reply and reply[-1] == pad and pad not in ends:
            reply.pop()  # padding, because other rows of the batch were longer
    return replies


class SeededSampling(LogitsProcessor):
    """Turns the arg max of greedy decoding into a sample of each row's own distribution; see `draw`."""

    def __init__(self, rows: Sequence[Row], device: torch.device | str = "cpu") -> None:
        """For the rows of one batch."""
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


class _RowLimits(StoppingCriteria):
    """Ends each row at its own length or stop text."""

    def __init__(self, rows: Sequence[Row], stops: StopTexts, prompt_length: int) -> None:
        self._rows, self._stops, self._prompt_length = rows, stops, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        replies = input_ids[:, self._prompt_length :].tolist()  # one synchronisation for all rows
        done = [
            len(reply) >= row.max_tokens or self._stops.reached(row, reply, 1)
            for row, reply in zip(self._rows, replies, strict=True)
        ]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value]
