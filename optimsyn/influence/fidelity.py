"""Is the influence true? Every estimator and every baseline against what training really does.

`fidelity` measures one target; `measure` and `FidelityReport` are its two halves, for several targets, seeds or domains
in one table (`benchmarks/fidelity.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from optimsyn.errors import DataError
from optimsyn.influence.baselines import (
    BaseModelEmbedder,
    Embedder,
    Item,
    bm25_scores,
    embedding_scores,
    random_scores,
)
from optimsyn.influence.counterfactual import Counterfactuals
from optimsyn.influence.fidelity_report import FidelityReport
from optimsyn.influence.fidelity_statistics import FidelityCell, Subsets
from optimsyn.influence.gamma import ESTIMATORS, estimator_of, normalised
from optimsyn.influence.moments import Moments
from optimsyn.models.encoding import as_sample
from optimsyn.models.target import Target
from optimsyn.recipe_models import CountedTokens

Truth = Literal["in_batch", "lone", "subsets", "top"]
TRUTHS: tuple[Truth, ...] = ("in_batch", "lone", "subsets", "top")

TOP_SCORES = (
    "adam cosine",
    "adam dot",
    "adam_momentum_free dot",
    "adam_linear dot",
    "sgd cosine",
    "loss",
    "gradient norm",
    "answer length",
    "BM25",
    "embedding similarity",
)
"""Whose best and worst quarter are trained on, unless told otherwise."""

_ROWS = 8


@dataclass(frozen=True)
class Plan:
    """What is measured besides the two truths of single samples.

    Attributes:
        subsets: Random subsets for the LDS.
        subset_share: Their share of the pool.
        subset_batch: Samples a step when training on a subset.
        top_share: Share of the pool that counts as top (and as bottom).
        top_batch: Samples a step when training on them.
        top_scores: Names of the scores whose top and bottom are trained on.
        top_random: Random subsets of the same size beside them.
        epochs: Passes over a subset.
        batch_size: Samples in the fixed batch of the in-batch truth.
        max_grad_norm: Gradient clipping of every step; None: none.
    """

    subsets: int = 20
    subset_share: float = 0.5
    subset_batch: int = 8
    top_share: float = 0.25
    top_batch: int = 8
    top_scores: tuple[str, ...] = TOP_SCORES
    top_random: int = 5
    epochs: int = 1
    batch_size: int = 8
    max_grad_norm: float | None = 1.0


@dataclass(frozen=True)
class Extra:
    """What a user may add.

    Attributes:
        scores: Further scores by name, [n] each: twin adapters, say.
        embedder: Of the similarity baseline; None: the target's own base model.
    """

    scores: Mapping[str, Sequence[float] | torch.Tensor] = field(default_factory=dict)
    embedder: Embedder | None = None


def fidelity(
    target: Target,
    pool: Sequence[Item],
    questions: Sequence[Item],
    *,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    truths: Sequence[Truth] = TRUTHS,
    plan: Plan | None = None,
    companions: Sequence[Item] = (),
    held_out: Sequence[Item] = (),
    tokens: CountedTokens = CountedTokens(),  # noqa: B008 - frozen
    extra: Extra | None = None,
    seed: int = 0,
    batch_tokens: int = 1024,
    folder: Path | None = None,
    resamples: int = 1000,
) -> FidelityReport:
    """How well scores foretell what training on a sample does to the loss on the validation questions.

    Args:
        target: A warmed-up target; its last checkpoint is where everything starts.
        pool: The samples to judge scores by; 64 give a Spearman of .9 an interval of about ±.06.
        questions: The validation questions.
        estimators: Names as in a recipe; each is tried as cosine and as dot.
        truths: in_batch, lone, subsets (LDS), top (train on the best, the worst and random quarters).
        plan: Sizes and settings.
        companions: What the fixed batch of the in-batch truth is drawn from; none: the pool.
        held_out: Further questions: does a score also foretell their loss?
        tokens: Which tokens count, in scores and in the questions' loss; training learns all of them.
        extra: Further scores, another embedder.
        seed: Of every random choice.
        batch_tokens: Tokens that go through the model at once.
        folder: Keep gradients and finished counterfactuals here; a run that was killed continues.
        resamples: Of the bootstrap.

    Raises:
        DataError: A list is empty or too short, a score has another length, or the folder holds something else.
        ModelError: The target has not been warmed up, or a sample cannot be encoded.
        RecipeError: An estimator has no such name.

    Example:
        >>> print(fidelity(target, pairs, questions, folder=Path("fidelity")).markdown())      # doctest: +SKIP
    """
    cell = measure(
        target,
        pool,
        questions,
        estimators=estimators,
        truths=truths,
        plan=plan,
        companions=companions,
        held_out=held_out,
        tokens=tokens,
        extra=extra,
        seed=seed,
        batch_tokens=batch_tokens,
        folder=folder,
    )
    return FidelityReport.of([cell], resamples=resamples, seed=seed)


def measure(
    target: Target,
    pool: Sequence[Item],
    questions: Sequence[Item],
    *,
    name: str = "",
    estimators: Sequence[str] = tuple(ESTIMATORS),
    truths: Sequence[Truth] = TRUTHS,
    plan: Plan | None = None,
    companions: Sequence[Item] = (),
    held_out: Sequence[Item] = (),
    tokens: CountedTokens = CountedTokens(),  # noqa: B008 - frozen
    extra: Extra | None = None,
    seed: int = 0,
    batch_tokens: int = 1024,
    folder: Path | None = None,
    on_result: Callable[[str, float], None] | None = None,
) -> FidelityCell:
    """The scores and truths of one pool, one row of data for a `FidelityReport`.

    Args are those of `fidelity`, and: `name` tells this cell from others, `on_result` is told the key and the seconds
    of every counterfactual that had to be computed.
    """
    plan, extra = plan or Plan(), extra or Extra()
    facts = Counterfactuals(
        target,
        pool,
        questions,
        companions=companions,
        held_out=held_out,
        tokens=tokens,
        batch_size=plan.batch_size,
        max_grad_norm=plan.max_grad_norm,
        seed=seed,
        batch_tokens=batch_tokens,
        folder=folder,
        on_result=on_result,
    )
    scores = influence_scores(facts, [as_sample(q).subtask or "all" for q in questions], estimators)
    gradient_norm = facts.gradients("scored").double().norm(dim=1)
    length = torch.tensor([item.label_tokens for item in facts.pool], dtype=torch.float64)
    scores |= {
        "BM25": bm25_scores(pool, questions),
        "embedding similarity": embedding_scores(pool, questions, extra.embedder or BaseModelEmbedder(target)),
        "gradient norm": gradient_norm,
        "loss": facts.losses("scored"),
        "answer length": length,
        "random": random_scores(len(pool), seed=seed),
    }
    for key, values in extra.scores.items():
        scores[key] = torch.as_tensor(values, dtype=torch.float64)
        if scores[key].shape != (len(pool),):
            raise DataError(f"extra score {key!r} has {len(scores[key])} values for {len(pool)} samples")
    found: dict[str, list[float]] = {}
    if "in_batch" in truths:
        found["in_batch"] = facts.in_batch().tolist()
        if held_out:
            found["in_batch held out"] = facts.in_batch(held_out=True).tolist()
    if "lone" in truths:
        found["lone"] = facts.lone().tolist()
        if held_out:
            found["lone held out"] = facts.lone(held_out=True).tolist()
    return FidelityCell(
        name=name,
        ids=tuple(item.id for item in facts.pool),
        scores={key: tuple(values.tolist()) for key, values in scores.items()},
        truths={key: tuple(values) for key, values in found.items()},
        length=tuple(length.tolist()),
        gradient_norm=tuple(gradient_norm.tolist()),
        subsets=_subsets(facts, plan, seed) if "subsets" in truths else None,
        top=_top(facts, plan, scores, seed) if "top" in truths else {},
        start_loss=facts.start(),
        questions=len(questions),
    )


def influence_scores(
    facts: Counterfactuals, subtasks: Sequence[str], estimators: Sequence[str] = tuple(ESTIMATORS)
) -> dict[str, torch.Tensor]:
    """Every estimator's scores from one set of gradients.

    Directions are those of the scorer (mean over a subtask's questions of their normalised gradients, mean over
    subtasks); `dot, plain mean` takes gradients as long as they are. A dot is not divided by its reference norm, which
    is the same for all samples.

    Args:
        facts: Holds the gradients of pool and questions.
        subtasks: The subtask of each question.
        estimators: Names as in a recipe.

    Returns:
        Name, such as "adam cosine", -> [n] float64.

    Raises:
        RecipeError: An estimator has no such name.
    """
    questions = facts.gradients("questions")
    names = sorted(set(subtasks))
    directions = []
    for unit in (True, False):
        rows = torch.nn.functional.normalize(questions, dim=1, eps=1e-30) if unit else questions
        means = [rows[[i for i, s in enumerate(subtasks) if s == name]].mean(0) for name in names]
        directions.append(torch.stack(means).mean(0))
    vectors = torch.stack(directions, dim=1).double()
    state = facts.state
    moments = Moments(state.first, state.second, state.count, state.betas, state.eps)
    gradients = facts.gradients("scored")
    scores: dict[str, torch.Tensor] = {}
    for name in estimators:
        gamma = estimator_of(name).bind(moments)
        dots, norms = [], []
        # A few samples at a time: Γ in float64 of a whole pool would be several times the pool's gradients.
        for start in range(0, len(gradients), _ROWS):
            part = gamma(gradients[start : start + _ROWS]).double()
            dots.append(part @ vectors)
            norms.append(part.norm(dim=1))
        dot, norm = torch.cat(dots), torch.cat(norms)
        scores[f"{name} cosine"] = normalised(dot[:, 0], norm)
        scores[f"{name} dot"] = dot[:, 0]
        scores[f"{name} dot, plain mean"] = dot[:, 1]
    return scores


def _subsets(facts: Counterfactuals, plan: Plan, seed: int) -> Subsets:
    count = len(facts.pool)
    size = max(1, round(count * plan.subset_share))
    generator = random.Random(f"subsets {seed}")
    members, decreases = [], []
    for _ in range(plan.subsets):
        chosen = sorted(generator.sample(range(count), size))
        members.append(tuple(chosen))
        decreases.append(facts.subset(chosen, batch_size=plan.subset_batch, epochs=plan.epochs, seed=seed))
    return Subsets(tuple(members), tuple(decreases))


def _top(facts: Counterfactuals, plan: Plan, scores: Mapping[str, torch.Tensor], seed: int) -> dict[str, list[float]]:
    """Decrease of the validation loss by name: [top, bottom] of each score, and random repeats under "random"."""
    count = len(facts.pool)
    size = max(1, round(count * plan.top_share))

    def train(members: Sequence[int]) -> float:
        return facts.subset(members, batch_size=plan.top_batch, epochs=plan.epochs, seed=seed)

    generator = random.Random(f"top {seed}")
    found = {"random": [train(generator.sample(range(count), size)) for _ in range(plan.top_random)]}
    for name in plan.top_scores:
        if name not in scores:
            continue
        order = sorted(range(count), key=lambda i, name=name: (-float(scores[name][i]), i))  # type: ignore[misc]
        found[name] = [train(order[:size]), train(order[-size:])]
    return found
