"""Rewards that are no influence (`reward.source`): what they give is what a run shows without what influence knows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from optimsyn.base.errors import ModelError
from optimsyn.base.identity import digest_of, whole_digest
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.accuracy import Choice
from optimsyn.influence.factory import MeasuredScorer
from optimsyn.influence.fingerprint import encoding_digest
from optimsyn.influence.own_scorer import numbers_with_losses
from optimsyn.influence.scores import Scores
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.recipe.sections.reward import Reward
from optimsyn.target.encoding import as_sample
from optimsyn.target.target import Target

Item = Pair | Question | Sample
Plain = Literal["random", "length"]

CONTROL = "control-"
"""How the fingerprint of these scorers begins."""
# A random reward this far below the mean is rarer than one in seven hundred: an invalid pair is worse than a valid one.
_SPREADS_BELOW = 3.0
_RULE = 1
_NORMAL = statistics.NormalDist()
_DRAWS = 2**52


class PlainScorer:
    """A number a pair without any gradient: a random one, or the length of its answer in tokens.

    Args:
        source: Which of the two.
        target: Its tokenizer counts the tokens; its loss on each pair is for the report.
        tokens: Which of them count, for that loss.
        seed: Of the random numbers.
    """

    numerical_error: ClassVar[float] = 0.0
    subtasks: tuple[str, ...] = ("all",)

    def __init__(self, source: Plain, target: Target, tokens: CountedTokens, seed: int) -> None:
        self.method: str = source
        self.choice: Choice | None = None
        self._source, self._target, self._tokens, self._seed = source, target, tokens, seed
        facts: list[object] = [_RULE, source, seed, tokens.model_dump(mode="json"), str(target.dtype)]
        facts += [target.fingerprint(), encoding_digest(target.tokenizer)]
        facts += [checkpoint.fingerprint for checkpoint in target.checkpoints]
        self.fingerprint = f"{CONTROL}{source}-{digest_of(facts)}"

    def score(self, pairs: Sequence[Item], *, token_shares: bool = False) -> Scores:
        """The numbers of pairs, in the caller's order.

        Raises:
            ModelError: Token shares are requested.
        """
        if token_shares:
            raise ModelError(f"reward.source: {self.method} gives a pair one number, which is no sum over its tokens")
        return numbers_with_losses(self._target, self._tokens, pairs, [self._number(pair) for pair in pairs])

    def _number(self, pair: Item) -> float:
        sample = as_sample(pair)
        if self._source == "length":
            return float(len(self._target.tokenizer.encode(sample.completion, add_special_tokens=False)))
        drawn = int(whole_digest([self._seed, sample.prompt, sample.completion])[:13], 16)
        return _NORMAL.inv_cdf((drawn + 0.5) / _DRAWS)

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """0: no gradient is taken."""
        return {"total": 0.0, "by_subtask": dict.fromkeys(self.subtasks, 0.0)}


class NegatedScorer:
    """Minus the scores of another scorer."""

    def __init__(self, scorer: MeasuredScorer) -> None:
        self._scorer = scorer
        self.subtasks = scorer.subtasks
        self.choice = scorer.choice
        self.fingerprint = f"{CONTROL}negated-{scorer.fingerprint}"

    @property
    def method(self) -> str:
        """As the other one computes."""
        return self._scorer.method

    @property
    def numerical_error(self) -> float:
        """As of the other one."""
        return self._scorer.numerical_error

    def score(self, pairs: Sequence[Item], *, token_shares: bool = False) -> Scores:
        """Minus the influence of pairs, in the caller's order."""
        scores = self._scorer.score(pairs, token_shares=token_shares)
        shares = scores.token_shares
        return replace(
            scores,
            total=-scores.total,
            by_subtask=-scores.by_subtask,
            token_shares=None if shares is None else tuple(-share for share in shares),
        )

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """Minus that of the other one."""
        baseline = self._scorer.zero_gradient_baseline()
        return {
            name: {part: -number for part, number in value.items()} if isinstance(value, dict) else -value
            for name, value in baseline.items()
        }


def penalty_of(reward: Reward, first_drafts: Sequence[float]) -> float:
    """What an invalid pair loses, so that a control may not teach to write invalid pairs.

    Args:
        reward: The recipe's section; its penalty is meant for influence.
        first_drafts: Rewards of the first draft. Minus the influence is mostly below 0, and an invalid pair is as far
            below that as it would be below the influence.

    Raises:
        StageError: The penalty is in units of the first drafts' spread, and they have none.
    """
    penalty = reward.penalty(first_drafts)
    if reward.source == "random":
        return penalty + _SPREADS_BELOW
    if reward.source == "negated" and first_drafts:
        return penalty + max(0.0, -2 * statistics.fmean(first_drafts))
    return penalty
