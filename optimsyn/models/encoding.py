"""From a `Sample` to token ids and labels, and from many of these to right-padded batches.

Training, influence and evaluation all encode here, so that they see the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from optimsyn.data.chat import CONTEXT_PREFIX, sample_of, split_context
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.errors import ModelError

IGNORE = -100
"""Label of a position whose token is not to be predicted (prompt and padding), as in PyTorch's cross entropy."""

# Stands for the answer while the chat template is rendered. Searching for the answer itself would find it inside the
# template's own markers when it is a word such as "end".
_ANSWER = "OPTIMSYN-ANSWER-GOES-HERE"


@dataclass(frozen=True)
class Encoded:
    """One sample in tokens.

    Attributes:
        id: The sample's id.
        input_ids: Prompt, answer and end-of-text token.
        labels: Same length; -100 on the prompt, the token itself on the answer and the end-of-text token.
        truncated: The context was cut to fit.
    """

    id: str
    input_ids: list[int]
    labels: list[int]
    truncated: bool

    @property
    def label_tokens(self) -> int:
        """How many tokens are predicted."""
        return sum(label != IGNORE for label in self.labels)

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens before the first predicted one: what a generation starts from."""
        first = next(i for i, label in enumerate(self.labels) if label != IGNORE)
        return self.input_ids[:first]


@dataclass(frozen=True)
class Batch:
    """Samples of like length, right-padded.

    Attributes:
        indices: Place of each row in the caller's order.
        ids: Sample ids, a row each.
        input_ids: [B, T] int64.
        labels: [B, T] int64, -100 on prompts and padding.
    """

    indices: list[int]
    ids: list[str]
    input_ids: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices)


def as_sample(item: Sample | Pair | Question) -> Sample:
    """The sample of a pair or a question; a sample stays itself."""
    return item if isinstance(item, Sample) else sample_of(item)


def encode(tokenizer: Any, sample: Sample, max_length: int) -> Encoded:
    """Tokenises a sample: chat template where the tokenizer has one, else the plain format.

    Prompt and answer are tokenised together, so that the ids are those of the text as one would write it. A sample
    that is too long loses the left end of its context, never a word of the question or the answer.

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
    found, truncated = fitted(tokenizer, sample, max_length)
    if found.first == 0:
        raise ModelError(
            f"sample {sample.id!r} has no token before its answer, so nothing predicts the answer's first one; give it "
            "a prompt, or a tokenizer that puts a beginning-of-text token in front"
        )
    return Encoded(sample.id, found.ids, [IGNORE] * found.first + found.ids[found.first :], truncated)


class Tokens(NamedTuple):
    """A sample's tokens and where its answer stands.

    Attributes:
        ids: Prompt, answer, end of text.
        first: Place of the first token that is to be predicted.
        text: What was tokenised.
        start: Where the answer begins in `text`.
        stop: Where it ends.
        offsets: For each token of `text` its begin and end there; None where the tokenizer cannot tell.
    """

    ids: list[int]
    first: int
    text: str
    start: int
    stop: int
    offsets: list[tuple[int, int]] | None


def fitted(tokenizer: Any, sample: Sample, max_length: int) -> tuple[Tokens, bool]:
    """The tokens of a sample, its context cut from the left to fit; and whether it was cut.

    Raises:
        ModelError: Question and answer alone are longer than `max_length`.
    """
    found = _tokens(tokenizer, sample)
    truncated = False
    context, rest = split_context(_body(tokenizer, sample))
    while len(found.ids) > max_length:
        if not context:
            raise ModelError(
                f"sample {sample.id!r}: question and answer alone take {len(found.ids)} tokens, more than max_length "
                f"{max_length}; raise models.target.max_length or remove the sample"
            )
        context = _shorten(tokenizer, context, len(found.ids) - max_length)
        found = _tokens(tokenizer, _with_body(tokenizer, sample, context + rest))
        truncated = True
    return found, truncated


def make_batches(
    encoded: Sequence[Encoded], batch_tokens: int, *, pad_id: int, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """Groups samples of like length so that rows times longest row stays within `batch_tokens`.

    The longest batch comes first, so that too little memory shows at once. A sample longer than the budget is a batch
    of its own.
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
    """One right-padded batch of these samples, in this order."""
    width = max(len(item.input_ids) for item in encoded)
    tokens = [item.input_ids + [pad_id] * (width - len(item.input_ids)) for item in encoded]
    labels = [item.labels + [IGNORE] * (width - len(item.labels)) for item in encoded]
    return Batch(
        indices=list(indices),
        ids=[item.id for item in encoded],
        input_ids=torch.tensor(tokens, device=device),
        labels=torch.tensor(labels, device=device),
    )


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _body(tokenizer: Any, sample: Sample) -> str:
    """The text that holds the context: the user message of a chat, else the plain prompt."""
    return sample.messages[0]["content"] if _has_template(tokenizer) else sample.prompt


def _with_body(tokenizer: Any, sample: Sample, body: str) -> Sample:
    if _has_template(tokenizer):
        user = {**sample.messages[0], "content": body}
        return sample.model_copy(update={"messages": (user, *sample.messages[1:])})
    return sample.model_copy(update={"prompt": body})


def _tokens(tokenizer: Any, sample: Sample) -> Tokens:
    if _has_template(tokenizer):
        messages = [dict(message) for message in sample.messages]
        answer = messages[-1]["content"].strip()
        messages[-1]["content"] = _ANSWER
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        before, found, after = rendered.rpartition(_ANSWER)
        if not found:
            raise ModelError("the tokenizer's chat template leaves out the assistant's message; name another target")
        # The end-of-turn marker is learned, the line break after it is not.
        after = after.rstrip()
        ended, special = bool(after), False
    else:
        before, answer, after, ended, special = sample.prompt, sample.completion, "", False, True
    text = before + answer + after
    offsets: list[tuple[int, int]] | None = None
    if tokenizer.is_fast:
        out = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        ids, offsets = list(out["input_ids"]), list(out["offset_mapping"])
        first = next((i for i, (_, end) in enumerate(offsets) if end > len(before)), len(ids))
    else:
        # Without offsets the border is only known when both sides are tokenised on their own.
        ids = list(tokenizer(before, add_special_tokens=special)["input_ids"])
        first = len(ids)
        ids += list(tokenizer(text[len(before) :], add_special_tokens=False)["input_ids"])
    # A token that begins behind the answer is the end of the turn: nothing of the answer itself would be learned.
    if first == len(ids) or (offsets is not None and offsets[first][0] >= len(before) + len(answer)):
        raise ModelError(
            f"sample {sample.id!r}: the tokenizer makes no token of the answer {answer!r}; remove the sample, or name "
            "a target whose vocabulary knows its letters"
        )
    end_id = tokenizer.eos_token_id
    if not ended and end_id is not None and ids[-1] != end_id:
        ids.append(end_id)
    return Tokens(ids, first, text, len(before), len(before) + len(answer), offsets)


def _shorten(tokenizer: Any, context: str, tokens: int) -> str:
    """`context` without about `tokens` tokens at its left end; "" when nothing would be left of it."""
    body = context.removeprefix(CONTEXT_PREFIX)
    if tokenizer.is_fast:
        offsets = tokenizer(body, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        cut = offsets[tokens][0] if tokens < len(offsets) else len(body)
    else:
        words = body.split()
        cut = body.find(words[tokens]) if tokens < len(words) else len(body)
    # At least one character goes each time, so that the caller's loop ends.
    kept = body[max(cut, 1) :].lstrip()
    return CONTEXT_PREFIX + kept if kept.strip() else ""
