"""Encodes a `Sample` as token ids and labels, and many of them as right-padded batches.

Training, influence and evaluation all encode here, so that they see the same tokens. Training learns every label: the
answer and the tokens that end it. Influence and evaluation measure the labels that `counted` keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch

from optimsyn.base.errors import ModelError
from optimsyn.data.chat import CONTEXT_PREFIX, sample_of, split_context
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.llm.control_tokens import controls_of, rendered
from optimsyn.recipe.sections.models import CountedTokens

IGNORE = -100
"""Label of a position that has no loss (prompt and padding), as in PyTorch's cross entropy."""

# Stands for the answer while the chat template is rendered. Searching for the answer itself would find it inside the
# template's own markers when it is a word such as "end".
_ANSWER = "OPTIMSYN-ANSWER-GOES-HERE"


@dataclass(frozen=True)
class Encoded:
    """One sample in tokens.

    Attributes:
        input_ids: Prompt, answer and end-of-text token, then the blanks with which a chat template ends.
        labels: Same length; -100 on the prompt, the token itself on the answer and the end-of-text token. In a dialogue
            each answer and the end of its turn have labels.
        end_tokens: How many of the last labels end the answer without being part of it: the end-of-text token, or the
            end of a turn in a chat template.
        weights: The factor of each label's loss in the sample's loss; empty takes their mean.
        earlier_ends: Positions of the labels that end an earlier turn of a dialogue.
    """

    id: str
    input_ids: list[int]
    labels: list[int]
    truncated: bool
    end_tokens: int = 0
    weights: tuple[float, ...] = ()
    earlier_ends: tuple[int, ...] = ()

    @property
    def label_tokens(self) -> int:
        """How many tokens are predicted."""
        return sum(label != IGNORE for label in self.labels)

    @property
    def token_weights(self) -> tuple[float, ...]:
        """The weight of each label's loss, also where the sample's loss is a mean."""
        count = self.label_tokens
        return self.weights or tuple(1 / count for _ in range(count))

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens before the first predicted one, from which a generation starts."""
        first = next(i for i, label in enumerate(self.labels) if label != IGNORE)
        return self.input_ids[:first]


@dataclass(frozen=True)
class Batch:
    """Samples of similar length, right-padded.

    Attributes:
        indices: Index of each row in the caller's order.
        input_ids: [B, T] int64.
        labels: [B, T] int64, -100 on prompts and padding.
        weights: [B, T], the factor of each label's loss in its row's loss, 0 elsewhere; None takes the mean over a
            row's labels.
    """

    indices: list[int]
    ids: list[str]
    input_ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def token_weights(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The weights [N] of N labels, on the batch's device, given the row [N] and the column [N] of each."""
        rows, columns = rows.to(self.labels.device), columns.to(self.labels.device)
        if self.weights is not None:
            return self.weights[rows, columns]
        counts = torch.bincount(rows, minlength=len(self))
        return 1 / counts.to(_wide(rows.device))[rows]


Role = Literal["question", "pair"]


def counted(encoded: Encoded, tokens: CountedTokens, role: Role) -> Encoded:
    """Keeps the labels of a sample that count when its loss is measured. Nothing else decides this.

    Validation directions, pair scores, token shares, counterfactuals, served scores and the evaluation measure this
    loss. Training (warm-up and fine-tuning) learns every label.

    Args:
        encoded: As `encode` returns it. A sample without labels is returned as it is; the measurement refuses it.
        tokens: The recipe's `influence.tokens`.
        role: An expert's question, or a pair to judge.

    Returns:
        The same tokens with fewer labels, and a weight for each label. All tokens of the answer keep their labels.
    """
    end = tokens.end_of_questions if role == "question" else tokens.end_of_pairs
    count = encoded.label_tokens
    if not count:
        return encoded
    last = min(encoded.end_tokens, count - 1)
    places = [place for place, label in enumerate(encoded.labels) if label != IGNORE]
    ends = {*places[count - last :], *encoded.earlier_ends}
    raw = {place: end if place in ends else 1.0 for place in places if end > 0 or place not in ends}
    total = sum(raw.values())
    divisor = {"mean": total, "root": total**0.5, "sum": 1.0}[tokens.reduction]
    return replace(
        encoded,
        labels=[label if place in raw else IGNORE for place, label in enumerate(encoded.labels)],
        weights=tuple(weight / divisor for weight in raw.values()),
        end_tokens=last if end > 0 else 0,
        earlier_ends=encoded.earlier_ends if end > 0 else (),
    )


def as_sample(item: Sample | Pair | Question) -> Sample:
    """The sample of a pair or a question; a sample is returned as it is."""
    return item if isinstance(item, Sample) else sample_of(item)


def encode(tokenizer: Any, sample: Sample, max_length: int) -> Encoded:
    """Tokenises a sample with the tokenizer's chat template, or in the plain format where it has none.

    Prompt and answer are tokenised together, so that the ids are those of the whole text. A control token's string in a
    sample is text (`optimsyn.llm.control_tokens`). A sample that is too long loses the left end of its context, never a
    word of the question or the answer.

    Args:
        tokenizer: A Hugging Face tokenizer.
        sample: What to encode.
        max_length: Longest result, in tokens.

    Raises:
        ModelError: The answer is empty or has no token, nothing stands before it, or question and answer alone are
            longer than `max_length`.
    """
    if not sample.completion.strip():
        raise ModelError(
            f"sample {sample.id!r} has an empty answer, so it has no token to learn; remove it or give it an answer"
        )
    tokens, truncated = fitted(tokenizer, sample, max_length)
    if tokens.learned[0] == 0:
        raise ModelError(
            f"sample {sample.id!r} has no token before its answer, so nothing predicts the answer's first token; give "
            "it a prompt, or a tokenizer that puts a beginning-of-text token in front"
        )
    labels = [IGNORE] * len(tokens.ids)
    for place in tokens.learned:
        labels[place] = tokens.ids[place]
    return Encoded(sample.id, tokens.ids, labels, truncated, tokens.end_tokens, earlier_ends=tokens.earlier_ends)


class Tokens(NamedTuple):
    """A sample's tokens and the position of its answer, the last one of a dialogue.

    Attributes:
        ids: Prompt, answer, end of text, and the blanks with which a chat template ends.
        first: Index of the first predicted token of the answer.
        text: What the tokens are of.
        start: Where the answer begins in `text`.
        stop: Where it ends.
        offsets: Start and end of each token in `text`; None where the tokenizer does not report them.
        end_tokens: How many of the last predicted tokens come after the answer.
        learned: Indices of all predicted tokens.
        earlier_ends: Those of them that end an earlier turn.
    """

    ids: list[int]
    first: int
    text: str
    start: int
    stop: int
    offsets: list[tuple[int, int]] | None
    end_tokens: int
    learned: list[int]
    earlier_ends: tuple[int, ...] = ()


def fitted(tokenizer: Any, sample: Sample, max_length: int) -> tuple[Tokens, bool]:
    """The tokens of a sample, with its context cut from the left to fit, and whether it was cut."""
    tokens = _tokens(tokenizer, sample)
    truncated = False
    context, rest = split_context(_body(tokenizer, sample), sample.context)
    prefix = "" if _has_template(tokenizer) else CONTEXT_PREFIX
    while len(tokens.ids) > max_length:
        if not context:
            raise ModelError(
                f"sample {sample.id!r}: question and answer alone take {len(tokens.ids)} tokens, more than max_length "
                f"{max_length}; raise models.target.max_length or remove the sample"
            )
        context = _shorten(tokenizer, context, prefix, len(tokens.ids) - max_length)
        tokens = _tokens(tokenizer, _with_body(tokenizer, sample, context + rest))
        truncated = True
    return tokens, truncated


def make_batches(
    encoded: Sequence[Encoded], batch_tokens: int, *, pad_id: int, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """Groups samples of similar length so that rows times longest row stays within `batch_tokens`.

    The longest batch comes first, so that a lack of memory shows at once. A sample longer than the budget is a batch
    by itself.
    """
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i].input_ids), i))
    start = 0
    while start < len(order):
        width = len(encoded[order[start]].input_ids)
        rows = order[start : start + max(1, batch_tokens // width)]
        start += len(rows)
        yield pad([encoded[i] for i in rows], rows, pad_id=pad_id, device=device)


def pad(
    encoded: Sequence[Encoded], indices: Sequence[int], *, pad_id: int, device: torch.device | str = "cpu"
) -> Batch:
    """Right-pads these samples to a batch, in this order."""
    width = max(len(item.input_ids) for item in encoded)
    tokens = [item.input_ids + [pad_id] * (width - len(item.input_ids)) for item in encoded]
    labels = torch.tensor([item.labels + [IGNORE] * (width - len(item.labels)) for item in encoded], device=device)
    weights = None
    if any(item.weights for item in encoded):
        wide = _wide(labels.device)
        flat = [weight for item in encoded for weight in item.token_weights]
        weights = torch.zeros(labels.shape, dtype=wide, device=device)
        weights[labels != IGNORE] = torch.tensor(flat, dtype=wide, device=device)
    return Batch(
        indices=list(indices),
        ids=[item.id for item in encoded],
        input_ids=torch.tensor(tokens, device=device),
        labels=labels,
        weights=weights,
    )


def _wide(device: torch.device) -> torch.dtype:
    # Apple's GPUs have no float64.
    return torch.float32 if device.type == "mps" else torch.float64


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _body(tokenizer: Any, sample: Sample) -> str:
    """The text that holds the context: the user message of a chat, else the plain prompt."""
    return sample.messages[0]["content"] if _has_template(tokenizer) else sample.prompt


def _with_body(tokenizer: Any, sample: Sample, body: str) -> Sample:
    if _has_template(tokenizer):
        user = {**sample.messages[0], "content": body}
        return sample.model_copy(update={"messages": (user, *sample.messages[1:])})
    moved = len(body) - len(sample.prompt)
    earlier = tuple((start + moved, stop + moved) for start, stop in sample.earlier)
    return sample.model_copy(update={"prompt": body, "earlier": earlier})


class _Pieces(NamedTuple):
    """A sample as text: what stands before its first answer, then each answer with what follows it."""

    before: str
    answers: list[tuple[str, str]]
    special: bool


def _pieces(tokenizer: Any, sample: Sample) -> _Pieces:
    controls = controls_of(tokenizer)
    if not _has_template(tokenizer):
        text = controls.masked(sample.prompt)
        borders = [0, *(place for span in sample.earlier for place in span), len(text)]
        parts = [text[start:stop] for start, stop in pairwise(borders)]
        answers = [*parts[1::2], controls.masked(sample.completion)]
        return _Pieces(parts[0], list(zip(answers, [*parts[2::2], ""], strict=True)), special=True)
    messages = [dict(message) for message in sample.messages]
    last = len(messages) - 1
    places = [i for i, m in enumerate(messages) if i == last or (sample.earlier and m["role"] == "assistant")]
    answers = [controls.masked(messages[place]["content"].strip()) for place in places]
    markers = [f"{_ANSWER}-{number}" for number in range(len(places))]
    for place, marker in zip(places, markers, strict=True):
        messages[place]["content"] = marker
    before, behind = rendered(tokenizer, messages), []
    for marker in reversed(markers):
        before, found, after = before.rpartition(marker)
        if not found:
            raise ModelError("the tokenizer's chat template omits the assistant's message; name another target")
        behind.append(after)
    return _Pieces(before, list(zip(answers, reversed(behind), strict=True)), special=False)


class _Span(NamedTuple):
    """Where an answer begins and ends in the text, and where the marker that ends its turn does."""

    start: int
    stop: int
    end: int


def _tokens(tokenizer: Any, sample: Sample) -> Tokens:
    controls = controls_of(tokenizer)
    pieces = _pieces(tokenizer, sample)
    # The end-of-turn marker is learned, the line break after it is not.
    after = pieces.answers[-1][1].rstrip()
    tail = pieces.answers[-1][1][len(after) :] if after else ""
    text, spans = pieces.before, []
    for answer, behind in pieces.answers:
        stop = len(text) + len(answer)
        spans.append(_Span(len(text), stop, stop + len(after) if behind.startswith(after) else stop))
        text += answer + behind
    last = spans[-1]
    text = text[: last.end]
    offsets: list[tuple[int, int]] | None = None
    if tokenizer.is_fast:
        ids, offsets = controls.encode(text + tail, add_special_tokens=pieces.special)
    if offsets is not None:
        learned = [_within(offsets, span) for span in spans[:-1]]
        first = next((i for i, (_, end) in enumerate(offsets) if end > last.start), len(ids))
        blanks = sum(start >= last.end for start, _ in offsets) if tail else 0
        learned.append(list(range(first, len(ids) - blanks)))
    else:
        ids, learned = _joined(tokenizer, text, spans, special=pieces.special)
        first = learned[-1][0] if learned[-1] else len(ids)
    # A token that begins after the answer ends the turn: nothing of the answer itself is learned.
    if first == len(ids) or (offsets is not None and offsets[first][0] >= last.stop):
        answer = pieces.answers[-1][0]
        raise ModelError(
            f"sample {sample.id!r}: the tokenizer produces no token for the answer {answer!r}; remove the sample, or "
            "name a target whose vocabulary covers its letters"
        )
    end_id = tokenizer.eos_token_id
    if not after and end_id is not None and ids[-1] != end_id:
        learned[-1].append(len(ids))
        ids.append(end_id)
    ends = []
    for span, places in zip(spans, learned, strict=True):
        found = None if offsets is None else [offsets[i] if i < len(offsets) else (0, 0) for i in places]
        count = _behind(tokenizer, [ids[i] for i in places], found, span.stop, after)
        ends.append(places[len(places) - count :])
    everything = [place for places in learned for place in places]
    earlier = tuple(place for places in ends[:-1] for place in places)
    whole = controls.unmasked(text + (tail if offsets is not None else ""))
    return Tokens(ids, first, whole, last.start, last.stop, offsets, len(ends[-1]), everything, earlier)


def _within(offsets: list[tuple[int, int]], span: _Span) -> list[int]:
    """The tokens of an earlier answer and of the marker that ends its turn."""
    return [place for place, (start, end) in enumerate(offsets) if end > span.start and start < span.end]


def _joined(tokenizer: Any, text: str, spans: Sequence[_Span], *, special: bool) -> tuple[list[int], list[list[int]]]:
    """Ids and learned places where a border is known only when both sides are tokenised separately."""
    controls = controls_of(tokenizer)
    ids: list[int] = []
    learned: list[list[int]] = []
    done = 0
    for span in spans:
        begins = special and not done
        ids += controls.encode(text[done : span.start], add_special_tokens=begins).ids
        if begins and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            # The end token that the tokenizer adds to every text; it belongs after the answer.
            ids.pop()
        first = len(ids)
        ids += controls.encode(text[span.start : span.end], add_special_tokens=False).ids
        learned.append(list(range(first, len(ids))))
        done = span.end
    return ids, learned


def _behind(tokenizer: Any, ids: list[int], offsets: list[tuple[int, int]] | None, stop: int, after: str) -> int:
    """How many of an answer's last tokens come after its text, which always keeps one token."""

    def letters(some: list[int]) -> str:
        return "".join(tokenizer.decode(some, skip_special_tokens=True).split())

    # Only its plain letters: special tokens are recognised by their ids.
    if offsets is None and after:
        for written in filter(None, (tokenizer.decode([token]) for token in set(tokenizer.all_special_ids))):
            after = after.replace(written, "")
    ending = "".join(after.split())
    # An unknown word of the answer is a word, except where one token has all the roles.
    special = set(tokenizer.all_special_ids) - {getattr(tokenizer, "unk_token_id", None)} | {tokenizer.eos_token_id}
    count = 0
    for place in range(len(ids) - 1, 0, -1):
        if ids[place] in special:
            behind = True
        elif offsets is not None:
            # Tokens that a tokenizer adds by itself have no place in the text and say (0, 0).
            behind = place >= len(offsets) or offsets[place][0] >= stop or tuple(offsets[place]) == (0, 0)
        else:
            tail = letters(ids[place:])
            # Bytes in the middle of a letter may decode to nothing: then the token adds to what stands before it.
            adds = tail != letters(ids[place + 1 :]) or letters(ids[: place + 1]) == letters(ids[:place])
            behind = bool(ending) and ending.endswith(tail) and adds
        if not behind:
            break
        count += 1
    return count


def _shorten(tokenizer: Any, context: str, prefix: str, tokens: int) -> str:
    """`context` without about `tokens` tokens behind its `prefix`; "" when nothing would be left of it."""
    body = context.removeprefix(prefix)
    if tokenizer.is_fast:
        offsets = tokenizer(body, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        cut = offsets[tokens][0] if tokens < len(offsets) else len(body)
    else:
        words = body.split()
        cut = body.find(words[tokens]) if tokens < len(words) else len(body)
    # At least one character goes each time, so that the caller's loop ends.
    kept = body[max(cut, 1) :].lstrip()
    return prefix + kept if kept.strip() else ""
