"""Seeded splits by document group, of passages by stage, and seeded samples that keep every subtask."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from optimsyn.base.counting import plural
from optimsyn.base.errors import DataError
from optimsyn.data.records import Question

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import Recipe

_T = TypeVar("_T")

Part = Literal["warm_up", "optimize", "synthesize"]
PARTS: tuple[Part, ...] = get_args(Part)
"""The parts of a run that may have passages of their own."""
# With fewer passages in a part, or more requests for each of them, parts of their own would cost more than they bring.
_FEWEST = 2
_MOST_REQUESTS = 4


def split_by_group(
    questions: Sequence[Question], test_fraction: float, seed: int
) -> tuple[list[Question], list[Question]]:
    """`(validation, test)`: holds back whole groups until about `test_fraction` of the questions are test questions.

    If all questions are of one group, whole documents are held back instead. The split depends on the groups and the
    seed only, not on the order of the rows.

    Raises:
        DataError: All questions are of one group and one document, so that none can be held back.
    """
    group_of = {question.id: question.group for question in questions}
    if len(set(group_of.values())) < 2:
        # A single group says nothing about related questions; the documents do.
        group_of = {question.id: question.document_id or question.group for question in questions}
    sizes: defaultdict[str, int] = defaultdict(int)
    for question in questions:
        sizes[group_of[question.id]] += 1
    if len(sizes) < 2:
        group = next(iter(sizes), "")
        raise DataError(
            f"questions.test_fraction: all {len(questions)} questions are of one group ({group!r}), which may not be "
            "split; name a file or dataset of test questions under questions.test, or give the rows a finer `group`"
        )
    names = sorted(sizes)
    random.Random(seed).shuffle(names)
    wanted = len(questions) * test_fraction
    held_back: set[str] = set()
    count = 0
    for name in names:
        if len(held_back) == len(names) - 1:
            break
        # Take the group if that brings the count closer to the target.
        if abs(count + sizes[name] - wanted) < abs(count - wanted):
            held_back.add(name)
            count += sizes[name]
    if not held_back:
        held_back.add(min(names, key=lambda name: (sizes[name], names.index(name))))
    validation = [q for q in questions if group_of[q.id] not in held_back]
    return validation, [q for q in questions if group_of[q.id] in held_back]


def evenly(items: Sequence[_T], count: int) -> Sequence[_T]:
    """Up to `count` items, evenly from the whole list, so that every part of it is represented."""
    return items if len(items) <= count else [items[index * len(items) // count] for index in range(count)]


def balanced_sample(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """At most `limit` questions, drawn with the seed in turn from each subtask, in the original order.

    Small subtasks are kept whole before large ones get more than their share.
    """
    if limit is None or limit >= len(questions):
        return list(questions)
    generator = random.Random(seed)
    pools: defaultdict[str, list[int]] = defaultdict(list)
    for position, question in enumerate(questions):
        pools[question.subtask].append(position)
    for name in sorted(pools):
        generator.shuffle(pools[name])
    chosen: list[int] = []
    while len(chosen) < limit:
        for name in sorted(pools):
            if pools[name] and len(chosen) < limit:
                chosen.append(pools[name].pop())
    return [questions[i] for i in sorted(chosen)]


def passage_parts(recipe: Recipe, passages: int) -> dict[Part, range] | None:
    """The places of each part's passages in the seeded order; None where all parts use all passages.

    Passages are shared out in proportion to what each part asks for. The optimisers, which may come back to a passage
    in each of their steps, count for at most half.

    Args:
        recipe: Its `synthesis.passages` is disjoint, or there are no parts.
        passages: How many there are.
    """
    if recipe.synthesis.passages != "disjoint":
        return None
    asked = _asked(recipe)
    places = [round(passages * sum_so_far / sum(asked.values())) for sum_so_far in accumulate([0, *asked.values()])]
    parts = {part: range(*ends) for part, ends in zip(PARTS, pairwise(places), strict=True)}
    enough = all(
        len(parts[part]) >= min(_FEWEST, requests) and requests <= _MOST_REQUESTS * len(parts[part])
        for part, requests in asked.items()
    )
    return parts if enough else None


def passage_notes(recipe: Recipe, passages: int) -> list[str]:
    """What a run with disjoint passages says of them, in a sentence without its full stop."""
    if recipe.synthesis.passages != "disjoint":
        return []
    parts = passage_parts(recipe, passages)
    if parts is None:
        asked = ", ".join(map(str, _asked(recipe).values()))
        return [
            f"{passages} passages are too few for warm-up, optimisers and synthesis to have their own (they ask for "
            f"{asked}), so all share them"
        ]
    sizes = [len(parts[part]) for part in PARTS]
    return [
        f"Warm-up ({plural(sizes[0], 'passage')}), optimisers ({sizes[1]}) and synthesis ({sizes[2]}) share no passage"
    ]


def _asked(recipe: Recipe) -> dict[Part, int]:
    """How many passages each part asks for, repeated ones included."""
    prompt, policy = recipe.optimizers.prompt, recipe.optimizers.policy
    trained = policy.steps * policy.passages_per_step * (policy.rounds if policy.in_rounds else 1)
    held = policy.held_passages if policy.in_rounds else 0
    learning = max(prompt.passages if prompt.enabled else 0, trained + held if policy.enabled else 0)
    drafts, candidates = recipe.warm_up.pairs, max(recipe.synthesis.first_round, recipe.synthesis.pool or 0)
    return {"warm_up": drafts, "optimize": min(learning, drafts + candidates), "synthesize": candidates}
