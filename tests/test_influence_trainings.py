"""Side-by-side trainings against plain trainings with `torch.optim.AdamW`, one after the other."""

from __future__ import annotations

import pytest
import torch
from influence_helpers import samples, tiny_target

from optimsyn.base.errors import DataError
from optimsyn.influence.trainings import Trainings, TrainingSettings
from optimsyn.recipe.recipe import CountedTokens
from optimsyn.target.encoding import counted


def plain(target, checkpoint, batches, questions, looks, lr, decay):
    """The long way: a real optimiser whose state is put back, a batch at a time."""
    target.load_checkpoint(checkpoint)
    optimizer = torch.optim.AdamW(target.parameters.values(), lr=lr, weight_decay=0.0)
    for name, parameter in target.parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(checkpoint.step)),
            "exp_avg": checkpoint.exp_avg[name].clone(),
            "exp_avg_sq": checkpoint.exp_avg_sq[name].clone(),
        }
    found = []
    for number, rows in enumerate(batches, 1):
        optimizer.param_groups[0]["lr"] = lr * (1 - (number - 1) / len(batches)) if decay else lr
        optimizer.zero_grad()
        with torch.enable_grad():
            (batch,) = target.batches(rows, 2**62)
            target.losses(batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(list(target.parameters.values()), 1.0)
        optimizer.step()
        if number in looks:
            with torch.no_grad():
                found.append([float(target.losses(next(target.batches([q], 2**62)))) for q in questions])
    optimizer.zero_grad()
    target.load_checkpoint(checkpoint)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize(("rows", "decay"), [(1, True), (6, False), (64, True)])
def test_side_by_side_is_one_after_the_other(kind, rows, decay):
    target = tiny_target(kind, warm=False)
    target.warm_up(samples(6), steps=4, batch_size=2, lr=1e-2)
    checkpoint = target.checkpoints[-1]
    pool = [target.encode(item) for item in samples(5, seed=3)]
    questions = [counted(target.encode(item), CountedTokens(), "question") for item in samples(4, seed=9)]
    schedules = [[[0, 1], [2, 3], [4, 0]], [[4, 4], [1, 0], [2, 2]], [[3, 2], [3, 2], [3, 2]]]
    trainings = Trainings(target, checkpoint, pool, questions, TrainingSettings(lr=5e-3, decay=decay), rows=rows)
    found = trainings.run(schedules, looks=(1, 3))
    for schedule, mine in zip(schedules, found, strict=True):
        batches = [[pool[i] for i in step] for step in schedule]
        expected = plain(target, checkpoint, batches, questions, (1, 3), 5e-3, decay)
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(trainings.start(), plain_losses(target, checkpoint, questions), rtol=1e-9, atol=1e-9)


def plain_losses(target, checkpoint, questions):
    target.load_checkpoint(checkpoint)
    with torch.no_grad():
        losses = [float(target.losses(next(target.batches([q], 2**62)))) for q in questions]
    return torch.tensor(losses, dtype=torch.float64)


def test_the_target_is_left_at_the_checkpoint():
    target = tiny_target(warm=False)
    target.warm_up(samples(4), steps=2, batch_size=2)
    before = {name: parameter.detach().clone() for name, parameter in target.parameters.items()}
    pool = [target.encode(item) for item in samples(3)]
    Trainings(target, target.checkpoints[-1], pool, pool, TrainingSettings(lr=1e-2)).run([[[0], [1]]], looks=[2])
    for name, parameter in target.parameters.items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_schedules_of_unlike_shape_are_refused():
    target = tiny_target(warm=False)
    target.warm_up(samples(4), steps=2, batch_size=2)
    pool = [target.encode(item) for item in samples(3)]
    trainings = Trainings(target, target.checkpoints[-1], pool, pool)
    with pytest.raises(DataError, match="one length and one batch size"):
        trainings.run([[[0], [1]], [[0, 1], [1, 2]]], looks=[1])
    with pytest.raises(DataError, match="between step 1 and step 2"):
        trainings.run([[[0], [1]]], looks=[3])
    with pytest.raises(DataError, match="at least one question"):
        Trainings(target, target.checkpoints[-1], pool, [])
