"""A look at the reward: measured on a few pairs of the run before anything is spent on it.

Five questions, each with a number:

| measure                     | how                                                                                  |
|-----------------------------|--------------------------------------------------------------------------------------|
| numerical error             | the scorer's scores against plain automatic differentiation in the same precision    |
| share of the end token      | ⟨V, Γ⟩ of the token that ends the text, as counted, and if it counted like others     |
| correlation with length     | with 1/answer tokens, within passages where there are enough pairs of one passage    |
| score of an empty gradient  | what momentum alone earns, beside the standard deviation of the scores               |
| a small real counterfactual | training on the best, the worst and random thirds of the pairs; loss on questions    |
|                             | that had no part in the ranking                                                      |

For the last one the validation questions are split: two thirds give the direction that ranks the pairs, the loss is
measured on the rest (at most twelve). Fewer than twelve questions are used for both, and the table says so. Where
directions are gradients of a probability, 1 - P is measured in place of the loss. Test questions are never used.
`optimsyn.reward.look.verdict` turns the numbers into a verdict.

With `influence.estimator: simulated` the share of the end token is that of `adam_linear` with `dot`, since a simulated
training is not a sum over tokens; the table says so.

With a custom scorer (`influence.scorer`) there is no numerical error and no share of the end token; the training is
the same.

It costs one backward pass a question, two a pair, and steps × batch_size passes a subset.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from optimsyn.base.errors import DataError, RecipeError
from optimsyn.base.statistics import spearman
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.directions import counted_length
from optimsyn.influence.factory import Scorer
from optimsyn.influence.reference.plain import PlainScores, plain_scores
from optimsyn.influence.reference.simulated import plain_gains, plain_total
from optimsyn.influence.scores import Scores
from optimsyn.influence.simulated.scorer import BatchTraining, SimulatedScorer
from optimsyn.recipe.sections.influence import Influence
from optimsyn.recipe.sections.reward import WITHOUT_DIRECTION
from optimsyn.reward.look.options import LookOptions
from optimsyn.reward.look.record import Interval, RewardLook, TrainedOn
from optimsyn.reward.look.trainings import train_on_subsets, trainings_of
from optimsyn.reward.look.verdict import FEWEST_PAIRS, judged
from optimsyn.target.encoding import as_sample, counted
from optimsyn.target.target import Target

__all__ = ["MeasuresItself", "RewardLook", "SaysHow", "ScorerSetup", "look_at_reward"]

# Fewer questions than this are not split.
_FEWEST_TO_PART = 12
_MOST_HELD_OUT = 12
# With fewer pairs within passages, the correlation's interval says nothing.
_FEWEST_WITHIN = 8


@runtime_checkable
class MeasuresItself(Protocol):
    """A scorer that measures its own error, as a share of its scores' size."""

    numerical_error: float


@runtime_checkable
class SaysHow(Protocol):
    """A scorer that names its method."""

    method: str


@dataclass(frozen=True)
class ScorerSetup:
    """A scorer, and what it was built from.

    Attributes:
        scorer: Gives the reward.
        target: Its target, warmed up.
        questions: Its validation questions.
        config: Its options.
        training: The training that the estimator `simulated` simulates; others ignore it.
    """

    scorer: Scorer
    target: Target
    questions: Sequence[Question | Sample]
    config: Influence = Influence()  # noqa: RUF009 - frozen
    training: BatchTraining | None = None

    @property
    def batch_training(self) -> BatchTraining:
        """The training that the estimator `simulated` simulates.

        Raises:
            RecipeError: It is missing.
        """
        if self.training is None:
            raise RecipeError(
                "influence.estimator: simulated needs the training that it simulates; pass the scorer's `training` to "
                "ScorerSetup"
            )
        return self.training


def look_at_reward(
    setup: ScorerSetup,
    pairs: Sequence[Pair],
    options: LookOptions = LookOptions(),  # noqa: B008 - frozen
    *,
    scores: Scores | None = None,
    trained_on: Collection[str] = (),
    report: Callable[[int, int], None] | None = None,
) -> RewardLook:
    """Measures a reward on some pairs, and judges it sound, doubtful or noise.

    The adapter ends at the last checkpoint.

    Args:
        setup: The scorer that gives the reward.
        pairs: Valid pairs to choose from.
        options: How many pairs, and the training on subsets of them.
        scores: Of all `pairs`, if already computed.
        trained_on: Ids of pairs that the warm-up has trained on; others are preferred.
        report: Callback with the passes done and their total.

    Raises:
        DataError: There are no pairs or questions.
        ModelError: A pair or question cannot be encoded, or a loss is not finite.
        RecipeError: The setup lacks its `training`.

    Example:
        >>> look_at_reward(ScorerSetup(scorer, target, questions), pairs)            # doctest: +SKIP
    """
    scorer, target, questions, config = setup.scorer, setup.target, setup.questions, setup.config
    if not pairs or not questions:
        raise DataError("a look at the reward needs at least one pair and one validation question")
    scores = scorer.score(pairs) if scores is None else scores
    chosen = pairs_to_train_on(pairs, set(trained_on), options.pairs, options.seed)
    looked = [pairs[i] for i in chosen]
    reward_scores = scores.total[chosen]
    train = options.random_subsets > 0 and len(chosen) >= FEWEST_PAIRS
    # A custom scorer, or a control without a direction, uses all questions, and there is no reference for its scores.
    own = not config.is_influence or options.source in WITHOUT_DIRECTION
    held_back = questions_held_back(questions, options.seed) if train and not own else []
    simulated = config.estimator == "simulated" and not own
    passes = 0 if own else (len(questions) + len(chosen)) * len(target.checkpoints)
    if simulated:
        passes += len(questions) + len(chosen) + len(setup.batch_training.used)
    progress = _Progress(report, passes, options.random_subsets + 2 if train else 0)
    # A simulated training cannot be split into parts; the parts are those of the linear score.
    linear = config.linear if simulated else config
    if own:
        nothing = torch.zeros_like(reward_scores)
        plain = PlainScores(reward_scores, reward_scores, nothing, nothing, nothing, nothing)
    else:
        plain = plain_scores(target, looked, questions, linear, held_back=held_back, report=progress.add)
    if simulated:
        gains = plain_gains(
            target,
            looked,
            [counted(target.encode(as_sample(question)), config.tokens, "question") for question in questions],
            setup.batch_training,
            layout=scorer.layout if isinstance(scorer, SimulatedScorer) else None,
            report=progress.add,
        )
        total = plain_total(gains, questions, config.across_subtasks)
        apart = plain_total(gains, questions, config.across_subtasks, held_back=held_back)
        plain = replace(plain, total=total, apart=apart)
    trained: TrainedOn | None = None
    if train:
        measured = [questions[i] for i in held_back] or questions
        trainings = trainings_of(target, looked, measured, config, options.lr)
        lengths = None
        if config.is_influence and config.question_gradients == "probability":
            samples = [counted(target.encode(as_sample(each)), config.tokens, "question") for each in measured]
            lengths = [counted_length(sample) for sample in samples]
        trained = train_on_subsets(
            trainings,
            plain.apart.tolist(),
            options,
            held_out=bool(held_back),
            lengths=lengths,
            report=progress.add,
        )
    absolute = float((reward_scores - plain.total).square().mean().sqrt())
    size = float(plain.total.square().mean().sqrt())
    error = absolute / size if size > 0 else (0.0 if absolute == 0 else math.inf)
    stated = scorer.numerical_error if isinstance(scorer, MeasuresItself) and not own else None
    if stated is not None and not math.isfinite(stated):
        error, stated = math.inf, None
    length, within = length_agreement(pairs, scores)
    empty = scorer.zero_gradient_baseline()["total"]
    return judged(
        RewardLook(
            verdict="too few to tell",
            reasons=(),
            pairs=len(chosen),
            trained_on=sum(pair.id in trained_on for pair in looked),
            method=scorer.method if isinstance(scorer, SaysHow) else "",
            numerical_error=_finite(error),
            stated_error=stated,
            absolute_error=_finite(absolute),
            agreement=None
            if len(chosen) < 3 or own
            else _finite(float(spearman(reward_scores.numpy(), plain.total.numpy()))),
            spread=float(reward_scores.std(correction=1)) if len(chosen) > 1 else 0.0,
            end_share=_share(plain.end, plain.content),
            end_share_if_counted=_share(plain.end_if, plain.content_if),
            length=length,
            length_within=within,
            length_pairs=len(pairs),
            empty=float(empty) if isinstance(empty, float) else 0.0,
            training=trained,
            end_of=f"{linear.estimator}, {linear.normalization}" if simulated else "",
            own_scorer=own,
            source=options.source,
        )
    )


def pairs_to_train_on(pairs: Sequence[Pair], trained_on: set[str], most: int, seed: int) -> list[int]:
    """Indices of up to `most` different pairs, first those that the warm-up has not seen."""
    order = list(range(len(pairs)))
    random.Random(f"look {seed}").shuffle(order)
    order.sort(key=lambda i: pairs[i].id in trained_on)
    different = {(pairs[i].question, pairs[i].answer): i for i in reversed(order)}
    unique = set(different.values())
    return [i for i in order if i in unique][:most]


def questions_held_back(questions: Sequence[Question | Sample], seed: int) -> list[int]:
    """Indices of the questions to measure the loss on: whole groups, up to a third of each subtask, at most twelve."""
    if len(questions) < _FEWEST_TO_PART:
        return []
    groups: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        group = question.group if isinstance(question, Question) else ""
        groups.setdefault(group or question.id, []).append(place)
    names = [as_sample(question).subtask or "all" for question in questions]
    room = {name: count // 3 for name, count in Counter(names).items()}
    capacity, held_back = _MOST_HELD_OUT, list[int]()
    order = sorted(groups)
    random.Random(f"held out {seed}").shuffle(order)
    for group in order:
        needed = Counter(names[place] for place in groups[group])
        if len(groups[group]) <= capacity and all(room[name] >= count for name, count in needed.items()):
            held_back += groups[group]
            capacity -= len(groups[group])
            room = {name: count - needed[name] for name, count in room.items()}
    return sorted(held_back)


def length_agreement(pairs: Sequence[Pair], scores: Scores) -> tuple[Interval, bool]:
    """Correlation of the scores with 1/answer tokens, and whether it was taken within passages."""
    x, y = 1 / scores.label_tokens.double(), scores.total
    passages: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        passages.setdefault(pair.passage_id, []).append(place)
    several = [places for places in passages.values() if len(places) > 1]
    inside = [place for places in several for place in places]
    if len(inside) - len(several) >= _FEWEST_WITHIN:
        x, y = x.clone(), y.clone()
        for places in several:
            x[places] -= x[places].mean()
            y[places] -= y[places].mean()
        return _correlation(x[inside], y[inside], free=len(inside) - len(several)), True
    return _correlation(x - x.mean(), y - y.mean(), free=len(pairs) - 1), False


def _correlation(x: torch.Tensor, y: torch.Tensor, *, free: int) -> Interval:
    """Of centred numbers; the interval is Fisher's, of `free` degrees of freedom."""
    size = float((x.square().sum() * y.square().sum()).sqrt())
    if not size > 0:
        return Interval(None, None, None)
    r = float((x * y).sum()) / size
    if free < 4:
        return Interval(r, None, None)
    middle, half = math.atanh(max(-0.999999, min(0.999999, r))), 1.96 / math.sqrt(free - 2)
    return Interval(r, math.tanh(middle - half), math.tanh(middle + half))


def _share(part: torch.Tensor, rest: torch.Tensor) -> float | None:
    """Mean |part| over mean |part + rest|."""
    whole = float((part + rest).abs().mean())
    return _finite(float(part.abs().mean()) / whole) if whole > 0 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Progress:
    """Counts passes and trainings."""

    def __init__(self, report: Callable[[int, int], None] | None, passes: int, trainings: int) -> None:
        self._report = report
        self._total = passes + trainings
        self._done = 0

    def add(self, count: int) -> None:
        self._done += count
        if self._report is not None:
            self._report(self._done, self._total)
