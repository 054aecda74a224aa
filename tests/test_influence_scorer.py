"""Scores against an independent float64 computation, directions, caching, baselines and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from influence_helpers import by_hand, flat, plain_gradient, plain_loss, samples, tiny_target
from influence_reference import reference_gamma, reference_scores

from optimsyn.base.errors import DataError, ModelError, RecipeError
from optimsyn.data.records import Pair, Question
from optimsyn.influence.directions import Directions, compute_directions, question_votes
from optimsyn.influence.estimators import BUILT_IN
from optimsyn.influence.gradients.taps import GradientTaps
from optimsyn.influence.options import ScoringOptions
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.target import Target


@pytest.fixture(scope="module")
def warmed() -> Target:
    target = tiny_target("gemma", warm=False)
    target.warm_up(samples(6, seed=9), steps=4, batch_size=2, lr=1e-2, checkpoints=2)
    # Unequal weights, so that a forgotten η̄ shows.
    first = target.checkpoints[0]
    target.checkpoints[0] = type(first)(first.step, first.lr * 3, first.state, first.exp_avg, first.exp_avg_sq)
    return target


QUESTIONS = samples(5, seed=1, subtasks=("b", "a"))


@pytest.mark.parametrize("question_gradients", ["plain", "unit", "probability"])
@pytest.mark.parametrize("normalization", ["cosine", "dot"])
@pytest.mark.parametrize("name", list(BUILT_IN))
def test_scores_equal_an_independent_computation(
    warmed: Target, name: str, normalization: Any, question_gradients: Any
) -> None:
    pairs = samples(4, seed=2)
    options: dict[str, Any] = {
        "estimator": name,
        "normalization": normalization,
        "question_gradients": question_gradients,
    }
    scores = InfluenceScorer(warmed, QUESTIONS, **options, batch_tokens=150).score(pairs)
    subtasks, wanted = reference_scores(
        warmed, QUESTIONS, pairs, name, normalization == "cosine", question_gradients=question_gradients
    )
    assert scores.subtasks == tuple(subtasks) == ("a", "b")
    torch.testing.assert_close(scores.by_subtask, wanted, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(scores.total, wanted.mean(1), rtol=1e-6, atol=1e-10)
    highest = InfluenceScorer(warmed, QUESTIONS, **options, across_subtasks="max").score(pairs)
    torch.testing.assert_close(highest.total, wanted.max(1).values, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("kind", ["plain", "unit", "probability"])
def test_directions_are_the_explicit_mean_of_gradients(
    warmed: Target, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    checkpoint = warmed.checkpoints[-1]
    encoded, subtasks = [warmed.encode(q) for q in QUESTIONS], [q.subtask for q in QUESTIONS]

    def computed() -> Directions:
        options = ScoringOptions(batch_tokens=400, question_gradients=kind)
        return compute_directions(GradientTaps(warmed), checkpoint, encoded, subtasks, options, BUILT_IN["adam"])

    whole = computed()
    monkeypatch.setattr("optimsyn.influence.gradients.taps.HOLD_BYTES", 1)
    singly = computed()
    gradients = [flat(plain_gradient(warmed, item)) for item in encoded]
    if kind == "probability":
        counts = [item.label_tokens for item in encoded]
        chances = [math.exp(-n * float(plain_loss(warmed, e).detach())) for n, e in zip(counts, encoded, strict=True)]
        gradients = [g * n * p for g, n, p in zip(gradients, counts, chances, strict=True)]
    usual = (sum(float(g @ g) for g in gradients) / len(gradients)) ** 0.5
    for k, subtask in enumerate(("a", "b")):
        lengths = [float(g.norm()) if kind == "unit" else usual for g in gradients]
        mine = [g / s for g, s, name in zip(gradients, lengths, subtasks, strict=True) if name == subtask]
        wanted = torch.stack(mine).mean(0)
        for found in (whole, singly):
            torch.testing.assert_close(flat({n: v[k] for n, v in found.vectors.items()}), wanted, rtol=1e-8, atol=1e-12)
    norms = torch.stack([flat(plain_gradient(warmed, item)).norm() for item in encoded])
    torch.testing.assert_close(torch.tensor(whole.gradient_norms), norms.float())
    assert whole.losses == pytest.approx([float(plain_loss(warmed, e).detach()) for e in encoded])


def test_scores_carry_norm_loss_and_counts_in_the_callers_order(warmed: Target) -> None:
    pairs = samples(6, seed=5)
    scorer = InfluenceScorer(warmed, QUESTIONS)
    scores = scorer.score(pairs)
    assert scores.ids == tuple(p.id for p in pairs)
    assert len(scores) == 6
    assert scores.label_tokens.tolist() == [len(p.completion) for p in pairs], "without the end of the text"
    assert {probe.end_tokens for probe in scorer.probes} == {0}, "errors are those of what is scored"
    backwards = scorer.score(pairs[::-1])
    torch.testing.assert_close(backwards.total.flip(0), scores.total, rtol=1e-9, atol=1e-12)
    # Weights 3/4 and 1/4, see the fixture.
    expected = torch.zeros(6, dtype=torch.float64)
    for weight, checkpoint in zip((0.75, 0.25), warmed.checkpoints, strict=True):
        warmed.load_checkpoint(checkpoint)
        expected += weight * torch.stack(
            [flat(plain_gradient(warmed, by_hand(warmed, p, "pair"))).norm() for p in pairs]
        )
    torch.testing.assert_close(scores.gradient_norm, expected, rtol=1e-8, atol=1e-12)
    empty = scorer.score([])
    assert empty.total.shape == (0,)
    assert empty.by_subtask.shape == (0, 2)


def test_cosine_of_a_question_with_itself_is_one() -> None:
    target = tiny_target(dtype=torch.float32)
    question, alike = samples(1, seed=3), CountedTokens(end_of_pairs=0)
    for kind in ("plain", "unit"):
        scorer = InfluenceScorer(target, question, estimator="sgd", question_gradients=kind, tokens=alike)
        assert float(scorer.score(question).total[0]) == pytest.approx(1.0, abs=1e-6)
    # An untrained target gives its forty letters a probability of about 1e-70.
    with pytest.raises(ModelError, match=r"none of the 1 validation answers a probability .* to plain"):
        InfluenceScorer(target, question, estimator="sgd", question_gradients="probability", tokens=alike)


def test_zero_gradient_baseline_is_what_momentum_earns(warmed: Target) -> None:
    scorer = InfluenceScorer(warmed, QUESTIONS, estimator="adam", normalization="cosine")
    baseline = scorer.zero_gradient_baseline()
    total = 0.0
    for weight, checkpoint, directions in zip((0.75, 0.25), warmed.checkpoints, scorer.directions, strict=True):
        m, v = flat(checkpoint.exp_avg), flat(checkpoint.exp_avg_sq)
        gamma = reference_gamma("adam", torch.zeros_like(m), m, v, checkpoint.step)
        for k in range(2):
            direction = flat({n: t[k] for n, t in directions.vectors.items()})
            total += weight * float(direction @ gamma / gamma.norm()) / 2
    assert baseline["total"] == pytest.approx(total, rel=1e-6)
    assert set(baseline["by_subtask"]) == {"a", "b"}  # type: ignore[arg-type]
    for name in ("adam_momentum_free", "adam_linear", "sgd"):
        assert InfluenceScorer(warmed, QUESTIONS, estimator=name).zero_gradient_baseline()["total"] == 0.0


def test_directions_are_kept_in_the_folder_and_stale_ones_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_target()
    first = InfluenceScorer(target, QUESTIONS, folder=tmp_path).score(samples(3))
    assert len(list(tmp_path.iterdir())) == 1

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr("optimsyn.influence.scorer.compute_directions", refuse)
        # Another estimator needs no other directions.
        InfluenceScorer(target, QUESTIONS, folder=tmp_path, estimator="sgd", normalization="dot")
        again = InfluenceScorer(target, QUESTIONS, folder=tmp_path).score(samples(3))
        assert torch.equal(first.by_subtask, again.by_subtask)
        for other in ({"questions": QUESTIONS[:4]}, {"question_gradients": "unit"}):
            with pytest.raises(AssertionError):
                InfluenceScorer(target, **{"questions": QUESTIONS, "folder": tmp_path, **other})
    unit = InfluenceScorer(target, QUESTIONS, question_gradients="unit", folder=tmp_path).score(samples(3))
    assert torch.equal(
        unit.by_subtask, InfluenceScorer(target, QUESTIONS, question_gradients="unit").score(samples(3)).by_subtask
    )
    assert not torch.allclose(unit.by_subtask, first.by_subtask, rtol=1e-3)
    target.warm_up(samples(4), steps=2)
    InfluenceScorer(target, QUESTIONS, folder=tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 3, "of two kinds, and after another warm-up"
    for file in files:
        file.write_bytes(b"torn")
    with pytest.raises(ModelError, match="delete the file"):
        InfluenceScorer(target, QUESTIONS, folder=tmp_path)


def test_weights_changed_by_others_do_not_change_scores() -> None:
    target = tiny_target()
    scorer = InfluenceScorer(target, QUESTIONS)
    before = scorer.score(samples(2)).total
    with torch.no_grad():
        for parameter in target.parameters.values():
            parameter.add_(1.0)
    assert torch.equal(scorer.score(samples(2)).total, before)


def test_pairs_and_questions_are_taken_as_they_are(warmed: Target) -> None:
    question = Question(id="q", question="Which word?", answer="this one", subtask="words")
    pair = Pair(id="p", question="Which word?", answer="this one", passage_id="x")
    scorer = InfluenceScorer(warmed, [question], estimator="adam_linear")
    assert scorer.subtasks == ("words",)
    a, b = scorer.score([pair]).total, scorer.score([question]).total
    assert torch.equal(a, b)


def test_what_is_wrong_is_refused_with_its_cure(warmed: Target) -> None:
    with pytest.raises(ModelError, match="warm_up"):
        InfluenceScorer(tiny_target(warm=False), QUESTIONS)
    with pytest.raises(DataError, match="at least one validation question"):
        InfluenceScorer(warmed, [])
    with pytest.raises(RecipeError, match=r"influence\.estimator"):
        InfluenceScorer(warmed, QUESTIONS, estimator="kfac")
    with pytest.raises(RecipeError, match="neither mean nor max"):
        InfluenceScorer(warmed, QUESTIONS, across_subtasks="sum")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="neither cosine nor dot"):
        InfluenceScorer(warmed, QUESTIONS, normalization="none")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"influence\.question_gradients: 'mean' is none of plain, unit, probability"):
        InfluenceScorer(warmed, QUESTIONS, question_gradients="mean")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"influence\.question_gradients: 'mean' is none of plain, unit, probability"):
        question_votes("mean", *torch.ones(3, 2))  # type: ignore[arg-type]
    hollow = Pair(id="hollow", question="Which?", answer=" ", passage_id="x")
    with pytest.raises(ModelError, match="'hollow' has an empty answer"):
        InfluenceScorer(warmed, QUESTIONS).score([hollow])
