"""Baseline scores that do not model the training step.

Loss, gradient norm and answer length ignore relevance; BM25 and embedding similarity measure how similar a
sample is to the validation questions, as retrieval does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from optimsyn.base.errors import ModelError
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.llm.control_tokens import controls_of, data_ids
from optimsyn.target.encoding import as_sample
from optimsyn.target.target import Target

Item = Pair | Question | Sample

Embedder = Callable[[Sequence[str]], torch.Tensor]
"""From n texts to [n, d] vectors of any length."""

WORD = re.compile(r"\w+")


def text_of(item: Item) -> str:
    """Question and answer as one text, in the target's format."""
    sample = as_sample(item)
    return sample.prompt + sample.completion


def bm25_scores(pool: Sequence[Item], questions: Sequence[Item]) -> torch.Tensor:
    """Mean BM25 of each pool sample, as a document, over the questions with their answers, as queries.

    Lucene's variant with k1 = 1.5, b = 0.75, of the library bm25s; words are lower-cased runs of letters and digits,
    without stemming or a list of stop words, so that any language is treated alike.

    Returns:
        [n] float64.

    Raises:
        ModelError: bm25s is not installed.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ModelError("the BM25 baseline needs bm25s: pip install 'optimsyn[fidelity]'") from error
    documents = [WORD.findall(text_of(item).lower()) for item in pool]
    queries = [WORD.findall(text_of(item).lower()) for item in questions]
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(documents, show_progress=False)
    vocabulary = index.vocab_dict
    total = torch.zeros(len(pool), dtype=torch.float64)
    for query in queries:
        words = [word for word in query if word in vocabulary]
        if words:
            total += torch.as_tensor(index.get_scores(words)).double()
    return total / len(questions)


def embedding_scores(pool: Sequence[Item], questions: Sequence[Item], embedder: Embedder) -> torch.Tensor:
    """Cosine of each pool sample's embedding with the mean of the questions' normalised embeddings.

    Returns:
        [n] float64.
    """
    unit = torch.nn.functional.normalize
    samples = unit(embedder([text_of(item) for item in pool]).double(), dim=1)
    mean = unit(embedder([text_of(item) for item in questions]).double(), dim=1).mean(0)
    return samples @ unit(mean, dim=0)


class BaseModelEmbedder:
    """Mean of the last hidden states of the target's own base model, with its adapter switched off.

    Not an embedding model: it replaces one where none can be downloaded. Pass `fidelity` a custom `Embedder` for a
    stronger baseline.

    Args:
        target: Its model is used; an adapter that is not peft's stays on.
        max_length: Texts are cut to this many tokens.
    """

    def __init__(self, target: Target, max_length: int = 512) -> None:
        self._target = target
        self._max_length = max_length

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """[n, hidden size], float32 (float64 of a float64 model)."""
        target, tokenizer = self._target, self._target.tokenizer
        rows: list[torch.Tensor] = []
        with target.scoring(), getattr(target.model, "disable_adapter", nullcontext)():
            for text in texts:
                ids = tokenizer(text, truncation=True, max_length=self._max_length, return_tensors="pt")["input_ids"]
                if controls_of(tokenizer).within(text):
                    ids = torch.tensor([data_ids(tokenizer, text)[: self._max_length]])
                output = target.causal.base_model(input_ids=ids.to(target.device), use_cache=False)
                rows.append(output.last_hidden_state[0].to(target.dtype).mean(0).cpu())
        return torch.stack(rows)
