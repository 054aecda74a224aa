"""A look at the reward as one small table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.base.table import Table, number

if TYPE_CHECKING:
    from optimsyn.reward.look.record import Interval, RewardLook, TrainedOn

_DASH = "–"


def reward_look_table(look: RewardLook) -> Table:
    """What was measured, what came out, and of what."""
    note = f"{look.sentence} Brackets: 95 % intervals."
    return Table(
        f"A look at the reward: {look.verdict}", ("what", "value", "of what"), reward_look_rows(look), note=note
    )


def reward_look_rows(look: RewardLook) -> tuple[tuple[str, str, str], ...]:
    """The rows of that table, for a page."""
    rows = [
        ("numerical error", _percent(look.numerical_error), _error_note(look)),
        ("spread of the scores", number(look.spread), f"standard deviation over {_pairs(look.pairs)}{_known(look)}"),
        (
            "an empty gradient earns",
            number(look.empty),
            f"{_percent(abs(look.empty) / look.spread)} of the spread" if look.spread > 0 else "",
        ),
        (
            "share of the end-of-text token",
            _percent(look.end_share),
            f"of the mean |influence|{f' by {look.end_of}' if look.end_of else ''}{_if_counted(look)}",
        ),
        (
            "correlation with 1/answer tokens",
            _interval(look.length),
            f"{'within passages' if look.length_within else 'over the pool'}, {_pairs(look.length_pairs)}",
        ),
    ]
    if look.training is None:
        rows.append(("real training", _DASH, "was not looked at"))
    else:
        rows += _training_rows(look.training)
    return tuple(rows)


def _if_counted(look: RewardLook) -> str:
    if look.end_share == look.end_share_if_counted:
        return ""
    return f"; {_percent(look.end_share_if_counted)} if it counted like every other token"


def _training_rows(training: TrainedOn) -> list[tuple[str, str, str]]:
    held_out = (
        "without a part in the ranking" if training.held_out else "the direction's own: there are too few to part"
    )
    others = "" if training.random is None else f", random {number(training.random)}"
    return [
        (
            "real training, rank agreement",
            _interval(training.agreement),
            f"{training.subsets} subsets of {training.members} pairs, {training.steps} steps of {training.batch_size} "
            f"from the warm checkpoint; loss on {training.questions} questions, {held_out}",
        ),
        (
            "loss after the worst minus after the best",
            _interval(training.difference),
            f"nats; best {number(training.top)}, worst {number(training.bottom)}{others}, before "
            f"{number(training.start)}",
        ),
    ]


def _error_note(look: RewardLook) -> str:
    told = "of the scores' size, against plain automatic differentiation"
    if look.agreement is not None:
        told += f"; rank agreement {number(look.agreement, 2)}"
    if look.stated_error is not None:
        told += f"; the scorer itself says {_percent(look.stated_error)}"
    return f"{told}; {look.method}" if look.method else told


def _known(look: RewardLook) -> str:
    """Whether the target had been trained on them, which makes their gradients smaller."""
    if not look.trained_on:
        return ", none of them seen in the warm-up"
    return f", {'all' if look.trained_on == look.pairs else look.trained_on} of them seen in the warm-up"


def _pairs(count: int) -> str:
    return f"{count} pair{'' if count == 1 else 's'}"


def _percent(share: float | None) -> str:
    """A share with two significant digits: 0.023 %, 4.1 %, 56 %."""
    if share is None:
        return "not a number"
    if share >= 0.995:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.2g} %"


def _interval(found: Interval) -> str:
    if found.value is None:
        return _DASH
    value = number(found.value, 2, sign=True)
    if found.low is None or found.high is None:
        return value
    return f"{value} [{number(found.low, 2, sign=True)}, {number(found.high, 2, sign=True)}]"
