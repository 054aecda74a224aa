"""Compares every estimator, every definition of what counts and every baseline with real training.

The truth comes from real trainings that continue from the warm checkpoint on every token, as fine-tuning does: the
change in the loss of questions outside the scores' directions, over the tokens that the evaluation counts. `fidelity`
measures one target; `measure` and `FidelityReport` are its two halves, for several targets, seeds or domains in one
table (`benchmarks/fidelity.py`).

| truth             | definition                                                                               |
|-------------------|------------------------------------------------------------------------------------------|
| in batch, k steps | L(k steps on batches of companions) - L(k steps on them with z replacing one)            |
| alone, k steps    | L(θ) - L(k steps on z alone)                                                             |
| LDS, k steps      | L(θ) - L(k steps on a random part of the pool), correlated with the part's mean score    |
|                   | (Ilyas et al. 2022, "Datamodels"; Park et al. 2023, "TRAK")                              |

L is the mean loss of the truth questions. A positive truth means that the sample helped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from optimsyn.base.errors import DataError, ModelError
from optimsyn.influence.gradients.parts import GradientParts
from optimsyn.influence.selection import balanced, top
from optimsyn.influence.simulated.scorer import BatchTraining, SimulatedScorer
from optimsyn.influence.simulated.training import SimulatedTraining, WarmGradients
from optimsyn.influence.trainings import Trainings, TrainingSettings, schedule
from optimsyn.recipe.sections.evaluation import FineTune
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.study.baselines import (
    BaseModelEmbedder,
    Embedder,
    Item,
    bm25_scores,
    embedding_scores,
)
from optimsyn.study.fidelity.calibration import calibrated_scores
from optimsyn.study.fidelity.report import FidelityReport
from optimsyn.study.fidelity.scores import influence_scores
from optimsyn.study.fidelity.statistics import FidelityCell, Subsets
from optimsyn.study.fidelity.training_ledger import TrainingLedger
from optimsyn.target.encoding import as_sample, counted
from optimsyn.target.target import Target


@dataclass(frozen=True)
class FidelityData:
    """Samples and questions of one domain.

    Attributes:
        pool: The samples to judge scores by.
        questions: They define the scores' directions.
        truth: Other questions, whose loss is the truth.
        companions: The other samples in batches of the in-batch truth; at least one batch.
        groups: The passage of each sample of the pool, for the ranking within a passage, which is all that GRPO sees.
        drafts: Companions that a run has itself (the warm-up's pairs); they add one score.
        name: A unique name of the figures.
        domain: Their domain.
    """

    pool: Sequence[Item]
    questions: Sequence[Item]
    truth: Sequence[Item]
    companions: Sequence[Item] = ()
    groups: Sequence[str] = ()
    drafts: Sequence[Item] = ()
    name: str = ""
    domain: str = ""


@dataclass(frozen=True)
class Work:
    """Settings of the computation that do not change results.

    Attributes:
        batch_tokens: Tokens per forward pass for gradients.
        rows: Samples of trainings per forward pass.
        folder: Cache finished trainings here, so that a killed study can resume; None does not cache.
        report: Called with the number and the seconds of every newly computed group of trainings.
    """

    batch_tokens: int = 1024
    rows: int = 32
    folder: Path | None = None
    report: Callable[[int, float], None] | None = None


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        horizons: Steps after which truths are measured.
        in_batch: Train on single samples, each in a batch of companions.
        alone: Train on single samples alone.
        batch_size: Samples per step.
        subsets: Number of random parts of the pool for the LDS.
        subset_share: Their share of the pool.
        ends: Train on the best and the worst part of the pool by some scores.
        end_share: That part's share.
        random: Number of random parts of that size to compare with.
        sets: Also train on a part of that size chosen as a set, and on one balanced by answer.
        lr: Learning rate of every training: that of the fine-tuning to predict.
        max_grad_norm: Gradient clipping of every step; None does not clip.
        measured: Which tokens count for the truth and the cheap scores (loss, gradient norm).
        seed: Of every random choice.
    """

    horizons: tuple[int, ...] = (1, 12)
    in_batch: bool = True
    alone: bool = True
    batch_size: int = 4
    subsets: int = 16
    subset_share: float = 0.5
    ends: tuple[str, ...] = ("adam_linear dot", "adam cosine", "loss", "answer length", "BM25")
    end_share: float = 0.25
    random: int = 5
    sets: bool = True
    lr: float = 2e-4
    max_grad_norm: float | None = 1.0
    measured: CountedTokens = field(default_factory=lambda: CountedTokens(end_of_pairs=0))
    seed: int = 0


@dataclass(frozen=True)
class Extra:
    """Optional additions.

    Attributes:
        scores: Further scores by name, [n] each, such as twin adapters.
        embedder: Of the similarity baseline; None uses the target's own base model.
    """

    scores: Mapping[str, Sequence[float] | torch.Tensor] = field(default_factory=dict)
    embedder: Embedder | None = None


def fidelity(
    target: Target,
    data: FidelityData,
    plan: Plan | None = None,
    *,
    extra: Extra | None = None,
    work: Work | None = None,
    resamples: int = 1000,
) -> FidelityReport:
    """Measures how well scores predict the effect of training on a sample on questions that the scores have not seen.

    Args:
        target: A warmed-up target; all trainings start at its last checkpoint.
        data: Samples and questions.
        plan: Sizes, settings and seed.
        extra: Further scores, another embedder.
        work: Cache folder and batch sizes.
        resamples: Of the bootstrap.

    Raises:
        DataError: A list is empty or too short, a score has another length, a question is on both sides, or the folder
            belongs to another study.
        ModelError: The target has not been warmed up, or a sample cannot be encoded.

    Example:
        >>> report = fidelity(target, FidelityData(pairs, questions, held_out, others))   # doctest: +SKIP
        >>> print(report.markdown())                                                      # doctest: +SKIP
    """
    plan = plan or Plan()
    cell = measure(target, data, plan, extra=extra, work=work)
    return FidelityReport.of([cell], resamples=resamples, seed=plan.seed)


def measure(
    target: Target,
    data: FidelityData,
    plan: Plan | None = None,
    *,
    extra: Extra | None = None,
    work: Work | None = None,
) -> FidelityCell:
    """The scores and truths of one pool, one row of data for a `FidelityReport`; the arguments are those of `fidelity`.

    Raises:
        DataError: As `fidelity`.
        ModelError: As `fidelity`.
    """
    plan, extra, work = plan or Plan(), extra or Extra(), work or Work()
    pool, questions = data.pool, data.questions
    if not target.checkpoints:
        raise ModelError("the target has no warm-up checkpoint; call target.warm_up(pairs) first")
    _refuse(data, plan)
    checkpoint = target.checkpoints[-1]
    encoded = [target.encode(item) for item in pool]
    fill = [target.encode(item) for item in data.companions]
    asked = [target.encode(item) for item in questions]
    parts = GradientParts.of(target, checkpoint, encoded, work.batch_tokens)
    directions = GradientParts.of(target, checkpoint, asked, work.batch_tokens)
    length = parts.answer_tokens
    gradient_norm = parts.under(plan.measured, "pair").double().norm(dim=1)
    scores = influence_scores(target, checkpoint, parts, directions)
    scores |= {
        "BM25": bm25_scores(pool, questions),
        "embedding similarity": embedding_scores(pool, questions, extra.embedder or BaseModelEmbedder(target)),
        "gradient norm": gradient_norm,
        "loss": parts.losses(plan.measured, "pair"),
        "answer length": length,
        "1 / answer length": 1 / length,
        "random": torch.rand(len(pool), generator=torch.Generator().manual_seed(plan.seed), dtype=torch.float64),
    }
    for key, values in extra.scores.items():
        scores[key] = torch.as_tensor(values, dtype=torch.float64)
        if scores[key].shape != (len(pool),):
            raise DataError(f"extra score {key!r} has {len(scores[key])} values for {len(pool)} samples")
    ledger = TrainingLedger(
        Trainings(
            target,
            checkpoint,
            [*encoded, *fill],
            [counted(target.encode(item), plan.measured, "question") for item in data.truth],
            TrainingSettings(plan.lr, max_grad_norm=plan.max_grad_norm),
            rows=work.rows,
        ),
        work.folder,
        work.report,
    )
    truths = _truths(ledger, plan, len(pool), len(fill))
    subsets = _subsets(ledger, plan, len(pool))
    simulated = SimulatedTraining.of(
        WarmGradients.of(
            target,
            checkpoint,
            [*encoded, *fill],
            [counted(item, plan.measured, "question") for item in asked],
            batch_tokens=work.batch_tokens,
        ),
        lr=plan.lr,
        steps=plan.horizons[-1],
        max_grad_norm=plan.max_grad_norm,
    )
    scores |= _simulated_scores(simulated, len(pool), plan.batch_size)
    if data.drafts:
        tuning = FineTune(steps=plan.horizons[-1], batch_size=plan.batch_size, lr=plan.lr)
        training = BatchTraining(data.drafts, tuning, plan.max_grad_norm)
        # As above, all questions count equally across subtasks.
        alike = [as_sample(item).model_copy(update={"subtask": ""}) for item in questions]
        scorer = SimulatedScorer(target, alike, training, tokens=plan.measured, batch_tokens=work.batch_tokens)
        scores["simulated, in batch (drafts)"] = scorer.score(pool).total
    scores |= calibrated_scores(scores, truths, data.groups or [item.id for item in encoded])
    answers = [as_sample(item).completion for item in pool]
    return FidelityCell(
        name=data.name,
        domain=data.domain,
        ids=tuple(item.id for item in encoded),
        groups=tuple(data.groups),
        scores={key: tuple(values.tolist()) for key, values in scores.items()},
        truths={key: tuple(values.tolist()) for key, values in truths.items()},
        length=tuple(length.tolist()),
        gradient_norm=tuple(gradient_norm.tolist()),
        subsets=subsets,
        chosen=_chosen(ledger, plan, scores, simulated, answers),
        start_loss=float(ledger.start().mean()),
        questions=len(questions),
        truth_questions=len(data.truth),
        steps=checkpoint.step,
    )


def _refuse(data: FidelityData, plan: Plan) -> None:
    if not data.pool or not data.questions or not data.truth:
        raise DataError("fidelity needs samples, questions for the directions and other questions for the truth")
    both = {item.id for item in data.questions} & {item.id for item in data.truth}
    if both:
        raise DataError(f"question {min(both)!r} gives directions and truth; no question may stand on both sides")
    count = len(data.companions)
    if plan.in_batch and count < plan.batch_size:
        raise DataError(f"batches of {plan.batch_size} need as many companions, there are {count}; give more")
    if data.groups and len(data.groups) != len(data.pool):
        raise DataError(f"{len(data.groups)} groups for {len(data.pool)} samples")


def _truths(ledger: TrainingLedger, plan: Plan, count: int, companions: int) -> dict[str, torch.Tensor]:
    """Truth name -> [n]; the decreases are [n, looks]."""
    steps, looks = plan.horizons[-1], plan.horizons
    decreases: dict[str, torch.Tensor] = {}
    if plan.alone:
        after = ledger.run([[[i]] * steps for i in range(count)], looks).mean(2)
        decreases["alone"] = ledger.start().mean() - after
    if plan.in_batch:
        fixed = schedule(range(count, count + companions), steps, plan.batch_size, plan.seed)
        without = ledger.run([fixed], looks).mean(2)
        after = ledger.run([[[i, *step[1:]] for step in fixed] for i in range(count)], looks).mean(2)
        decreases["in batch"] = without - after
    return {
        f"{name}, {look} step{'' if look == 1 else 's'}": values[:, place]
        for name, values in decreases.items()
        for place, look in enumerate(looks)
    }


def _subsets(ledger: TrainingLedger, plan: Plan, count: int) -> Subsets | None:
    if not plan.subsets:
        return None
    size = max(1, round(count * plan.subset_share))
    generator = random.Random(f"subsets {plan.seed}")
    members = [sorted(generator.sample(range(count), size)) for _ in range(plan.subsets)]
    return Subsets(tuple(map(tuple, members)), tuple(_decreases(ledger, plan, members)))


def _decreases(ledger: TrainingLedger, plan: Plan, parts: Sequence[Sequence[int]]) -> list[float]:
    """Decrease of the truth questions' loss after training on each of these parts of the pool."""
    steps = plan.horizons[-1]
    after = ledger.run([schedule(part, steps, plan.batch_size, plan.seed) for part in parts], [steps]).mean(2)[:, 0]
    decreases: list[float] = (ledger.start().mean() - after).tolist()
    return decreases


def _simulated_scores(simulated: SimulatedTraining, count: int, batch_size: int) -> dict[str, torch.Tensor]:
    """The predicted effect of each sample, alone and in a batch of companions (which follow the pool)."""
    companions = list(range(count, len(simulated)))
    scores = {"simulated, alone": simulated.decrease([[i] for i in range(count)])}
    if companions:
        # z has one place in each batch, the companions share the others.
        weights = torch.zeros(count, len(simulated), dtype=torch.float64)
        weights[:, companions] = (batch_size - 1) / batch_size / len(companions)
        weights[:, :count] += torch.eye(count, dtype=torch.float64) / batch_size
        scores["simulated, in batch"] = -simulated.losses(weights).mean(1)
    return scores


def _chosen(
    ledger: TrainingLedger,
    plan: Plan,
    scores: Mapping[str, torch.Tensor],
    simulated: SimulatedTraining,
    answers: Sequence[str],
) -> dict[str, list[float]]:
    """Decrease of the truth questions' loss after training on a part of the pool, by way of choice."""
    count = len(answers)
    size = max(1, round(count * plan.end_share))
    generator = random.Random(f"parts {plan.seed}")
    parts: dict[str, list[list[int]]] = {
        "random": [sorted(generator.sample(range(count), size)) for _ in range(plan.random)]
    }
    for name in plan.ends:
        values = scores[name].tolist()
        parts[f"top by {name}"] = [top(values, size)]
        parts[f"bottom by {name}"] = [top([-value for value in values], size)]
    if plan.sets:
        parts["balanced by answer"] = [balanced(scores[plan.ends[0]].tolist(), answers, size)]
        parts["set"] = [simulated.select(size, range(count))]
    flat = [part for several in parts.values() for part in several]
    decreases = iter(_decreases(ledger, plan, flat) if flat else ())
    return {name: [next(decreases) for _ in several] for name, several in parts.items() if flat}
