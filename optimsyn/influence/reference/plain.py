"""Scores by plain automatic differentiation, as in a textbook: a sample, a backward pass, a flat vector.

Slow, and independent of everything that makes the scorers fast (taps on layers, cached directions, twins), so they are
compared with it. It also separates what the scorers sum: the two halves of the questions, and an answer and the token
that ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.estimators import AdamLinear, Direction, estimator_of, normalised
from optimsyn.influence.moments import flat_moments
from optimsyn.recipe.sections.influence import Influence
from optimsyn.target.encoding import Encoded, as_sample, counted
from optimsyn.target.target import Target

Item = Pair | Question | Sample


@dataclass(frozen=True)
class PlainScores:
    """Scores of n pairs, each tensor [n] float64.

    Attributes:
        total: By all questions, as from a scorer with the same options.
        apart: By the questions that are not held back.
        content: What the answer's own tokens bring to the linear score, as the recipe counts them.
        end: What the tokens that end it bring, as the recipe counts them.
        content_if: `content` if the end counted like every other token.
        end_if: `end` in that case.
    """

    total: torch.Tensor
    apart: torch.Tensor
    content: torch.Tensor
    end: torch.Tensor
    content_if: torch.Tensor
    end_if: torch.Tensor


def plain_scores(
    target: Target,
    pairs: Sequence[Item],
    questions: Sequence[Question | Sample],
    config: Influence,
    *,
    held_back: Sequence[int] = (),
    report: Callable[[int], None] | None = None,
) -> PlainScores:
    """Scores pairs with one backward pass per question and two per pair at each warm-up checkpoint.

    The adapter is left at the last checkpoint.

    Args:
        target: A warmed-up target.
        pairs: What to score.
        questions: The validation questions.
        config: The recipe's `influence`.
        held_back: Indices of the questions that `PlainScores.apart` omits; the others must cover every subtask.
        report: Called with 1 after each backward pass.

    Raises:
        ModelError: The target has not been warmed up with this adapter, or a sample cannot be encoded.
    """
    estimator = estimator_of(config.estimator)
    on_progress = report or (lambda count: None)
    total_lr = sum(checkpoint.lr for checkpoint in target.checkpoints)
    # By subtask until all checkpoints are summed, as the scorers do.
    sums = [torch.zeros(1, dtype=torch.float64)] * len(pairs)
    for checkpoint in target.checkpoints:
        target.load_checkpoint(checkpoint)
        moments = flat_moments(target, checkpoint)
        bound = _Bound(estimator.bind(moments), (estimator if estimator.linear else AdamLinear()).bind(moments))
        vectors = _vectors(target, questions, set(held_back), config, bound, on_progress)
        for i, pair in enumerate(pairs):
            sums[i] = sums[i] + checkpoint.lr / total_lr * _score(target, pair, config, bound, vectors)
            on_progress(1)
    target.load_checkpoint(target.checkpoints[-1])
    # [6, n, K]
    scores = torch.stack(sums, dim=1)
    if config.across_subtasks == "mean":
        return PlainScores(*scores.mean(-1))
    # The parts belong to the subtask of the total.
    whole, apart, *parts = scores
    winner = whole.argmax(-1, keepdim=True)
    chosen = [part.gather(-1, winner).squeeze(-1) for part in parts]
    return PlainScores(whole.max(-1).values, apart.max(-1).values, *chosen)


class _Bound(NamedTuple):
    """Γ of the recipe's estimator and of its linear sibling at one checkpoint, for flat gradients [P]."""

    gamma: Direction
    linear: Direction


@dataclass(frozen=True)
class _Vectors:
    """Directions [K, P] of all questions and of those not held back, and the norm that dot products are divided by."""

    whole: torch.Tensor
    apart: torch.Tensor
    reference_norm: float


def _vectors(
    target: Target,
    questions: Sequence[Question | Sample],
    held_back: set[int],
    config: Influence,
    bound: _Bound,
    on_progress: Callable[[int], None],
) -> _Vectors:
    samples = [as_sample(question) for question in questions]
    names = sorted({sample.subtask or "all" for sample in samples})
    sums: list[list[torch.Tensor | None]] = [[None, None] for _ in names]
    counts = [[0, 0] for _ in names]
    squares = lengths = 0.0
    for place, sample in enumerate(samples):
        encoded = counted(target.encode(sample), config.tokens, "question")
        (gradient,) = _gradients(target, encoded.input_ids, encoded.labels, [encoded.token_weights])
        on_progress(1)
        squares += float(bound.gamma(gradient).double().square().sum())
        asked = _asked(target, encoded, gradient, config)
        lengths += float(asked.double().norm()) ** 2
        k, part = names.index(sample.subtask or "all"), int(place in held_back)
        before = sums[k][part]
        sums[k][part] = asked if before is None else before + asked
        counts[k][part] += 1
    scale = (lengths / len(samples)) ** 0.5
    apart, whole = [], []
    for (kept, held), (n_kept, n_held) in zip(sums, counts, strict=True):
        if kept is None:
            raise ValueError("a subtask has no question that is not held back")
        apart.append(kept / (n_kept * scale))
        whole.append((kept if held is None else kept + held) / ((n_kept + n_held) * scale))
    return _Vectors(torch.stack(whole), torch.stack(apart), (squares / len(samples)) ** 0.5)


def _asked(target: Target, encoded: Encoded, gradient: torch.Tensor, config: Influence) -> torch.Tensor:
    """What a question adds to the direction, up to a scale that is the same for all, [P]; `gradient` is its loss's."""
    if config.question_gradients == "unit":
        return gradient / float(gradient.double().norm())
    if config.question_gradients == "plain":
        return gradient
    # Each token of the answer once, and its end as often as the recipe says.
    times = [weight / max(encoded.token_weights) for weight in encoded.token_weights]
    (of_probability,) = _gradients(target, encoded.input_ids, encoded.labels, [times], of=lambda loss: -(-loss).exp())
    return of_probability


def _score(target: Target, pair: Item, config: Influence, bound: _Bound, vectors: _Vectors) -> torch.Tensor:
    """The six numbers of `PlainScores` of one pair by subtask, at one checkpoint: [6, K] float64."""
    every = counted(target.encode(pair), config.tokens.model_copy(update={"end_of_pairs": 1.0}), "pair")
    as_told = counted(target.encode(pair), config.tokens, "pair").token_weights
    if_counted = every.token_weights
    as_told = as_told + (0.0,) * (len(if_counted) - len(as_told))
    ends = min(every.end_tokens, every.label_tokens - 1)
    first_end = every.label_tokens - ends
    ending = tuple(weight if i >= first_end else 0.0 for i, weight in enumerate(if_counted))
    content = tuple(0.0 if i >= first_end else weight for i, weight in enumerate(as_told))
    parts = _gradients(target, every.input_ids, every.labels, [content, ending] if ends else [content])
    of_content = parts[0]
    of_end = parts[1] if ends else torch.zeros_like(of_content)
    # All tokens of the content share one weight, and so do those of the end.
    end_share = as_told[-1] / if_counted[-1] if ends else 0.0
    more = if_counted[0] / as_told[0]

    gamma = bound.gamma(of_content + end_share * of_end).double()
    norm = gamma.norm() if config.normalization == "cosine" else torch.tensor(vectors.reference_norm).double()
    whole, apart = (normalised(_dots(directions, gamma), norm) for directions in (vectors.whole, vectors.apart))
    from_content, from_end = (_dots(vectors.whole, bound.linear(part).double()) for part in (of_content, of_end))
    return torch.stack([whole, apart, from_content, end_share * from_end, more * from_content, from_end])


def _dots(directions: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """[K], one by one, since all directions in float64 may be too large."""
    return torch.stack([torch.dot(direction.double(), gradient) for direction in directions])


def _gradients(
    target: Target,
    input_ids: list[int],
    labels: list[int],
    weightings: Sequence[Sequence[float]],
    of: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
) -> list[torch.Tensor]:
    """The gradient [P], on the CPU, of a function of each weighted sum of one sample's label losses."""
    parameters = list(target.parameters.values())
    (batch,) = target.batches([Encoded("", input_ids, labels, truncated=False)], 2**62)
    gradients = []
    with target.scoring():
        losses, _, _ = target.token_losses(batch)
        for place, weights in enumerate(weightings):
            loss = (losses * torch.tensor(weights, dtype=torch.float64).to(losses)).sum()
            again = place < len(weightings) - 1
            parts = torch.autograd.grad(of(loss), parameters, allow_unused=True, retain_graph=again)
            dense = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, parts, strict=True)]
            gradients.append(torch.cat([part.detach().flatten().to("cpu", target.dtype) for part in dense]))
    return gradients
