"""Scores of foretold trainings by plain automatic differentiation; the others: `optimsyn.influence.reference.plain`.

Each sample goes through the model on its own, autograd gives its gradient, and one simulation holds all pairs beside
each other: nothing of what makes `SimulatedScorer` fast has a part in it. Where that one projects gradients, so does
this: what is compared is the computation, not the projection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.gradients.projection import Layout
from optimsyn.influence.gradients.rows import AdamScale, layout_for
from optimsyn.influence.simulated.scorer import BatchTraining
from optimsyn.influence.simulated.training import SimulatedTraining
from optimsyn.recipe.sections.influence import Influence
from optimsyn.target.encoding import Encoded, as_sample, counted
from optimsyn.target.target import Target

Item = Pair | Question | Sample


def plain_simulated(
    target: Target,
    pairs: Sequence[Item],
    questions: Sequence[Question | Sample],
    config: Influence,
    training: BatchTraining,
    *,
    layout: Layout | None = None,
    held_back: Collection[int] = (),
    report: Callable[[int], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores by all questions and by those that are not held back, [n] float64 each.

    The adapter is left at the last checkpoint.

    Args:
        target: A warmed-up target.
        pairs: What to score.
        questions: The validation questions.
        config: The recipe's `influence`.
        training: What pairs are placed in.
        layout: How gradients are held; None: as fits.
        held_back: Places of the questions that the second score leaves out; the others must hold every subtask.
        report: Called with 1 after each backward pass.

    Raises:
        DataError: There are no companions.
        ModelError: The target has not been warmed up with this adapter, or a sample cannot be encoded.
    """
    samples = [as_sample(question) for question in questions]
    fill = [target.encode(item) for item in training.used]
    trained = [*(target.encode(pair) for pair in pairs), *fill]
    asked = [counted(target.encode(sample), config.tokens, "question") for sample in samples]
    layout = layout or layout_for(target, 2 * len(trained) + len(asked))
    checkpoint = target.checkpoints[-1]
    target.load_checkpoint(checkpoint)
    scale = AdamScale.of(target, checkpoint, layout)
    told = report or (lambda count: None)

    def rows(encoded: Sequence[Encoded], *, plain: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scaled, whole, losses = [], [], []
        for item in encoded:
            gradient, loss = _gradient(target, item)
            scaled.append(_row(layout, {name: part * scale.roots[name] for name, part in gradient.items()}))
            whole += [_row(layout, gradient)] if plain else []
            losses.append(loss)
            told(1)
        return torch.stack(scaled), torch.stack(whole or scaled[:1]), torch.tensor(losses, dtype=torch.float64)

    asked_rows, _, asked_losses = rows(asked, plain=False)
    simulated = SimulatedTraining.from_rows(
        checkpoint,
        scale,
        (asked_rows, asked_losses),
        rows(trained, plain=True),
        lr=training.fine_tune.lr,
        steps=training.steps,
        max_grad_norm=training.max_grad_norm,
    )
    count, size = len(pairs), training.fine_tune.batch_size
    weights = torch.zeros(count + 1, len(trained), dtype=torch.float64)
    weights[:, count:] = training.weights(len(fill))
    weights[:count, :count] = torch.eye(count, dtype=torch.float64) / size
    losses = simulated.losses(weights)
    # [n, Q]: without less with it.
    gains = losses[count] - losses[:count]
    names = [sample.subtask or "all" for sample in samples]
    kept = [place for place in range(len(names)) if place not in set(held_back)]
    return _across(gains, range(len(names)), names, config), _across(gains, kept, names, config)


def _across(gains: torch.Tensor, places: Sequence[int], names: Sequence[str], config: Influence) -> torch.Tensor:
    by_subtask = torch.stack(
        [gains[:, [k for k in places if names[k] == name]].mean(1) for name in sorted(set(names))], dim=1
    )
    return by_subtask.mean(1) if config.across_subtasks == "mean" else by_subtask.max(1).values


def _gradient(target: Target, encoded: Encoded) -> tuple[dict[str, torch.Tensor], float]:
    """Of one sample's loss by parameter name, and the loss."""
    (batch,) = target.batches([encoded], 2**62)
    with target.scoring():
        loss = target.losses(batch)[0]
        parts = torch.autograd.grad(loss, list(target.parameters.values()), allow_unused=True)
    found = {
        name: (torch.zeros_like(parameter) if part is None else part).detach().to(target.dtype)
        for (name, parameter), part in zip(target.parameters.items(), parts, strict=True)
    }
    return found, float(loss.detach())


def _row(layout: Layout, gradient: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([layout.project(name, part[None]).cpu()[0] for name, part in gradient.items()])
