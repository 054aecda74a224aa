"""Simulated trainings against real ones, against autograd's kernels, and laws of the set that is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from influence_helpers import samples, tiny_target
from scipy.stats import spearmanr

from optimsyn.base.errors import DataError
from optimsyn.data.records import Sample
from optimsyn.influence.gradients.projection import Projection
from optimsyn.influence.gradients.rows import layout_for
from optimsyn.influence.simulated.training import SimulatedTraining, WarmGradients
from optimsyn.influence.trainings import Trainings, TrainingSettings
from optimsyn.recipe.recipe import CountedTokens
from optimsyn.target.encoding import Encoded, counted
from optimsyn.target.target import Target

ONE = CountedTokens()


def gradient(target: Target, encoded: Encoded) -> torch.Tensor:
    """Of Σ w_t ℓ_t with all logits, by autograd, flat in the target's order."""
    ids = torch.tensor([encoded.input_ids])
    logits = target.model(input_ids=ids).logits[0, :-1].to(target.dtype)
    labels = torch.tensor(encoded.labels[1:])
    kept = labels != -100
    losses = torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="none")
    loss = (losses * torch.tensor(encoded.token_weights, dtype=losses.dtype)).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(target.parameters.values()))]).detach()


def flat(target: Target, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in target.parameters])


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target("gemma")


def both(target: Target, pairs: int = 8, questions: int = 6) -> tuple[list[Encoded], list[Encoded]]:
    return (
        [target.encode(item) for item in samples(pairs, seed=4)],
        [counted(target.encode(item), ONE, "question") for item in samples(questions, seed=5)],
    )


def test_its_kernels_are_autograds(target: Target) -> None:
    pairs, questions = both(target)
    checkpoint = target.checkpoints[-1]
    found = SimulatedTraining.of(WarmGradients.of(target, checkpoint, pairs, questions), lr=1e-3, steps=3)
    target.load_checkpoint(checkpoint)
    g = torch.stack([gradient(target, item) for item in pairs])
    q = torch.stack([gradient(target, item) for item in questions])
    second = flat(target, checkpoint.exp_avg_sq)
    scale = 1 / ((second / (1 - 0.999**checkpoint.step)).sqrt() + 1e-8)
    momentum = flat(target, checkpoint.exp_avg)
    for mine, expected in [
        (found.question_kernel, q * scale @ g.t()),
        (found.pair_kernel, g * scale @ g.t()),
        (found.gram, g @ g.t()),
        (found.question_momentum, q * scale @ momentum),
        (found.pair_momentum, g * scale @ momentum),
    ]:
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_a_small_step_is_a_real_step() -> None:
    target = tiny_target("gemma", warm=False)
    # After so many steps one more hardly changes v, which is taken as it stands at the checkpoint.
    target.warm_up(samples(6, seed=100), steps=150, batch_size=2, lr=1e-4)
    pairs, questions = both(target)
    checkpoint = target.checkpoints[-1]
    # So small a rate that nothing bends.
    lr = 1e-6
    simulated = SimulatedTraining.of(WarmGradients.of(target, checkpoint, pairs, questions), lr=lr, steps=1)
    sets = [[0, 1], [2, 3], [4, 4], [5, 7], [6, 0]]
    real = Trainings(target, checkpoint, pairs, questions, TrainingSettings(lr=lr))
    expected = real.start().mean() - real.run([[one] for one in sets], looks=[1]).mean(2)[:, 0]
    torch.testing.assert_close(simulated.decrease(sets), expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))
    # The same training, measured by a mean of exp(-N loss).
    lengths = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, 1.0], dtype=torch.float64)
    before, after = real.start(), real.run([[one] for one in sets], looks=[1])[:, 0]
    expected = (torch.exp(-lengths * after) - torch.exp(-lengths * before)).mean(1)
    rises = replace(simulated, lengths=lengths).decrease(sets)
    torch.testing.assert_close(rises, expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))


def test_it_predicts_longer_trainings_better_than_chance(target: Target) -> None:
    pairs, questions = both(target, pairs=12, questions=8)
    checkpoint = target.checkpoints[-1]
    sets = [[i, (i * 5 + 3) % 12, (i * 7 + 1) % 12] for i in range(12)]
    simulated = SimulatedTraining.of(WarmGradients.of(target, checkpoint, pairs, questions), lr=3e-3, steps=8)
    real = Trainings(target, checkpoint, pairs, questions, TrainingSettings(lr=3e-3))
    truth = real.start().mean() - real.run([[one] * 8 for one in sets], looks=[8]).mean(2)[:, 0]
    assert spearmanr(simulated.decrease(sets), truth).statistic > 0.6


def answering(letter: str, count: int) -> list[Sample]:
    made = []
    for item in samples(count, seed=ord(letter)):
        messages = (item.messages[0], {"role": "assistant", "content": letter})
        made.append(
            item.model_copy(update={"id": f"{letter}-{item.id}", "completion": f" {letter}", "messages": messages})
        )
    return made


def test_a_set_does_not_repeat_one_answer(target: Target) -> None:
    """Eight questions want n, four want y: the pairs of highest single score all say n, the set says both."""
    pairs = [target.encode(item) for item in [*answering("n", 10), *answering("y", 10)]]
    wanted = [*answering("n", 18)[10:], *answering("y", 14)[10:]]
    questions = [counted(target.encode(item), ONE, "question") for item in wanted]
    checkpoint = target.checkpoints[-1]
    simulated = SimulatedTraining.of(WarmGradients.of(target, checkpoint, pairs, questions), lr=1e-2, steps=12)
    chosen = simulated.select(6)
    assert len(set(chosen)) == 6
    said = {"n" if place < 10 else "y" for place in chosen}
    assert said == {"n", "y"}
    real = Trainings(target, checkpoint, pairs, questions, TrainingSettings(lr=1e-2))
    order = simulated.question_kernel.mean(0).argsort(descending=True)[:6].tolist()
    losses = real.run([[chosen] * 12, [order] * 12], looks=[12]).mean(2)[:, 0]
    assert losses[0] <= losses[1] + 1e-9


@pytest.mark.parametrize("lengths", [None, [1.0, 0.2, 0.5, 0.1, 1.0, 0.3]])
def test_the_marginal_is_the_slope_of_the_decrease(target: Target, lengths: list[float] | None) -> None:
    pairs, questions = both(target)
    simulated = SimulatedTraining.of(
        WarmGradients.of(target, target.checkpoints[-1], pairs, questions), lr=1e-3, steps=5, lengths=lengths
    )

    def compared(weights: torch.Tensor) -> torch.Tensor:
        losses = simulated.losses(weights)
        return (losses if lengths is None else -torch.exp(-torch.tensor(lengths) * losses)).mean()

    given, h = [1, 4], 1e-5
    base = torch.zeros(1, 8, dtype=torch.float64)
    base[0, given] = 0.5
    for place, slope in enumerate(simulated.marginal(given).tolist()):
        more, less = base * (1 - h), base * (1 + h)
        more[0, place] += h
        less[0, place] -= h
        change = (compared(less) - compared(more)) / (2 * h)
        assert slope == pytest.approx(float(change), rel=1e-4, abs=1e-8)


def test_a_projection_keeps_the_order(target: Target) -> None:
    pairs, questions = both(target, pairs=12)
    checkpoint = target.checkpoints[-1]
    sets = [[i] for i in range(12)]
    whole = SimulatedTraining.of(WarmGradients.of(target, checkpoint, pairs, questions), lr=1e-3, steps=4)
    wide = Projection(out_size=64, in_size=64)
    same = SimulatedTraining.of(
        WarmGradients.of(target, checkpoint, pairs, questions, projection=wide), lr=1e-3, steps=4
    )
    # No side of these layers is longer than 64, so nothing is lost.
    torch.testing.assert_close(same.decrease(sets), whole.decrease(sets), rtol=1e-6, atol=1e-9)


def made_up(count: int, questions: int = 5) -> SimulatedTraining:
    """Of random gradients, without a model; the second half of the pairs helps nobody."""
    generator = torch.Generator().manual_seed(3)
    pairs = torch.randn(count, 16, generator=generator, dtype=torch.float64)
    asked = torch.randn(questions, 16, generator=generator, dtype=torch.float64)
    pairs[count // 2 :, 8:], asked[:, :8] = 0, 0
    return SimulatedTraining(
        question_kernel=asked @ pairs.t(),
        pair_kernel=pairs @ pairs.t(),
        gram=pairs @ pairs.t(),
        question_momentum=torch.zeros(questions, dtype=torch.float64),
        pair_momentum=torch.zeros(count, dtype=torch.float64),
        question_losses=torch.full((questions,), 2.0, dtype=torch.float64),
        pair_losses=torch.full((count,), 2.0, dtype=torch.float64),
        step=10,
        beta1=0.9,
        lr=0.05,
        steps=4,
        max_grad_norm=1.0,
    )


def test_a_large_set_takes_few_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated = made_up(400)
    trained: list[int] = []
    losses = SimulatedTraining.losses

    def counting(self: SimulatedTraining, weights: torch.Tensor) -> torch.Tensor:
        trained.append(len(weights) * len(self))
        return losses(self, weights)

    monkeypatch.setattr(SimulatedTraining, "losses", counting)
    chosen = simulated.select(200)
    assert len(set(chosen)) == len(chosen) == 200
    # A round looks at all pairs once; trainings of shortlists hold these pairs only. One by one it would be 200 rounds.
    assert sum(size == 400 for size in trained) < 80
    assert sum(size for size in trained if size != 400) < 32 * 24 * 56
    monkeypatch.undo()
    assert chosen[:20] == simulated.select(20)
    gains = simulated.decrease([chosen, list(range(200)), list(range(200, 400))])
    assert float(gains[0]) > float(gains[1]) > float(gains[2])


def test_a_part_of_the_pairs_is_the_same_training() -> None:
    simulated = made_up(12)
    part = simulated.of_places([2, 9, 5])
    expected = simulated.decrease([[2, 9], [5]])
    torch.testing.assert_close(part.decrease([[0, 1], [2]]), expected, rtol=1e-12, atol=0)
    assert set(simulated.select(2, [2, 9, 5])) <= {2, 9, 5}
    assert simulated.select(2, [2, 9, 5]) == [[2, 9, 5][i] for i in part.select(2)]


def test_gradients_that_do_not_fit_are_projected(target: Target) -> None:
    width = layout_for(target, 1).width
    whole = width * 10 * target.dtype.itemsize
    assert layout_for(target, 10, limit=whole).projection is None
    narrow = layout_for(target, 10, limit=whole // 2)
    assert narrow.projection is not None
    assert narrow.width * 10 * target.dtype.itemsize <= whole // 2
    assert layout_for(target, 10, limit=1).projection == Projection(4, 4), "the narrowest there is"


def test_what_cannot_be_predicted_is_refused(target: Target) -> None:
    pairs, questions = both(target, pairs=2)
    with pytest.raises(DataError, match="at least one pair"):
        SimulatedTraining.of(WarmGradients.of(target, target.checkpoints[-1], [], questions), lr=1e-3, steps=1)
    simulated = SimulatedTraining.of(
        WarmGradients.of(target, target.checkpoints[-1], pairs, questions), lr=1e-3, steps=1
    )
    with pytest.raises(DataError, match="3 pairs cannot be chosen from 2"):
        simulated.select(3)
