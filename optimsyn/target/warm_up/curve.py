"""When a warm-up ends: the losses measured at each look, the stopping rules, and their record.

A warm-up learns two things, at different speeds. The **form**: that an answer ends, and where. It is the same for every
pair, and until it is learned, it dominates the effect of a further step and so the reward of a pair. And the
**content**: what the pairs say. Long after the form has settled, the training pairs keep improving while the
others do not: the warm-up overfits. It ends between the two.

Looks are compared sample by sample, so that the noise of a difference comes from its mean over the samples and not from
how much the samples differ in difficulty.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import TypeAdapter

from optimsyn.base.errors import ModelError
from optimsyn.base.files import write_json
from optimsyn.recipe.problems import in_a_line
from optimsyn.recipe.sections.warm_up import least_warm_up_steps

ItemT = TypeVar("ItemT")
Stopped = Literal["settled", "overfits", "most steps", "given"]

# Fewer pairs than this are all trained on.
_FEWEST_TRAINED = 4
# Of the loss of the end, in nats: below the first it counts as learned; a change below the second is no movement.
_LEARNED = 0.5
_SMALL = 0.05
_SHARE = 0.1
_LEFT = 0.05
# Looks over which the form must not have moved.
_PATIENCE = 2
# One-sided. A warm-up that ends a look early is none the worse, so a rise need not be certain.
_RISE_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Search:
    """How to search the steps and the learning rate of a warm-up.

    Attributes:
        max_steps: Most steps.
        every: Steps between two looks, and steps for which each learning rate is tried.
        held_out: Share of the pairs to hold out and look at.
        around: The learning rate of the fine-tuning that the influence predicts; candidates lie around it.
        factors: The candidates, as multiples of `around`.
        most_questions: Most questions to look at, spread evenly over all of them.
        most_unseen: Most pairs to hold out.
    """

    max_steps: int = 24
    every: int = 4
    held_out: float = 0.2
    around: float = 2e-4
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    most_questions: int = 24
    most_unseen: int = 32

    @property
    def least_steps(self) -> int:
        """Fewest steps: the first look at which Adam's moments mean something."""
        return least_warm_up_steps(self.max_steps, self.every)

    @property
    def fewest_looks(self) -> int:
        """How many looks there are within `least_steps`; each of them can become a checkpoint."""
        return math.ceil(self.least_steps / self.every)

    def next_look(self, step: int) -> int:
        """The step of the first look after `step`."""
        return min(self.max_steps, (step // self.every + 1) * self.every)

    def split(self, pairs: Sequence[ItemT], train: int | None = None) -> tuple[Sequence[ItemT], Sequence[ItemT]]:
        """The pairs to train on and the held-out ones; holds out none if that leaves fewer than four to train on.

        Args:
            pairs: All pairs. The last ones are held out.
            train: Train on at most this many.
        """
        held = min(self.most_unseen, max(2, round(self.held_out * len(pairs)))) if self.held_out else 0
        if len(pairs) - held < _FEWEST_TRAINED:
            held = 0
        rest = len(pairs) - held
        return pairs[: rest if train is None else min(train, rest)], pairs[rest:]


class Losses(NamedTuple):
    """The losses of one look, one per sample, in nats per token.

    Attributes:
        end: Of the tokens that end an answer (the text or a chat's turn), over the validation questions. Empty where
            the tokenizer has none.
        first: Of the answer's first token, over the validation questions.
        content: Of the answer's own tokens, over the validation questions.
        unseen: Of the answer's own tokens, over pairs that are not trained on.
    """

    end: tuple[float, ...]
    first: tuple[float, ...]
    content: tuple[float, ...]
    unseen: tuple[float, ...]

    @property
    def form(self) -> tuple[float, ...]:
        """The losses that show whether the form is learned."""
        return self.end or self.first

    @property
    def held_out(self) -> tuple[float, ...]:
        """The losses that show overfitting: of held-out pairs, or of questions where pairs are too few."""
        return self.unseen or self.content

    @property
    def finite(self) -> bool:
        """Whether all losses are finite."""
        return all(math.isfinite(value) for values in self for value in values)


@dataclass(frozen=True)
class Look:
    """One point of the curve: mean losses over the samples, in nats per token.

    Attributes:
        step: Steps taken before it.
        end_loss: Of the tokens that end an answer, over the validation questions; None where there are none.
        first_loss: Of an answer's first token, over the validation questions.
        question_loss: Of an answer's own tokens, over the validation questions.
        unseen_loss: Of an answer's own tokens, over pairs that are not trained on; None where none were held out.
        training_loss: Mean over the steps since the previous look; None at the start.
    """

    step: int
    end_loss: float | None
    first_loss: float
    question_loss: float
    unseen_loss: float | None
    training_loss: float | None

    @classmethod
    def of(cls, step: int, losses: Losses, training: Sequence[float]) -> Look:
        """The means of the measured losses."""
        end, first, content, unseen = (_mean(values) for values in losses)
        assert first is not None
        assert content is not None
        return cls(step, end, first, content, unseen, _mean(training))


@dataclass(frozen=True)
class TriedRate:
    """A learning rate that was tried from the start of the warm-up.

    Attributes:
        look: The losses it led to; None where a loss was not finite.
        judged: Loss of the form plus loss of the held-out content, by which rates are compared, in nats per token.
    """

    lr: float
    look: Look | None
    judged: float | None
    dropped: str = ""


@dataclass(frozen=True)
class WarmUpCurve:
    """How a warm-up went, and why it ended where it did.

    Attributes:
        lr: Learning rate.
        steps: Step of the last checkpoint.
        stopped: `settled`: the form is learned. `overfits`: pairs that were not trained on got worse, and the
            checkpoint is the previous look. `most steps`: neither. `given`: the number of steps was given.
        why: The same with its figures, in a sentence.
        why_lr: Why this rate, in a sentence.
        losses: Training loss of each step up to the last checkpoint.
        looks: Every look at the chosen rate, also those after the checkpoint; empty without a search.
        rates: The rates that were tried; empty where the rate was given.
        trained_on: Number of training pairs.
        held_out: Number of held-out pairs.
        questions: Number of validation questions looked at.
    """

    lr: float
    steps: int
    stopped: Stopped
    why: str
    why_lr: str
    losses: tuple[float, ...]
    looks: tuple[Look, ...] = ()
    rates: tuple[TriedRate, ...] = ()
    trained_on: int = 0
    held_out: int = 0
    questions: int = 0

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> WarmUpCurve:
        """Reads what `save` wrote.

        Raises:
            ModelError: The file is missing or damaged.
        """
        try:
            return TypeAdapter(cls).validate_python(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path}: not a readable curve of a warm-up ({in_a_line(error)}); delete the folder and warm up again"
            ) from error

    @property
    def last(self) -> Look | None:
        """The look at the checkpoint."""
        return next((look for look in self.looks if look.step == self.steps), None)


class Change(NamedTuple):
    """A mean difference between two looks, and its standard error (infinite for a single sample)."""

    mean: float
    error: float
    samples: int


def change(before: Sequence[float], after: Sequence[float]) -> Change:
    """How much the losses of the same samples rose from `before` to `after`."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    if count < 2:
        return Change(mean, math.inf, count)
    variance = sum((value - mean) ** 2 for value in differences) / (count - 1)
    return Change(mean, math.sqrt(variance / count), count)


def settled(history: Sequence[Losses]) -> str:
    """Why the form has settled, or an empty string if it has not.

    It has settled when its remaining loss is at most a twentieth of its decrease, or when over the last two looks it
    moved by at most a tenth of its whole movement. A form that was known from the start (a loss of at most half a nat,
    a probability of three in five) need not move: it is enough that it stays within 0.05 nats or its own noise (a
    standard error of the mean difference). A loss that is high and does not move has not settled: the rate is too low.
    """
    levels = [sum(losses.form) / len(losses.form) for losses in history]
    total = max(levels) - min(levels)
    form = "the end of an answer" if history[-1].end else "an answer's first token"
    went = f"the loss of {form} went from {levels[0]:.2f} to {levels[-1]:.2f}"
    if total > _LEARNED and levels[-1] <= _LEFT * total:
        return f"{went}, so what is left is at most {_LEFT:.0%} of what was learned"
    if len(history) <= _PATIENCE:
        return ""
    moved = change(history[-1 - _PATIENCE].form, history[-1].form)
    limit = _SHARE * total if total > _LEARNED else 0.0
    if levels[-1] <= _LEARNED:
        limit = max(limit, _SMALL, moved.error if math.isfinite(moved.error) else 0.0)
    if abs(moved.mean) > limit or not limit:
        return ""
    return f"{went} and moved by {abs(moved.mean):.2g} over the last {_PATIENCE} looks (limit {limit:.2g})"


def overfits(history: Sequence[Losses]) -> str:
    """Why the warm-up overfits, or an empty string if it does not.

    It overfits when the content loss of samples that it does not train on is above its lowest look by more than noise:
    a one-sided t-test of the mean difference at 95 %. Two samples seldom show it, twenty soon do.
    """
    lowest = min(history, key=lambda losses: sum(losses.held_out))
    rise = change(lowest.held_out, history[-1].held_out)
    if not is_rise(rise):
        return ""
    noun = "unseen pairs" if history[-1].unseen else "questions"
    return (
        f"the content loss of {rise.samples} {noun} rose by {rise.mean:.2g} above its lowest look "
        f"(standard error {rise.error:.2g})"
    )


def is_rise(difference: Change) -> bool:
    """Whether a change is upward beyond its noise."""
    from scipy.stats import t

    if difference.samples < 2 or difference.mean <= 0:
        return False
    return bool(difference.mean > float(t.ppf(_RISE_CONFIDENCE, difference.samples - 1)) * difference.error)


def compared(before: Losses, after: Losses) -> Change:
    """How much form plus held-out content rose from `before` to `after`, by which rates are compared."""
    form, content = change(before.form, after.form), change(before.held_out, after.held_out)
    # The noise of a single sample is unknown and left out.
    errors = [part.error for part in (form, content) if math.isfinite(part.error)]
    return Change(form.mean + content.mean, math.hypot(*errors), min(form.samples, content.samples))


def choose_rate(
    start: Losses, tried: dict[float, Losses | None], around: float
) -> tuple[float | None, dict[float, str]]:
    """The best of the tried learning rates: of those within noise of the lowest loss, the one nearest to `around`.

    `tried` maps rates to the losses that they led to; None where a loss was not finite.

    Returns None if all were dropped, and why each dropped rate was.
    """
    dropped: dict[float, str] = {}
    for lr, losses in tried.items():
        if losses is None or not losses.finite:
            dropped[lr] = "a loss was not finite"
        elif is_rise(change(start.held_out, losses.held_out)):
            dropped[lr] = "what was not trained on got worse from the start"
        elif not _no_worse(compared(start, losses)):
            dropped[lr] = "the loss rose"
    left = {lr: losses for lr, losses in tried.items() if losses is not None and lr not in dropped}
    if not left:
        return None, dropped
    best = min(left, key=lambda lr: _judged(left[lr]))
    equal = [lr for lr, losses in left.items() if _no_worse(compared(left[best], losses))]
    return min(equal, key=lambda lr: (round(abs(math.log(lr / around)), 9), lr)), dropped


def tried_rates(
    tried: dict[float, Losses | None], training: dict[float, Sequence[float]], every: int, dropped: dict[float, str]
) -> tuple[TriedRate, ...]:
    """The record of the rates that were tried, lowest first."""
    records = []
    for lr, losses in sorted(tried.items()):
        usable = losses if losses is not None and losses.finite else None
        look = Look.of(every, usable, training[lr]) if usable else None
        records.append(TriedRate(lr, look, _judged(usable) if usable else None, dropped.get(lr, "")))
    return tuple(records)


def _no_worse(difference: Change) -> bool:
    return difference.mean <= difference.error


def _judged(losses: Losses) -> float:
    return sum(losses.form) / len(losses.form) + sum(losses.held_out) / len(losses.held_out)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
