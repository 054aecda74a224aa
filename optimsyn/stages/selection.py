"""Which of a variant's candidates are kept: those that teach most together, those of highest influence, or the first.

Selected as a set, because single influences mislead where many pairs teach the same: each of a hundred pairs with the
commonest answer looks as good as the first, and training on them collapses (docs/concepts/selection.md).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from optimsyn.base.seeds import derive_seed
from optimsyn.influence.selection import top
from optimsyn.reward.judgements import content_key
from optimsyn.runs.results.built_in import Predicted

if TYPE_CHECKING:
    from optimsyn.data.records import Pair
    from optimsyn.influence.simulated.training import SimulatedTraining
    from optimsyn.reward.judgements import Judgement
    from optimsyn.stages.shared import Tools

RANDOM_SETS = 8
"""How many random sets of candidates the chosen one is compared with."""


@dataclass(frozen=True)
class Selection:
    """What is kept of one variant's candidates.

    Attributes:
        rows: Judgements in the order of writing.
        predicted: Set only where sets are compared.
    """

    rows: list[Judgement]
    predicted: Predicted | None = None


def select(tools: Tools, candidates: Mapping[str, Sequence[Judgement]], count: int) -> dict[str, Selection]:
    """Chooses by the recipe's `synthesis.select`, or by the reward where that has no direction (`Recipe.selection`).

    Args:
        tools: Tools of the run.
        candidates: Valid, distinct candidates of each variant, in the order of writing.
        count: How many to keep of each variant.

    Raises:
        ModelError: The target has no gradient of a pair.
    """
    way = tools.recipe.selection
    if way == "set":
        return _by_set(tools, candidates, count)
    if way == "first":
        return {variant: Selection(list(rows[:count])) for variant, rows in candidates.items()}
    return {
        variant: Selection([rows[place] for place in top([row.influence or 0.0 for row in rows], count)])
        for variant, rows in candidates.items()
    }


def _by_set(tools: Tools, candidates: Mapping[str, Sequence[Judgement]], count: int) -> dict[str, Selection]:
    pairs: dict[str, Pair] = {}
    places: dict[str, list[int]] = {}
    for variant, rows in candidates.items():
        keys = []
        for row in rows:
            assert row.pair is not None, "a valid judgement has a pair"
            key = content_key(row.pair)
            pairs.setdefault(key, row.pair)
            keys.append(key)
        # A pair that several variants share is scored once.
        order = {key: place for place, key in enumerate(pairs)}
        places[variant] = [order[key] for key in keys]
    trainings = _trainings(tools, list(pairs.values()), places)
    selections = {}
    for variant, rows in candidates.items():
        simulated = trainings.pop(variant)
        selected = sorted(simulated.select(count)) if count < len(rows) else list(range(len(rows)))
        generator = random.Random(derive_seed(tools.recipe.seed, "random sets", variant))
        others = [sorted(generator.sample(range(len(rows)), count)) for _ in range(RANDOM_SETS)]
        by_loss = replace(simulated, lengths=None)
        now = float(by_loss.start().mean())
        after = (now - by_loss.decrease([selected, *others])).tolist()
        predicted = Predicted(now=now, kept=after[0], random=sum(after[1:]) / RANDOM_SETS, steps=simulated.steps)
        selections[variant] = Selection([rows[place] for place in selected], predicted)
    return selections


def _trainings(
    tools: Tools, pairs: Sequence[Pair], places: Mapping[str, Sequence[int]]
) -> dict[str, SimulatedTraining]:
    """A simulated training per variant; gradients of questions and shared pairs are computed once."""
    from optimsyn.influence.directions import counted_length
    from optimsyn.influence.gradients.rows import AdamScale, gradient_rows, layout_for
    from optimsyn.influence.gradients.taps import GradientTaps
    from optimsyn.influence.simulated.training import HORIZON, SimulatedTraining, WarmGradients
    from optimsyn.target.encoding import as_sample, counted
    from optimsyn.training.fine_tuning import MAX_GRAD_NORM

    recipe, target = tools.recipe, tools.target
    questions = [
        counted(target.encode(as_sample(item)), recipe.influence.tokens, "question") for item in tools.reward_questions
    ]
    lengths = None
    if recipe.influence.is_influence and recipe.influence.question_gradients == "probability":
        lengths = [counted_length(question) for question in questions]
    checkpoint = target.checkpoints[-1]
    layout = layout_for(target, 2 * len(pairs) + len(questions))
    target.load_checkpoint(checkpoint)
    taps = GradientTaps(target)
    scale = AdamScale.of(target, checkpoint, layout)
    report = None
    if tools.stage is not None:
        report = tools.stage.count(len(questions) + len(pairs), "gradients to select by", last=False).add

    rows = partial(gradient_rows, taps, layout, batch_tokens=recipe.influence.batch_tokens, report=report)
    (question_rows,), question_losses = rows(questions, [scale.roots])
    # As they are trained on, with every label.
    (scaled, plain), losses = rows([target.encode(as_sample(pair)) for pair in pairs], [scale.roots, None])
    return {
        variant: SimulatedTraining.of(
            WarmGradients(
                checkpoint,
                scale,
                question_rows,
                question_losses,
                scaled[list(indices)],
                plain[list(indices)],
                losses[list(indices)],
            ),
            lengths=lengths,
            lr=recipe.fine_tune.lr,
            steps=min(recipe.fine_tune.steps, HORIZON),
            max_grad_norm=MAX_GRAD_NORM,
        )
        for variant, indices in places.items()
    }
