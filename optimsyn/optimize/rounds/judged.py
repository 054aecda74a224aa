"""The rubrics that a policy has sampled in rounds, with their rewards: kept on disk, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, pvariance

from optimsyn.base.files import append_jsonl, iter_json, write_jsonl


@dataclass(frozen=True)
class JudgedRubric:
    """A rubric and what its pair earned.

    Attributes:
        round: The round that it was sampled in, from 1; of held passages, after how many rounds of training.
        held: Whether its passage is never trained on.
        group: Index of its group in the round.
        draw: 0, or 1 for a group that was drawn again.
        passage_id: Its passage.
        seed: Of its pair.
        text: As the reward reads it.
        prompt: Tokens of the prompt.
        completion: Tokens of the rubric with its end token.
        finished: False: it was cut at `max_tokens`.
        valid: Whether its pair passed all checks.
        reward: None where the pair could not be judged.
        warm_up: By which target: 0, or the round after which it was warmed up again.
    """

    round: int
    held: bool
    group: int
    draw: int
    passage_id: str
    seed: int
    text: str
    prompt: list[int]
    completion: list[int]
    finished: bool
    valid: bool
    reward: float | None
    warm_up: int = 0


Place = tuple[int, bool, int, int]
"""Round, held, group and draw."""


class RubricFile:
    """All groups of a training. A group of which a kill left a part is drawn anew, and judged from the ledger.

    Args:
        path: The file.
        size: Rubrics in a group.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._groups: dict[Place, list[JudgedRubric]] = {}
        rows = iter_json(path, tolerate_torn=True) if path.is_file() else ()
        for row in (JudgedRubric(**row) for row in rows):
            self._groups.setdefault((row.round, row.held, row.group, row.draw), []).append(row)
        self._groups = {place: rows for place, rows in self._groups.items() if len(rows) == size}
        write_jsonl(path, (asdict(row) for row in self.all()))

    @property
    def warm_up(self) -> int:
        """By which target the rubrics were judged; see `JudgedRubric.warm_up`."""
        return max((row.warm_up for rows in self._groups.values() for row in rows), default=0)

    def judged_again(self, rows: Sequence[JudgedRubric]) -> None:
        """Replaces all rows, at once: those of two targets are never together in the file."""
        write_jsonl(self.path, (asdict(row) for row in rows))
        self._groups = {}
        self._file(rows)

    def all(self) -> list[JudgedRubric]:
        """All rubrics, in the order of sampling."""
        return [row for rows in self._groups.values() for row in rows]

    def group(self, place: Place) -> list[JudgedRubric] | None:
        """The rubrics of a group; None if it is not there."""
        return self._groups.get(place)

    def add(self, rows: Sequence[JudgedRubric]) -> None:
        """Keeps whole groups, durably."""
        append_jsonl(self.path, [asdict(row) for row in rows])
        self._file(rows)

    def _file(self, rows: Iterable[JudgedRubric]) -> None:
        for row in rows:
            self._groups.setdefault((row.round, row.held, row.group, row.draw), []).append(row)


@dataclass(frozen=True)
class Rubric:
    """A rubric to train on: equal texts for one passage are one, with the mean of their rewards."""

    prompt: list[int]
    completion: list[int]
    valid: bool
    reward: float


def by_passage(judged: Iterable[JudgedRubric]) -> dict[str, list[Rubric]]:
    """The rubrics of each passage, without those that were cut or could not be judged."""
    texts: dict[str, dict[str, list[JudgedRubric]]] = {}
    for row in judged:
        if row.finished and row.reward is not None:
            texts.setdefault(row.passage_id, {}).setdefault(row.text.strip(), []).append(row)
    return {
        passage: [
            Rubric(
                same[0].prompt,
                same[0].completion,
                all(row.valid for row in same),
                mean(row.reward for row in same if row.reward is not None),
            )
            for same in distinct.values()
        ]
        for passage, distinct in texts.items()
    }


def has_signal(judged: Iterable[JudgedRubric]) -> bool:
    """Whether rubrics of one passage can be told apart: two different ones with different rewards."""
    return any(len({rubric.reward for rubric in rubrics}) > 1 for rubrics in by_passage(judged).values())


def noise(passages: Iterable[Sequence[Rubric]]) -> float:
    """The standard deviation of the valid rubrics' rewards within a passage, pooled over the passages.

    Most of it is chance: what the generator made of a rubric this time. 0 where no passage has two valid rubrics.
    """
    spread = [[rubric.reward for rubric in rubrics if rubric.valid] for rubrics in passages]
    spread = [rewards for rewards in spread if len(rewards) > 1]
    free = sum(len(rewards) - 1 for rewards in spread)
    return math.sqrt(sum(len(rewards) * pvariance(rewards) for rewards in spread) / free) if free else 0.0


def best(passages: Iterable[Sequence[Rubric]]) -> list[Rubric]:
    """The valid rubrics above their passage's mean."""
    kept = []
    for rubrics in passages:
        baseline = mean(rubric.reward for rubric in rubrics)
        kept += [rubric for rubric in rubrics if rubric.valid and rubric.reward > baseline]
    return kept


def preferences(passages: Sequence[Sequence[Rubric]]) -> list[tuple[Rubric, Rubric]]:
    """A pair (better, worse) of rubrics of each passage: the best valid one and the worst one.

    A passage whose best is not ahead by more than `noise` has none. The widest difference of a passage is the surest
    one, and no rubric is in two pairs.
    """
    least, pairs = noise(passages), []
    for rubrics in passages:
        better = max((rubric for rubric in rubrics if rubric.valid), key=lambda rubric: rubric.reward, default=None)
        worse = min(rubrics, key=lambda rubric: rubric.reward, default=None)
        if better is not None and worse is not None and better.reward - worse.reward > least:
            pairs.append((better, worse))
    return pairs
