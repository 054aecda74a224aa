"""What a look at a run's own reward found; plain numbers, so that a report reads them without a model library."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optimsyn.base.errors import DataError
from optimsyn.base.files import write_json
from optimsyn.base.shown import Shown

if TYPE_CHECKING:
    from optimsyn.base.table import Table

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
    """What training from the warm checkpoint on some of the pairs really did.

    Attributes:
        subsets: How many subsets were trained on, the best and the worst by reward among them.
        members: Pairs in each.
        steps: Optimiser steps on each.
        batch_size: Pairs a step.
        lr: Learning rate.
        questions: How many questions the loss was measured on.
        held_out: These had no part in the direction that the pairs were ranked by.
        start: Mean loss before, in nats.
        top: After the pairs of highest reward.
        bottom: After those of lowest.
        random: Mean over the random subsets; None: there were none.
        agreement: Spearman of the subsets' mean reward with the decrease of the loss, its interval by bootstrap over
            subsets and questions.
        difference: Bottom minus top (above 0: the reward ranked rightly). Its interval joins a bootstrap over questions
            with how far apart two random subsets end.
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
    """The measures of a reward, and what they come to.

    Attributes:
        verdict: sound, doubtful, noise, or too few to tell; the rules are those of
            `optimsyn.reward.look.verdict`.
        reasons: Why, a sentence each.
        pairs: Pairs looked at.
        trained_on: How many of them the warm-up had trained on.
        method: How the scores were computed, in the scorer's own words; "" where it does not say.
        numerical_error: Root mean square distance of the scores from plain automatic differentiation, as a share of
            the latter's root mean square; None: not a finite number.
        stated_error: What the scorer itself has measured, likewise; None where it does not say.
        absolute_error: The same root mean square distance in the scores' own units; None: not a finite number.
        agreement: Spearman of the scores with those of plain automatic differentiation; None: not defined.
        spread: Standard deviation of the scores.
        end_share: The end-of-text token's share of the mean |influence|, as the recipe counts it.
        end_share_if_counted: The same if it counted like every other token.
        length: Correlation of the scores with 1/answer tokens.
        length_within: Taken within passages; else over the pool.
        length_pairs: Of how many pairs.
        empty: Score of an empty gradient.
        training: The counterfactual; None where there was none.
        end_of: The score that `end_share` is a part of, where that is not the reward's own.
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

    @property
    def sentence(self) -> str:
        """The verdict with its reasons."""
        return f"The reward is {self.verdict}: {'; '.join(self.reasons)}."

    def to_json(self) -> dict[str, Any]:
        """For a file: what JSON gives back as it was."""
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
        from optimsyn.reward.look.table import reward_look_table

        return reward_look_table(self)
