"""By what evidence a warm-up ends: what is measured at each look, the rules, and the record that they leave.

Two things are learned in a warm-up, at unlike speed. The **form**: that an answer ends, and where. It is the same for
every pair, and until it is learned, it is most of what a further step would change, so most of what a pair would be
rewarded for. And the **content**: what the pairs say. Long after the form has settled the loss of the pairs trained on
goes on falling, that of others does not: the warm-up overfits. It ends between the two.

Every comparison is between two looks at the same samples, sample by sample, so that the noise of a difference is that
of its mean over the samples and not that of their unlike difficulty.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from optimsyn.base.errors import ModelError
from optimsyn.base.files import write_json
from optimsyn.recipe.sections.warm_up import least_warm_up_steps

ItemT = TypeVar("ItemT")
Stopped = Literal["settled", "overfits", "most steps", "given"]

# Fewer pairs than this are all trained on.
_FEWEST_TRAINED = 4
# Of the loss of the end, in nats: below this it counts as learned, and this little as no movement.
_LEARNED = 0.5
_SMALL = 0.05
_SHARE = 0.1
_LEFT = 0.05
# Looks over which the form must have stood still.
_PATIENCE = 2
# One-sided. A warm-up that ends a look early is none the worse, so a rise need not be certain.
_RISE_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Search:
    """How the steps and the learning rate of a warm-up are found.

    Attributes:
        max_steps: Most steps.
        every: Steps between two looks; a learning rate is tried for as many.
        held_out: Share of the pairs that is not trained on but looked at.
        around: The learning rate of the fine-tuning that the influence is to predict; candidates lie around it.
        factors: The candidates, as multiples of it.
        most_questions: Questions looked at, spread evenly over those there are.
        most_unseen: Pairs held out at most.
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
        """How many looks there are by then; each of them can become a checkpoint."""
        return math.ceil(self.least_steps / self.every)

    def next_look(self, step: int) -> int:
        """The step of the first look after `step`."""
        return min(self.max_steps, (step // self.every + 1) * self.every)

    def split(self, pairs: Sequence[ItemT], train: int | None = None) -> tuple[Sequence[ItemT], Sequence[ItemT]]:
        """The pairs to train on, and those to look at in their place; none of these where four would not be left.

        Args:
            pairs: All of them. The last ones are held out.
            train: Train on so many at most; pairs that are left over anyway are held out before others.
        """
        held = min(self.most_unseen, max(2, round(self.held_out * len(pairs)))) if self.held_out else 0
        if len(pairs) - held < _FEWEST_TRAINED:
            held = 0
        rest = len(pairs) - held
        return pairs[: rest if train is None else min(train, rest)], pairs[rest:]


class Losses(NamedTuple):
    """What one look measures, a number a sample, in nats a token.

    Attributes:
        end: Of the validation questions, what stands behind the answer: the end of the text, or of a chat's turn.
            Empty where the tokenizer has nothing that ends a text.
        first: Of the validation questions, the first token of the answer.
        content: Of the validation questions, the answer's own tokens.
        unseen: Of pairs that are not trained on, the answer's own tokens.
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
        """Whether every number is one."""
        return all(math.isfinite(value) for values in self for value in values)


@dataclass(frozen=True)
class Look:
    """One point of the curve: means over the samples, in nats a token.

    Attributes:
        step: Steps taken before it.
        end_loss: Of what ends an answer, over the validation questions; None where nothing does.
        first_loss: Of an answer's first token, over the validation questions.
        question_loss: Of an answer's own tokens, over the validation questions.
        unseen_loss: Of an answer's own tokens, over pairs that are not trained on; None where none were held out.
        training_loss: Mean over the steps since the look before; None at the start.
    """

    step: int
    end_loss: float | None
    first_loss: float
    question_loss: float
    unseen_loss: float | None
    training_loss: float | None

    @classmethod
    def of(cls, step: int, losses: Losses, training: Sequence[float]) -> Look:
        """The means of what was measured."""
        end, first, content, unseen = (_mean(values) for values in losses)
        assert first is not None
        assert content is not None
        return cls(step, end, first, content, unseen, _mean(training))


@dataclass(frozen=True)
class TriedRate:
    """A learning rate that was tried from the start of the warm-up.

    Attributes:
        lr: The rate.
        look: Where it led; None where a loss was not finite.
        judged: Loss of the form plus loss of the held-out content, by which rates are compared, in nats a token.
        dropped: Why it was not considered; empty: it was.
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
            checkpoint is the look before. `most steps`: neither by then. `given`: the number was given.
        why: The same with its figures, in a sentence.
        why_lr: Why this rate, in a sentence.
        losses: Training loss of each step up to the last checkpoint.
        looks: Every look at the rate that was chosen, also those after the checkpoint; none where nothing was looked
            for.
        rates: The rates that were tried; none where the rate was given.
        trained_on: Pairs trained on.
        held_out: Pairs looked at in their place.
        questions: Validation questions looked at.
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
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            rates = [{**rate, "look": Look(**rate["look"]) if rate["look"] else None} for rate in raw["rates"]]
            raw |= {
                "losses": tuple(raw["losses"]),
                "looks": tuple(Look(**look) for look in raw["looks"]),
                "rates": tuple(TriedRate(**rate) for rate in rates),
            }
            return cls(**raw)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{path}: not a readable curve of a warm-up ({error}); delete the folder and warm up again"
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
    """How much higher the losses of the same samples are `after` than `before`."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    count = len(differences)
    mean = sum(differences) / count
    if count < 2:
        return Change(mean, math.inf, count)
    variance = sum((value - mean) ** 2 for value in differences) / (count - 1)
    return Change(mean, math.sqrt(variance / count), count)


def settled(history: Sequence[Losses]) -> str:
    """Whether the form has settled: why, or an empty string.

    It has, when what is left of its loss is no more than a twentieth of what it fell by: no further step can change
    more. Or when over the last two looks it moved by no more than a tenth of all that it moved since the start.
    A form that was learned before (a loss of at most half a nat, at which the token has three chances in five) need not
    have moved at all: there it is enough that it stands still, within 0.05 nats or its own noise (a standard error of
    the mean difference). A loss that is high and stands still has not settled: the rate is too low.

    Args:
        history: The start and every look since.
    """
    levels = [sum(losses.form) / len(losses.form) for losses in history]
    total = max(levels) - min(levels)
    went = f"the loss of {_form_name(history[-1])} went from {levels[0]:.2f} to {levels[-1]:.2f}"
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
    """Whether samples that are not trained on got worse: why, or an empty string.

    They did, when the loss of their content is above its lowest look by more than noise: the mean difference is above
    0 by a one-sided t-test at 95 %. Two samples seldom show it, twenty soon do.

    Args:
        history: The start and every look since.
    """
    lowest = min(history, key=lambda losses: sum(losses.held_out))
    rise = change(lowest.held_out, history[-1].held_out)
    if not is_rise(rise):
        return ""
    what = "unseen pairs" if history[-1].unseen else "questions"
    return (
        f"the content loss of {rise.samples} {what} rose by {rise.mean:.2g} above its lowest look "
        f"(standard error {rise.error:.2g})"
    )


def is_rise(difference: Change) -> bool:
    """Whether a change is upward beyond its noise."""
    from scipy.stats import t

    if difference.samples < 2 or difference.mean <= 0:
        return False
    return bool(difference.mean > float(t.ppf(_RISE_CONFIDENCE, difference.samples - 1)) * difference.error)


def compared(before: Losses, after: Losses) -> Change:
    """How much higher form and held-out content together are `after` than `before`, by which rates are compared."""
    form, content = change(before.form, after.form), change(before.held_out, after.held_out)
    # The noise of a single sample is unknown, so none is added.
    errors = [part.error for part in (form, content) if math.isfinite(part.error)]
    return Change(form.mean + content.mean, math.hypot(*errors), min(form.samples, content.samples))


def choose_rate(
    start: Losses, tried: dict[float, Losses | None], around: float
) -> tuple[float | None, dict[float, str]]:
    """The best of the learning rates that were tried: the lowest loss, and of those within its noise the nearest.

    Args:
        start: Before the first step.
        tried: Rate -> where it led from the start; None where a loss was not finite.
        around: Of rates that do not differ beyond their noise the nearest to this one is taken.

    Returns:
        The rate, or None where every one was dropped; and why each dropped one was.
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
        usable = losses is not None and losses.finite
        look = Look.of(every, losses, training[lr]) if usable and losses is not None else None
        judged = _judged(losses) if usable and losses is not None else None
        records.append(TriedRate(lr, look, judged, dropped.get(lr, "")))
    return tuple(records)


def _no_worse(difference: Change) -> bool:
    return difference.mean <= difference.error


def _judged(losses: Losses) -> float:
    return sum(losses.form) / len(losses.form) + sum(losses.held_out) / len(losses.held_out)


def _form_name(losses: Losses) -> str:
    return "the end of an answer" if losses.end else "an answer's first token"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
