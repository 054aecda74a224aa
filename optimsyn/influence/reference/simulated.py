"""Scores of simulated trainings by plain automatic differentiation; the others: `optimsyn.influence.reference.plain`.

Each sample goes through the model separately, autograd gives its gradient, and one simulation holds all pairs together,
without the optimisations of `SimulatedScorer`. Where that one projects gradients, so does this, so that the computation
is compared and not the projection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import torch

from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.gradients.projection import Layout
from optimsyn.influence.gradients.rows import AdamScale, layout_for
from optimsyn.influence.simulated.scorer import BatchTraining
from optimsyn.influence.simulated.training import SimulatedTraining, WarmGradients
from optimsyn.target.encoding import Encoded, as_sample
from optimsyn.target.target import Target

Item = Pair | Question | Sample


def plain_gains(
    target: Target,
    pairs: Sequence[Item],
    questions: Sequence[Encoded],
    training: BatchTraining,
    *,
    layout: Layout | None = None,
    report: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """The decrease of each question's loss by each pair, [n, Q] float64; `plain_total` turns it into scores.

    The adapter is left at the last checkpoint.

    Raises:
        DataError: There are no companions.
        ModelError: The target has not been warmed up with this adapter, or a sample cannot be encoded.
    """
    fill = [target.encode(item) for item in training.used]
    trained = [*(target.encode(pair) for pair in pairs), *fill]
    layout = layout or layout_for(target, 2 * len(trained) + len(questions))
    checkpoint = target.checkpoints[-1]
    target.load_checkpoint(checkpoint)
    scale = AdamScale.of(target, checkpoint, layout)

    def rows(encoded: Sequence[Encoded], *, plain: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scaled, whole, losses = [], [], []
        for item in encoded:
            gradient, loss = _gradient(target, item)
            scaled.append(_row(layout, {name: part * scale.roots[name] for name, part in gradient.items()}))
            whole += [_row(layout, gradient)] if plain else []
            losses.append(loss)
            if report is not None:
                report(1)
        return torch.stack(scaled), torch.stack(whole or scaled[:1]), torch.tensor(losses, dtype=torch.float64)

    asked, _, asked_losses = rows(questions, plain=False)
    simulated = SimulatedTraining.of(
        WarmGradients(checkpoint, scale, asked, asked_losses, *rows(trained, plain=True)),
        lr=training.fine_tune.lr,
        steps=training.steps,
        max_grad_norm=training.max_grad_norm,
    )
    count, size = len(pairs), training.fine_tune.batch_size
    weights = torch.zeros(count + 1, len(trained), dtype=torch.float64)
    weights[:, count:] = training.weights(len(fill))
    weights[:count, :count] = torch.eye(count, dtype=torch.float64) / size
    losses = simulated.losses(weights)
    # Loss without the pair minus loss with it.
    return losses[count] - losses[:count]


def plain_total(
    gains: torch.Tensor,
    questions: Sequence[Question | Sample],
    across: Literal["mean", "max"],
    *,
    held_back: Collection[int] = (),
) -> torch.Tensor:
    """The scores by the questions that are not held back, [n] float64.

    `gains` [n, Q] are those of `plain_gains`; the other questions must cover every subtask.
    """
    names = [as_sample(question).subtask or "all" for question in questions]
    places = [place for place in range(len(names)) if place not in set(held_back)]
    by_subtask = torch.stack(
        [gains[:, [k for k in places if names[k] == name]].mean(1) for name in sorted(set(names))], dim=1
    )
    return by_subtask.mean(1) if across == "mean" else by_subtask.max(1).values


def _gradient(target: Target, encoded: Encoded) -> tuple[dict[str, torch.Tensor], float]:
    """The gradient of one sample's loss by parameter name, and the loss."""
    (batch,) = target.batches([encoded], 2**62)
    with target.scoring():
        loss = target.losses(batch)[0]
        parts = torch.autograd.grad(loss, list(target.parameters.values()), allow_unused=True)
    gradient = {
        name: (torch.zeros_like(parameter) if part is None else part).detach().to(target.dtype)
        for (name, parameter), part in zip(target.parameters.items(), parts, strict=True)
    }
    return gradient, float(loss.detach())


def _row(layout: Layout, gradient: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([layout.project(name, part[None]).cpu()[0] for name, part in gradient.items()])
