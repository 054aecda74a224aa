"""The result of a look at the reward; plain numbers, so that a report reads them without a model library."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from optimsyn.base.counting import plural
from optimsyn.base.errors import DataError
from optimsyn.base.files import write_json
from optimsyn.base.terminal.labels import SOURCE_LABELS
from optimsyn.base.terminal.table import Shown, Table, number

REWARD_LOOK_FILE = "reward_look.json"

Soundness = Literal["sound", "doubtful", "noise", "too few to tell"]


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def below_zero(self) -> bool:
        """Whether all of it lies below 0."""
        return self.high is not None and self.high < 0

    @property
    def above_zero(self) -> bool:
        """Whether all of it lies above 0."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True)
class TrainedOn:
    """The result of training on some of the pairs, from the warm checkpoint.

    Attributes:
        subsets: How many subsets were trained on, the best and the worst by reward among them.
        members: Pairs in each.
        steps: Optimiser steps on each.
        batch_size: Pairs a step.
        lr: Learning rate.
        questions: How many questions the loss was measured on.
        held_out: Whether these had no part in the direction that ranked the pairs.
        start: Mean loss before, in nats.
        top: After the pairs of highest reward.
        bottom: After those of lowest.
        random: Mean over the random subsets; None without them.
        agreement: Spearman of the subsets' mean reward with the decrease of the loss, its interval by bootstrap over
            subsets and questions.
        difference: Bottom minus top (above 0: the reward ranked rightly). Its interval joins a bootstrap over questions
            with how far apart two random subsets end.
        by: What was measured: the loss, or `miss`, the probability of another answer, where directions are gradients
            of a probability. The fields that speak of losses are then of this.
    """

    subsets: int
    members: int
    steps: int
    batch_size: int
    lr: float
    questions: int
    held_out: bool
    start: float
    top: float
    bottom: float
    random: float | None
    agreement: Interval
    difference: Interval
    by: Literal["loss", "miss"] = "loss"

    @property
    def shown(self) -> bool:
        """Whether training went the way of the reward by more than chance."""
        return self.agreement.above_zero or self.difference.above_zero

    @property
    def backwards(self) -> bool:
        """Whether it went the other way by more than chance."""
        return self.agreement.below_zero or self.difference.below_zero


@dataclass(frozen=True)
class RewardLook(Shown):
    """The measures of a reward, and its verdict.

    Attributes:
        verdict: sound, doubtful, noise, or too few to tell; the rules are those of
            `optimsyn.reward.look.verdict`.
        reasons: Why, a sentence each.
        pairs: Pairs looked at.
        trained_on: How many of them the warm-up had trained on.
        method: How the scores were computed, in the scorer's own words; "" where it does not say.
        numerical_error: Root mean square distance of the scores from plain automatic differentiation, as a share of
            the latter's root mean square; None: not a finite number.
        stated_error: The scorer's own measurement of that share; None if it has none.
        absolute_error: The root mean square distance in the scores' units; None: not a finite number.
        agreement: Spearman of the scores with those of plain automatic differentiation; None: not defined.
        spread: Standard deviation of the scores.
        end_share: The end-of-text token's share of the mean |influence|, as the recipe counts it.
        end_share_if_counted: The same if it counted like every other token.
        length: Correlation of the scores with 1/answer tokens.
        length_within: Taken within passages; else over the pool.
        length_pairs: Of how many pairs.
        empty: Score of an empty gradient.
        training: The counterfactual; None if there was none.
        end_of: The score that `end_share` refers to, if not the reward's.
        own_scorer: The scores are those of a custom scorer, which `method` names, or of a control, and no influence.
        source: The recipe's `reward.source`.
    """

    verdict: Soundness
    reasons: tuple[str, ...]
    pairs: int
    trained_on: int
    method: str
    numerical_error: float | None
    stated_error: float | None
    absolute_error: float | None
    agreement: float | None
    spread: float
    end_share: float | None
    end_share_if_counted: float | None
    length: Interval
    length_within: bool
    length_pairs: int
    empty: float
    training: TrainedOn | None
    end_of: str = ""
    own_scorer: bool = False
    source: str = "influence"

    @property
    def sentence(self) -> str:
        """The verdict with its reasons."""
        control = "" if self.source == "influence" else f", {SOURCE_LABELS[self.source]},"
        reasons = "; ".join(self.reasons)
        if self.verdict == "too few to tell":
            return f"Too few pairs to tell about the reward{control.rstrip(',')}: {reasons}."
        return f"The reward{control} is {self.verdict}: {reasons}."

    def to_json(self) -> dict[str, Any]:
        """The look as JSON values."""
        return {**asdict(self), "reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> RewardLook:
        """What `to_json` gave.

        Raises:
            KeyError: A field is missing.
            TypeError: A field is unknown or missing.
        """
        facts = dict(facts)
        facts["reasons"] = tuple(facts["reasons"])
        facts["length"] = Interval(**facts["length"])
        if facts["training"] is not None:
            training = dict(facts["training"])
            for name in ("agreement", "difference"):
                training[name] = Interval(**training[name])
            facts["training"] = TrainedOn(**training)
        return cls(**facts)

    def save(self, file: Path) -> None:
        """Writes it as JSON."""
        write_json(file, self.to_json())

    @classmethod
    def load(cls, file: Path) -> RewardLook:
        """Reads what `save` wrote.

        Raises:
            DataError: The file is missing or damaged.
        """
        try:
            return cls.from_json(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file}: not a readable look at the reward ({error}); delete it and run again") from error

    def _table(self) -> Table:

        return reward_look_table(self)


_DASH = "–"
_END_SHARE = "share of the end-of-text token"
_NOT_PARTED = "the direction's own: there are too few to part"


def reward_look_table(look: RewardLook) -> Table:
    """What was measured, what came out, and of what."""
    note = f"{look.sentence} Brackets: 95 % intervals."
    return Table(
        f"A look at the reward: {look.verdict}", ("what", "value", "of what"), reward_look_rows(look), note=note
    )


def reward_look_rows(look: RewardLook) -> tuple[tuple[str, str, str], ...]:
    """The rows of that table."""
    method = look.method if look.source == "influence" else look.source
    own_row = ("scored by", method, "in the place of influence, so there is nothing to compare the scores with")
    rows = [
        own_row if look.own_scorer else ("numerical error", _percent(look.numerical_error), _error_note(look)),
        (
            "spread of the scores",
            number(look.spread),
            f"standard deviation over {plural(look.pairs, 'pair')}{_known(look)}",
        ),
        (
            "an empty gradient earns",
            number(look.empty),
            f"{_percent(abs(look.empty) / look.spread)} of the spread" if look.spread > 0 else "",
        ),
        (
            _END_SHARE,
            _percent(look.end_share),
            f"of the mean |influence|{f' by {look.end_of}' if look.end_of else ''}{_if_counted(look)}",
        ),
        (
            "correlation with 1/answer tokens",
            _interval(look.length),
            f"{'within passages' if look.length_within else 'over the pool'}, {plural(look.length_pairs, 'pair')}",
        ),
    ]
    if look.source != "influence":
        rows.insert(0, ("the reward is", look.source, SOURCE_LABELS[look.source]))
    if look.training is None:
        rows.append(("real training", _DASH, "was not looked at"))
    else:
        rows += _training_rows(look.training, "the scorer's own" if look.own_scorer else _NOT_PARTED)
    if look.own_scorer:
        rows = [row for row in rows if row[0] != _END_SHARE]
    return tuple(rows)


def _if_counted(look: RewardLook) -> str:
    if look.end_share == look.end_share_if_counted:
        return ""
    return f"; {_percent(look.end_share_if_counted)} if it counted like every other token"


def _training_rows(training: TrainedOn, otherwise: str) -> list[tuple[str, str, str]]:
    held_out = "without a part in the ranking" if training.held_out else otherwise
    measured, unit = ("loss", "nats; ") if training.by == "loss" else ("probability of another answer", "")
    random_part = "" if training.random is None else f", random {number(training.random)}"
    return [
        (
            "real training, rank agreement",
            _interval(training.agreement),
            f"{training.subsets} subsets of {plural(training.members, 'pair')}, {plural(training.steps, 'step')} "
            f"of {training.batch_size} "
            f"from the warm checkpoint; {measured} on {plural(training.questions, 'question')}, {held_out}",
        ),
        (
            f"{measured} after the worst minus after the best",
            _interval(training.difference),
            f"{unit}best {number(training.top)}, worst {number(training.bottom)}{random_part}, before "
            f"{number(training.start)}",
        ),
    ]


def _error_note(look: RewardLook) -> str:
    note = "of the scores' size, against plain automatic differentiation"
    if look.agreement is not None:
        note += f"; rank agreement {number(look.agreement, 2)}"
    if look.stated_error is not None:
        note += f"; the scorer itself says {_percent(look.stated_error)}"
    return f"{note}; {look.method}" if look.method else note


def _known(look: RewardLook) -> str:
    """How many pairs the target was trained on, which makes their gradients smaller."""
    if not look.trained_on:
        return ", none of them seen in the warm-up"
    return f", {'all' if look.trained_on == look.pairs else look.trained_on} of them seen in the warm-up"


def _percent(share: float | None) -> str:
    """A share with two significant digits: 0.023 %, 4.1 %, 56 %."""
    if share is None:
        return "not a number"
    if share >= 0.995:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.2g} %"


def _interval(interval: Interval) -> str:
    if interval.value is None:
        return _DASH
    value = number(interval.value, 2, sign=True)
    if interval.low is None or interval.high is None:
        return value
    return f"{value} [{number(interval.low, 2, sign=True)}, {number(interval.high, 2, sign=True)}]"
