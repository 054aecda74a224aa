"""Answer likelihoods and greedy answers of a causal language model, each prompt read only once."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from optimsyn.base.errors import ModelError
from optimsyn.data.chat import sample_of
from optimsyn.data.forms import form_of
from optimsyn.llm.control_tokens import end_ids
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.encoding import IGNORE, counted

if TYPE_CHECKING:
    from torch import Tensor

    from optimsyn.data.records import Question, Sample
    from optimsyn.target.target import Target

# Number of logits held at once: with a vocabulary of 262,144 these are 256 positions and 256 MB in float32.
LOGITS_AT_ONCE = 2**26
# Tokens whose keys and values are held at once for the options of multiple-choice questions.
TOKENS_AT_ONCE = 2**14


class Item(NamedTuple):
    """One question as token ids.

    Attributes:
        prompt: Ids up to where the answer starts.
        options: Ids of each candidate of the question's form that count.
        weights: The factor of each token's log-likelihood; 0 for a user's turn between answers.
        asks: Ids that an answer is decoded after, where that is not `prompt`: a dialogue up to its last turn.
    """

    id: str
    prompt: list[int]
    options: list[list[int]]
    weights: list[tuple[float, ...]]
    asks: list[int] | None = None


class _Prefix(NamedTuple):
    """Processed prompts: left-padded ids and mask [B, P], logits after them [B, V], and the cache."""

    ids: Tensor
    mask: Tensor
    logits: Tensor
    cache: Any


class AnswerScorer:
    """Scores answers with a target in its current state (the caller sets adapter and mode)."""

    def __init__(self, target: Target, tokens: CountedTokens = CountedTokens()) -> None:  # noqa: B008 - frozen
        self.target = target
        self.tokens = tokens
        self.model = target.model
        self.tokenizer = target.tokenizer
        self.device = target.device
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.shares_prefix = not getattr(base, "_is_stateful", False)
        self.stop_ids = frozenset(end_ids(base, self.tokenizer))
        pad_id = self.tokenizer.pad_token_id
        # Padding is masked, so any id works where the tokenizer has none.
        self.pad_id = int(pad_id if pad_id is not None else min(self.stop_ids, default=0))

    def prepare(self, question: Question) -> Item:
        """Encodes a question and its candidates exactly as training does, and keeps the answer tokens that count.

        Raises:
            ModelError: An answer has no tokens; names the question.
        """
        answers = form_of(question).candidates(question)
        samples = [sample_of(question, answer) for answer in answers]
        parts = [self._split(sample) for sample in samples]
        # A long context is cut to make room for the answer: all options get the shortest prompt of them.
        prompt = min((prompt for prompt, _, _ in parts), key=len)
        asks = None
        if samples[0].earlier:
            asks = self.target.encode(samples[0].model_copy(update={"earlier": ()})).prompt_ids
        return Item(question.id, prompt, [option for _, option, _ in parts], [weights for _, _, weights in parts], asks)

    def score(
        self, items: Sequence[Item], *, max_new_tokens: int = 0, lines: bool = False
    ) -> tuple[list[list[float]], list[str]]:
        """Log-likelihood of every option (the mean per token, unless `tokens` overrides it), and greedy answers.

        Args:
            items: From `prepare`.
            max_new_tokens: The most that are decoded; 0 decodes no answers.
            lines: Decode up to the end of the text, not of the first line.

        Returns:
            A list of option scores for each item, in nats, and the decoded answers ("" where none are decoded).
        """
        prefix = self._read([item.prompt for item in items], cached=self.shares_prefix)
        flat = [(row, option) for row, item in enumerate(items) for option in item.options]
        weights = iter([weights for item in items for weights in item.weights])
        scores: list[list[float]] = [[] for _ in items]
        for chunk in _chunks(flat, prefix.ids.shape[1], prefix.logits.shape[-1]):
            rows, options = [row for row, _ in chunk], [option for _, option in chunk]
            own = [next(weights) for _ in chunk]
            for row, score in zip(rows, self._likelihoods(prefix, rows, options, own), strict=True):
                scores[row].append(score)
        for item, option_scores in zip(items, scores, strict=True):
            if not all(math.isfinite(score) for score in option_scores):
                raise ModelError(
                    f"question {item.id!r}: the target gives its answer no finite likelihood ({option_scores})"
                )
        if not max_new_tokens:
            return scores, ["" for _ in items]
        if any(item.asks for item in items):
            prefix = self._read([item.asks or item.prompt for item in items], cached=self.shares_prefix)
        return scores, self._decode(prefix, max_new_tokens, lines)

    def _split(self, sample: Sample) -> tuple[list[int], list[int], tuple[float, ...]]:
        encoded = counted(self.target.encode(sample), self.tokens, "question")
        prompt = encoded.prompt_ids
        weights = iter(encoded.token_weights)
        every = [0.0 if label == IGNORE else next(weights) for label in encoded.labels]
        stop = max(place for place, label in enumerate(encoded.labels) if label != IGNORE) + 1
        return prompt, encoded.input_ids[len(prompt) : stop], tuple(every[len(prompt) : stop])

    def _read(self, prompts: Sequence[list[int]], *, cached: bool) -> _Prefix:
        ids, mask = self._pad(prompts, left=True)
        out = self._forward(ids, mask, _positions(mask), keep=1, cached=cached)
        return _Prefix(ids, mask, out.logits[:, -1].float(), out.past_key_values if cached else None)

    def _likelihoods(
        self, prefix: _Prefix, rows: list[int], options: list[list[int]], weights: list[tuple[float, ...]]
    ) -> list[float]:
        """Log-likelihood of `options[i]` after the prompt `rows[i]`, its tokens weighted."""
        index = torch.tensor(rows, device=self.device)
        tokens, mask = self._pad(options, left=False)
        logits = prefix.logits[index][:, None]
        if tokens.shape[1] > 1:
            inputs, given_mask = tokens[:, :-1], mask[:, :-1]
            whole = torch.cat([prefix.mask[index], given_mask], dim=1)
            keep = inputs.shape[1]
            if prefix.cache is not None:
                cache = _rows_of(prefix.cache, index)
                positions = _positions(whole)[:, -keep:]
                later = self._forward(inputs, whole, positions, keep=keep, cache=cache).logits
            else:
                ids = torch.cat([prefix.ids[index], inputs], dim=1)
                later = self._forward(ids, whole, _positions(whole), keep=keep).logits
            logits = torch.cat([logits, later.float()], dim=1)
        chosen = logits.gather(2, tokens[:, :, None])[:, :, 0] - logits.logsumexp(dim=2)
        share = torch.zeros(mask.shape, dtype=chosen.dtype)
        for row, values in enumerate(weights):
            share[row, : len(values)] = torch.tensor(values)
        # A token without weight may have a logit of -inf, and 0 * inf is NaN.
        likelihoods = (chosen.masked_fill(mask == 0, 0.0) * share.to(chosen.device)).sum(dim=1)
        return [float(value) for value in likelihoods]

    def _decode(self, prefix: _Prefix, max_new_tokens: int, lines: bool) -> list[str]:
        """Greedy answers, each up to its first line break unless it has `lines`; finished rows leave the batch."""
        if prefix.cache is None:
            return self._generate(prefix, max_new_tokens, lines)
        cache, mask, logits = prefix.cache, prefix.mask, prefix.logits
        written: list[list[int]] = [[] for _ in range(len(mask))]
        alive = list(range(len(mask)))
        for step in range(max_new_tokens):
            tokens = logits.argmax(dim=-1)
            keep = []
            for position, (row, token) in enumerate(zip(alive, tokens.tolist(), strict=True)):
                if token in self.stop_ids:
                    continue
                written[row].append(token)
                if lines or "\n" not in self._text(written[row]).lstrip():
                    keep.append(position)
            if not keep or step + 1 == max_new_tokens:
                break
            if len(keep) < len(alive):
                index = torch.tensor(keep, device=self.device)
                cache.batch_select_indices(index)
                mask, tokens, alive = mask[index], tokens[index], [alive[position] for position in keep]
            mask = torch.cat([mask, mask.new_ones((len(mask), 1))], dim=1)
            out = self._forward(tokens[:, None], mask, _positions(mask)[:, -1:], keep=1, cache=cache)
            logits = out.logits[:, -1].float()
        return [self._answer(ids, lines) for ids in written]

    def _generate(self, prefix: _Prefix, max_new_tokens: int, lines: bool) -> list[str]:
        out = self.model.generate(
            input_ids=prefix.ids,
            attention_mask=prefix.mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.pad_id,
            eos_token_id=sorted(self.stop_ids),
        )
        answers = []
        for row in out[:, prefix.ids.shape[1] :].tolist():
            end = next((i for i, token in enumerate(row) if token in self.stop_ids), len(row))
            answers.append(self._answer(row[:end], lines))
        return answers

    def _answer(self, ids: list[int], lines: bool) -> str:
        text = self._text(ids).strip()
        if lines:
            return text
        return text.splitlines()[0].strip() if text else ""

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, *, keep: int, cache: Any = None, cached: bool = False
    ) -> Any:
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cached or cache is not None,
            logits_to_keep=keep,
        )

    def _pad(self, rows: Sequence[list[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, T], padded on one side."""
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for i, row in enumerate(rows):
            where = slice(length - len(row), length) if left else slice(0, len(row))
            ids[i, where] = torch.tensor(row)
            mask[i, where] = 1
        return ids.to(self.device), mask.to(self.device)


def _chunks(flat: list[tuple[int, list[int]]], prefix: int, vocabulary: int) -> list[list[tuple[int, list[int]]]]:
    """Cuts the options, in order, so that the logits and the cache of a chunk stay within bounds."""
    chunks: list[list[tuple[int, list[int]]]] = []
    longest = 0
    for entry in flat:
        longest = max(longest, len(entry[1]))
        rows = len(chunks[-1]) + 1 if chunks else 1
        fits = rows * longest * vocabulary <= LOGITS_AT_ONCE and rows * (prefix + longest) <= TOKENS_AT_ONCE
        if not chunks or not fits:
            chunks.append([])
            longest = len(entry[1])
        chunks[-1].append(entry)
    return chunks


def _rows_of(cache: Any, index: Tensor) -> Any:
    """A cache of the prompts `index`; the given cache is unchanged.

    Selecting rows and appending tokens create new tensors, so the layers are copied but not their tensors.
    """
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(index)
    return chosen


def _positions(mask: Tensor) -> Tensor:
    """Position of each token among the unpadded ones, [B, T]; 0 at left padding."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
