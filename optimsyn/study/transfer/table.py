"""The table of a transfer, from the finished runs."""

from __future__ import annotations

from collections.abc import Sequence

from optimsyn.study.transfer.outcomes import CellState, Outcome, Values, gain
from optimsyn.study.transfer.result import Gain, TableCell, TransferRun

Place = tuple[str, str, str]
"""Generator, scoring target, trained target."""


def table_of(states: Sequence[CellState]) -> list[TableCell]:
    """The cells of the table, in the order of the runs.

    Raises:
        DataError: Two runs that are compared answered different questions.
    """
    places: dict[Place, list[CellState]] = {}
    for each in states:
        cell = each.cell
        places.setdefault((cell.generator, cell.scored_by, cell.target), []).append(each)
    return [_cell(place, places) for place in places]


def _cell(place: Place, places: dict[Place, list[CellState]]) -> TableCell:
    generator, scorer, target = place
    done = [each for each in places[place] if each.outcome is not None]
    own = {} if scorer == target else _by_seed(places.get((generator, target, target), []))
    shared = [each for each in done if each.cell.seed in own]
    outcomes = [_of(each) for each in done]
    return TableCell(
        generator=generator,
        scored_by=scorer,
        target=target,
        own=scorer == target,
        seeds=[each.cell.seed for each in done],
        pairs=[outcome.pairs for outcome in outcomes],
        gains=_gains(done, [(each.before, each) for each in map(_of, done)]),
        against_own=_gains(shared, [(own[each.cell.seed].after, _of(each)) for each in shared]),
    )


def _gains(states: Sequence[CellState], sides: Sequence[tuple[Values, Outcome]]) -> dict[str, Gain]:
    """Every metric that all seeds have on both sides."""
    if not states:
        return {}
    cells = [each.cell for each in states]
    metrics = [
        metric for metric in sides[0][1].after if all(metric in left and metric in right.after for left, right in sides)
    ]
    return {
        metric: gain(metric, [(left, right.after, right.groups) for left, right in sides], cells) for metric in metrics
    }


def _by_seed(states: Sequence[CellState]) -> dict[int, Outcome]:
    return {each.cell.seed: each.outcome for each in states if each.outcome is not None}


def _of(state: CellState) -> Outcome:
    assert state.outcome is not None, "only finished runs are asked"
    return state.outcome


def runs_of(states: Sequence[CellState]) -> list[TransferRun]:
    """The runs and how far they are."""
    return [
        TransferRun(
            generator=each.cell.generator,
            scored_by=each.cell.scored_by,
            target=each.cell.target,
            seed=each.cell.seed,
            folder=each.folder.name if each.cell.own else f"{each.folder.parent.name}/{each.folder.name}",
            state=each.state,
            reason=each.reason,
            seconds=round(each.seconds, 2),
        )
        for each in states
    ]
