"""Twin-adapter scores: against the exact linearised score, against autograd, and what their steps promise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import by_hand, flat, plain_gradient, samples, tiny, tiny_target

from optimsyn.base.errors import DataError, ModelError, RecipeError
from optimsyn.influence.derivative.step_size import measure_step
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.derivative.twin_adapters import Twins, step_directions
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.target import Target


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize(
    ("estimator", "question_gradients"), [("adam_linear", "plain"), ("sgd", "unit"), ("adam_linear", "probability")]
)
def test_scores_are_those_of_the_exact_scorer(kind: str, estimator: str, question_gradients: Any) -> None:
    target = tiny_target(kind)
    questions, pairs = samples(5, seed=1), samples(7, seed=2)
    options: dict[str, Any] = {"estimator": estimator, "question_gradients": question_gradients}
    exact = InfluenceScorer(target, questions, **options).score(pairs)
    twin = TwinScorer(target, questions, **options, batch_tokens=400)
    found = twin.score(pairs)
    # The normalisation layers of Llama and Gemma compute in float32 whatever the weights are; GPT-2's do not.
    assert _relative(found.total, exact.total) < (1e-8 if kind == "gpt2" else 3e-4)
    assert _relative(found.loss, exact.loss) < (1e-9 if kind == "gpt2" else 1e-5)
    assert found.ids == exact.ids and found.subtasks == exact.subtasks
    assert torch.equal(found.label_tokens, exact.label_tokens)
    assert found.gradient_norm is None and found.token_shares is None
    # What the rule believes of itself is of the right size.
    assert _relative(found.total, exact.total) < 6 * twin.estimated_error["all"] < (1e-8 if kind == "gpt2" else 1e-3)


@pytest.mark.parametrize("sides", ["central", "one-sided"])
@pytest.mark.parametrize("across", ["mean", "max"])
def test_several_subtasks_and_checkpoints(
    sides: Literal["central", "one-sided"], across: Literal["mean", "max"]
) -> None:
    target = tiny_target("gpt2", warm=False)
    target.warm_up(samples(6, seed=9), steps=4, batch_size=2, lr=1e-2, checkpoints=2)
    questions, pairs = samples(6, seed=1, subtasks=("a", "b", "c")), samples(5, seed=2)
    exact = InfluenceScorer(
        target, questions, estimator="adam_linear", normalization="dot", across_subtasks=across
    ).score(pairs)
    scorer = TwinScorer(target, questions, across_subtasks=across, sides=sides)
    found = scorer.score(pairs)
    assert [plan.sides for plan in scorer.plans] == [sides] * 2
    tolerance = 1e-7 if sides == "central" else 1e-4
    assert _relative(found.by_subtask, exact.by_subtask) < tolerance
    assert _relative(found.total, exact.total) < tolerance
    assert all(set(values) and len(values) == 2 for values in scorer.epsilon.values())


def test_one_sided_form_costs_one_pass_more_than_there_are_subtasks_and_says_how_wrong_it_is() -> None:
    target = tiny_target("gpt2")
    questions, pairs = samples(6, seed=1, subtasks=("a", "b", "c")), samples(5, seed=2)
    auto = TwinScorer(target, questions)
    assert len(auto.plans[0].points) == 4
    exact = InfluenceScorer(target, questions, estimator="adam_linear", normalization="dot").score(pairs)
    off = _relative(auto.score(pairs).by_subtask, exact.by_subtask)
    assert off < 10 * max(auto.estimated_error.values())
    assert max(auto.estimated_error.values()) < 100 * off
    assert all(s.forward_error > s.error for s in auto.plans[0].steps)
    assert len(TwinScorer(target, questions, sides="central").plans[0].points) == 6


def test_the_mean_over_subtasks_is_one_direction() -> None:
    target = tiny_target("gpt2")
    questions, pairs = samples(6, seed=1, subtasks=("a", "b", "c")), samples(5, seed=2)
    whole = TwinScorer(target, questions, sides="central").score(pairs)
    one = TwinScorer(target, questions, by_subtask=False)
    assert one.subtasks == ("mean",) and len(one.plans[0].points) == 2
    assert _relative(one.score(pairs).total, whole.total) < 1e-6
    with pytest.raises(RecipeError, match="by_subtask"):
        TwinScorer(target, questions, by_subtask=False, across_subtasks="max")


@pytest.mark.parametrize("across", ["mean", "max"])
def test_token_shares_are_the_tokens_own_derivatives(across: Literal["mean", "max"]) -> None:
    target = tiny_target("gpt2")
    questions, pairs = samples(4, seed=1, subtasks=("a", "b")), samples(4, seed=2)
    scorer = TwinScorer(target, questions, across_subtasks=across, sides="central")
    found = scorer.score(pairs, token_shares=True)
    assert found.token_shares is not None
    directions = scorer.directions[0]
    step = step_directions(target, target.checkpoints[-1], directions, scorer.estimator)
    for i, pair in enumerate(pairs):
        shares = found.token_shares[i]
        assert float(shares.sum()) == pytest.approx(float(found.total[i]), rel=1e-9)
        (batch,) = target.batches([by_hand(target, pair, "pair")])
        losses, _, _ = target.token_losses(batch)
        wanted = []
        for loss in losses:
            gradient = torch.autograd.grad(loss, list(target.parameters.values()), retain_graph=True)
            by_name = dict(zip(target.parameters, gradient, strict=True))
            dots = sum((step[n] * by_name[n]).flatten(1).sum(1) for n in by_name)
            assert isinstance(dots, torch.Tensor)
            wanted.append(dots / len(losses) / directions.reference_norms["adam_linear"])
        table = torch.stack(wanted)
        column = table.mean(1) if across == "mean" else table[:, int(found.by_subtask[i].argmax())]
        torch.testing.assert_close(shares, column, rtol=1e-5, atol=1e-7 * float(table.abs().max()))


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["gemma", "gpt2"]), tokens=st.sampled_from([64, 4096]))
def test_scores_do_not_depend_on_batches(seed: int, kind: str, tokens: int) -> None:
    target = tiny_target(kind, seed=seed)
    questions, pairs = samples(3, seed=seed + 1), samples(4, seed=seed + 2)
    scorer = TwinScorer(target, questions)
    alone = torch.stack([scorer.score([pair]).total[0] for pair in pairs])
    scorer.batch_tokens = tokens
    for together in (True, False):
        scorer.together = together
        torch.testing.assert_close(scorer.score(pairs).total, alone, rtol=1e-3, atol=1e-5)


def test_full_weight_layers_with_biases() -> None:
    model = tiny("llama")
    for parameter in model.parameters():
        parameter.requires_grad = False
    layer = model.model.layers[1].mlp
    layer.down_proj.bias = torch.nn.Parameter(torch.randn(16, dtype=torch.float64) * 0.1)
    layer.down_proj.weight.requires_grad = True
    layer.up_proj.weight.requires_grad = True
    template = tiny_target(warm=False)
    target = Target.from_model(model, template.tokenizer, lora=None, max_length=200)
    target.warm_up(samples(4, seed=3), steps=3, batch_size=2, lr=1e-2)
    questions, pairs = samples(4, seed=1), samples(4, seed=2)
    exact = InfluenceScorer(target, questions, estimator="sgd", normalization="dot").score(pairs)
    assert _relative(TwinScorer(target, questions, estimator="sgd").score(pairs).total, exact.total) < 3e-4


def test_weights_modes_and_forwards_are_left_alone() -> None:
    target = tiny_target()
    scorer = TwinScorer(target, samples(3, seed=1))
    before = {name: parameter.detach().clone() for name, parameter in target.parameters.items()}
    target.model.train()
    scorer.score(samples(3, seed=2))
    assert all(module.training for module in target.model.modules())
    assert all(torch.equal(before[name], parameter) for name, parameter in target.parameters.items())
    assert not [m for m in target.model.modules() if "forward" in m.__dict__]
    target.model.eval()
    wanted = flat(plain_gradient(target, target.encode(samples(1, seed=4)[0])))
    assert float(wanted.norm()) > 0, "gradients can still be formed"


def test_zero_step_gives_the_targets_own_losses() -> None:
    target = tiny_target("gpt2")
    (batch,) = target.batches(samples(3, seed=2), 4096)
    twins = Twins(target)
    values = twins.moved([{}, {}])
    own, rows, _ = target.token_losses(batch)
    for together in (True, False):
        found, where = twins.token_losses(batch, values, together=together)
        torch.testing.assert_close(found, own.detach().expand(2, -1))
        assert torch.equal(where, rows)


def test_steps_are_kept_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, questions = tiny_target(), samples(4, seed=1)
    first = TwinScorer(target, questions, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("optimsyn.influence.derivative.twin.measure_step", None)
        patch.setattr("optimsyn.influence.derivative.scorer.relative_error", None)
        second = TwinScorer(target, questions, folder=tmp_path)
    assert second.plans == first.plans and second.fingerprint == first.fingerprint
    assert second.numerical_error == first.numerical_error < 1e-3
    assert TwinScorer(target, questions, estimator="sgd", folder=tmp_path).fingerprint != first.fingerprint
    # Steps along other directions, or of losses that count other tokens, are other steps.
    for options in ({"question_gradients": "unit"}, {"tokens": CountedTokens(end_of_pairs=1)}):
        there = set(tmp_path.glob("twin-steps-*.json"))
        kept = TwinScorer(target, questions, folder=tmp_path, **options)  # type: ignore[arg-type]
        assert len(set(tmp_path.glob("twin-steps-*.json")) - there) == 1
        assert kept.plans == TwinScorer(target, questions, **options).plans  # type: ignore[arg-type]
        assert kept.fingerprint != first.fingerprint
    for damaged in tmp_path.glob("twin-steps-*.json"):
        damaged.write_text("[{}]")
    with pytest.raises(ModelError, match=r"twin-steps-.*delete the file"):
        TwinScorer(target, questions, folder=tmp_path)


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-5, 1e-3])
def test_the_step_balances_curvature_against_rounding(noise: float) -> None:
    """ℓ(s) = sin(s + φ) with a known derivative, and noise of a known size: the choice is near the best on the grid."""
    generator = torch.Generator().manual_seed(0)
    phases = torch.linspace(0.1, 1.2, 8, dtype=torch.float64)

    def losses(epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
        def at(s: float) -> torch.Tensor:
            return torch.sin(phases + s) + noise * torch.randn(8, generator=generator, dtype=torch.float64)

        return at(epsilon), at(-epsilon)

    here = torch.sin(phases) + noise * torch.randn(8, generator=generator, dtype=torch.float64)
    step = measure_step(losses, here, start=1e-3, length=1.0)
    size = float(torch.cos(phases).square().mean().sqrt())

    def true_error(epsilon: float) -> float:
        truncation = float((torch.cos(phases) * (math.sin(epsilon) / epsilon - 1)).square().mean().sqrt())
        return math.hypot(truncation, (noise + 1e-16) / epsilon / math.sqrt(2)) / size

    best = min(true_error(1e-3 * 4.0**j) for j in range(-8, 9))
    assert true_error(step.epsilon) < 5 * best
    assert true_error(step.epsilon) < 6 * step.error + 1e-12
    assert step.forward_error >= step.error


def test_bfloat16_weights_are_moved_in_float32_and_the_error_is_told() -> None:
    target = tiny_target("llama", dtype=torch.bfloat16, warm=False)
    with torch.no_grad():
        for parameter in target.parameters.values():
            parameter.mul_(0.3)
    target.warm_up(samples(6, seed=9), steps=3, batch_size=2, lr=1e-2)
    questions, pairs = samples(6, seed=1), samples(16, seed=2)
    exact = InfluenceScorer(target, questions, precision="float32").score(pairs).total
    scorer = TwinScorer(target, questions, most_error=math.inf)
    values = Twins(target).moved([{}])
    assert {value.dtype for value in values.values()} == {torch.float32}
    off = _relative(scorer.score(pairs).total, exact)
    assert off < 10 * scorer.numerical_error
    assert scorer.numerical_error < 10 * off


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"estimator": "adam"}, r"adam is not linear.*adam_linear or sgd.*exact"),
        ({"estimator": "adam_momentum_free"}, r"not linear"),
        ({"estimator": "nonsense"}, r"there is no estimator"),
        ({"normalization": "cosine"}, r"dot.*exact"),
        ({"sides": "left"}, r"auto, central, one-sided"),
        ({"across_subtasks": "median"}, r"mean nor max"),
    ],
)
def test_wrong_options_are_refused_with_the_cure(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        TwinScorer(tiny_target(), samples(2, seed=1), **options)


def test_empty_input_and_nothing_to_score() -> None:
    target = tiny_target()
    with pytest.raises(DataError):
        TwinScorer(target, [])
    scorer = TwinScorer(target, samples(2, seed=1))
    assert len(scorer.score([])) == 0
    assert scorer.zero_gradient_baseline() == {"total": 0.0, "by_subtask": {"all": 0.0}}


@pytest.mark.slow
def test_scores_of_the_embedded_model_agree_with_the_exact_ones() -> None:
    from optimsyn.recipe.recipe import TargetSpec

    target = Target.load(TargetSpec(name="embedded", max_length=200))
    target.warm_up(samples(2, seed=1), steps=2, batch_size=2)
    questions, pairs = samples(2, seed=2), samples(3, seed=3)
    exact = InfluenceScorer(target, questions, estimator="adam_linear", normalization="dot").score(pairs)
    assert _relative(TwinScorer(target, questions).score(pairs).total, exact.total) < 0.02
