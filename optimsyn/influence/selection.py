"""Ways to choose a part of a pool for training."""

from __future__ import annotations

from collections.abc import Sequence


def top(scores: Sequence[float], count: int) -> list[int]:
    """The indices of the highest scores, in the pool's order; the first of equal ones."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    return sorted(order[:count])


def balanced(scores: Sequence[float], answers: Sequence[str], count: int) -> list[int]:
    """The best pair of each answer, then the second best of each, and so on, in the pool's order.

    Answers are compared without case and outer blanks.
    """
    waiting: dict[str, list[int]] = {}
    for place in sorted(range(len(scores)), key=lambda place: (-scores[place], place)):
        waiting.setdefault(answers[place].strip().casefold(), []).append(place)
    chosen: list[int] = []
    while len(chosen) < min(count, len(scores)):
        for queue in waiting.values():
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return sorted(chosen)
