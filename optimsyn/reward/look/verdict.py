"""The verdict on the measures of a look at the reward.

noise (only clear evidence counts, for it stops a run):

- all scores are equal, or one is not a finite number;
- the scores are off by half of their size or more, or by as much as they differ from each other;
- their rank agreement with plain automatic differentiation is below .5 (of six pairs or more).

doubtful:

- the scores are off by 5 per cent of their size or more;
- the end-of-text token, as the recipe counts it, brings more than a fifth of the mean |influence|;
- |r| with 1/answer tokens is above .3, and its interval excludes 0;
- an empty gradient earns more than half of the scores' spread;
- real training went against the ranking: the interval of the rank agreement, or of bottom minus top, lies below 0.

too few to tell: none of these, and fewer than six pairs. sound: nothing that was measured speaks against the reward.
An interval that includes 0 is reported as "not shown" and changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from optimsyn.reward.look.record import RewardLook, Soundness

FEWEST_PAIRS = 6
NOISE_ERROR = 0.5
NOISE_AGREEMENT = 0.5
DOUBTFUL_ERROR = 0.05
DOUBTFUL_END = 0.2
DOUBTFUL_LENGTH = 0.3
DOUBTFUL_EMPTY = 0.5
# With two pairs any two rankings agree or disagree wholly.
_FEWEST_FOR_ERRORS = 3


def judged(look: RewardLook) -> RewardLook:
    """The look with its verdict and reasons, by the rules above."""
    noise, doubts = _noise(look), _doubts(look)
    if noise:
        return _with(look, "noise", noise)
    if doubts:
        return _with(look, "doubtful", doubts)
    if look.pairs < FEWEST_PAIRS:
        there = "there was one pair" if look.pairs == 1 else f"there were {look.pairs} pairs"
        return _with(look, "too few to tell", [f"{there} to look at, and it takes {FEWEST_PAIRS}"])
    return _with(look, "sound", [_in_favour(look)])


def _with(look: RewardLook, verdict: Soundness, reasons: list[str]) -> RewardLook:
    return replace(look, verdict=verdict, reasons=tuple(reasons))


def _noise(look: RewardLook) -> list[str]:
    if look.pairs < _FEWEST_FOR_ERRORS:
        return []
    reasons = []
    if not look.spread > 0:
        reasons.append("all pairs have the same score")
    error = _error(look)
    if error is None:
        reasons.append("scores, or the gradients that they are compared with, are not finite numbers")
    elif error >= NOISE_ERROR:
        reasons.append(
            f"the scores are off by {error:.0%} of their size, measured against plain automatic differentiation"
        )
    elif look.absolute_error is not None and look.absolute_error >= look.spread > 0:
        reasons.append("the scores are off by as much as they differ from each other")
    if look.agreement is not None and look.pairs >= FEWEST_PAIRS and look.agreement < NOISE_AGREEMENT:
        reasons.append(f"their rank agreement with plain automatic differentiation is {look.agreement:.2f}")
    return reasons


def _doubts(look: RewardLook) -> list[str]:
    reasons = []
    error = _error(look)
    if error is not None and error >= DOUBTFUL_ERROR and look.pairs >= _FEWEST_FOR_ERRORS:
        reasons.append(f"the scores are off by {error:.0%} of their size")
    if look.end_share is not None and look.end_share > DOUBTFUL_END:
        reasons.append(f"{look.end_share:.0%} of the influence comes from the token that ends the text")
    r = look.length.value
    if r is not None and abs(r) > DOUBTFUL_LENGTH and (look.length.above_zero or look.length.below_zero):
        reasons.append(f"{'short' if r > 0 else 'long'} answers earn more (r = {r:.2f} with 1/answer tokens)")
    if look.pairs >= _FEWEST_FOR_ERRORS and abs(look.empty) > DOUBTFUL_EMPTY * look.spread > 0:
        reasons.append("momentum alone earns more than half of what tells pairs apart")
    if look.training is not None and look.training.backwards:
        reasons.append("real training went against the ranking")
    return reasons


def _in_favour(look: RewardLook) -> str:
    begin = "nothing that was measured speaks against it"
    if look.training is None:
        return f"{begin}; real training was not looked at"
    if look.training.shown:
        return f"{begin}, and real training agreed with it"
    return f"{begin}; that real training agrees with it was not shown: the intervals include 0"


def _error(look: RewardLook) -> float | None:
    """The larger of the two measured errors; None where one is not a finite number."""
    if look.numerical_error is None:
        return None
    return max(look.numerical_error, look.stated_error or 0.0)
