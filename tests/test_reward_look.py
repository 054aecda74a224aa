"""A look at the reward: its numbers against independent ones, its verdicts against rewards known to be noise."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from influence_helpers import by_hand, plain_loss, tiny_target
from reward_look_helpers import OldDifference, Shuffled, made_pairs, made_questions

from optimsyn.base.errors import DataError
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.reference.plain import plain_scores
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.trainings import schedule
from optimsyn.recipe.recipe import CountedTokens
from optimsyn.recipe.sections.influence import Influence
from optimsyn.reward.look import measure as module
from optimsyn.reward.look.measure import ScorerSetup, look_at_reward
from optimsyn.reward.look.options import LookOptions
from optimsyn.reward.look.record import Interval, RewardLook, TrainedOn, reward_look_rows
from optimsyn.reward.look.trainings import subset_intervals, train_on_subsets, trainings_of
from optimsyn.reward.look.verdict import judged
from optimsyn.target.target import Target

NOWHERE = Interval(None, None, None)
TRAINING = TrainedOn(
    subsets=8,
    members=4,
    steps=12,
    batch_size=2,
    lr=2e-4,
    questions=8,
    held_out=True,
    start=2.8,
    top=2.3,
    bottom=2.9,
    random=2.6,
    agreement=Interval(0.7, 0.2, 0.95),
    difference=Interval(0.6, 0.1, 1.1),
)
LOOK = RewardLook(
    verdict="too few to tell",
    reasons=(),
    pairs=12,
    trained_on=0,
    method="",
    numerical_error=1e-4,
    stated_error=None,
    absolute_error=1e-6,
    agreement=1.0,
    spread=0.01,
    end_share=0.0,
    end_share_if_counted=0.7,
    length=Interval(0.1, -0.4, 0.6),
    length_within=True,
    length_pairs=24,
    empty=0.0,
    training=TRAINING,
)


@pytest.mark.parametrize("estimator", ["adam", "adam_momentum_free", "adam_linear", "sgd", "less"])
@pytest.mark.parametrize(("normalization", "across"), [("dot", "mean"), ("cosine", "max")])
@pytest.mark.parametrize("kind", ["plain", "unit", "probability"])
def test_plain_scores_are_those_of_the_exact_scorer(estimator: Any, normalization: Any, across: Any, kind: Any) -> None:
    target = tiny_target()
    target.warm_up(made_pairs(6), steps=4, batch_size=2, lr=1e-2, checkpoints=2)
    pairs, questions = made_pairs(4), made_questions(9, subtasks=3)
    options: dict[str, Any] = {
        "estimator": estimator,
        "normalization": normalization,
        "across_subtasks": across,
        "question_gradients": kind,
    }
    config = Influence(**options)
    held_back = [0, 4, 8]
    found = plain_scores(target, pairs, questions, config, held_back=held_back)
    exact = InfluenceScorer(target, questions, **options)
    torch.testing.assert_close(found.total, exact.score(pairs).total, rtol=1e-6, atol=1e-12)
    kept = InfluenceScorer(target, [q for i, q in enumerate(questions) if i not in held_back], **options)
    lengths = torch.tensor([by_hand(target, question, "question").label_tokens for question in questions])
    asked = [i for i in range(len(questions)) if i not in held_back]
    for mine, whole in zip(kept.directions, exact.directions, strict=True):
        # Scales are those of all questions.
        mine.reference_norms.update(whole.reference_norms)
        norms, losses = torch.tensor([whole.gradient_norms, whole.losses], dtype=torch.float64)
        votes = {"plain": 1.0, "unit": 1 / norms, "probability": lengths * torch.exp(-lengths * losses)}[kind]
        squares = (votes * norms).square()
        for vector in mine.vectors.values():
            vector.mul_(float((squares[asked].mean() / squares.mean()).sqrt()))
    torch.testing.assert_close(found.apart, kept.score(pairs).total, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "root", "sum"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_end_brings_what_the_token_shares_say(reduction: Any, weight: float) -> None:
    target, pairs, questions = tiny_target(), made_pairs(4), made_questions(4)
    for end, part, rest in ((weight, "end", "content"), (1.0, "end_if", "content_if")):
        told = CountedTokens(end_of_pairs=weight, reduction=reduction)
        found = plain_scores(target, pairs, questions, Influence(tokens=told))
        shown = CountedTokens(end_of_pairs=end, reduction=reduction)
        scores = InfluenceScorer(target, questions, tokens=shown).score(pairs, token_shares=True)
        assert scores.token_shares is not None
        scale = InfluenceScorer(target, questions, tokens=told).directions[0].reference_norms["adam_linear"]
        ends = torch.stack([share[-1] if end else torch.tensor(0.0).double() for share in scores.token_shares])
        torch.testing.assert_close(getattr(found, part) / scale, ends, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(getattr(found, rest) / scale, scores.total - ends, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("scorer", [InfluenceScorer, TwinScorer])
def test_a_healthy_reward_is_no_noise(scorer: Any, tmp_path: Path) -> None:
    target, pairs, questions = tiny_target(dtype=torch.float32), made_pairs(16), made_questions(18)
    built = scorer(target, questions)
    before = {name: parameter.clone() for name, parameter in target.parameters.items()}
    told: list[tuple[int, int]] = []
    look = look_at_reward(
        ScorerSetup(built, target, questions), pairs, LookOptions(lr=1e-2), report=lambda *counts: told.append(counts)
    )
    assert look.verdict in ("sound", "doubtful") and look.pairs == 12 and look.length_pairs == 16
    assert look.numerical_error is not None and look.numerical_error < 0.01 and look.agreement == pytest.approx(1)
    assert look.end_share == 0 and look.end_share_if_counted is not None and look.end_share_if_counted > 0
    counted_alike = replace(look, end_share=look.end_share_if_counted)
    for shown, there in ((counted_alike, False), (look, True)):
        assert any("if it counted like every other token" in note for _, _, note in reward_look_rows(shown)) == there
    assert look.training is not None and look.training.subsets == 8 and look.training.members == 4
    assert look.training.held_out and look.training.questions == 6
    assert told[-1] == (18 + 12 + 8, 18 + 12 + 8)
    assert all(torch.equal(before[name], parameter) for name, parameter in target.parameters.items())
    assert look == look_at_reward(ScorerSetup(built, target, questions), pairs, LookOptions(lr=1e-2)), "the same twice"
    look.save(tmp_path / "look.json")
    assert RewardLook.load(tmp_path / "look.json") == look
    assert look.verdict in look._repr_html_() and "rank agreement" in look._repr_html_()


def test_shuffled_directions_are_noise() -> None:
    target, pairs, questions = tiny_target(dtype=torch.float32), made_pairs(12), made_questions(12)
    look = look_at_reward(
        ScorerSetup(Shuffled(target, questions), target, questions), pairs, LookOptions(random_subsets=0)
    )
    assert look.verdict == "noise" and any("off by" in reason for reason in look.reasons)


def test_the_old_finite_difference_in_bfloat16_is_noise() -> None:
    target, pairs, questions = tiny_target(dtype=torch.bfloat16), made_pairs(12), made_questions(12)
    look = look_at_reward(
        ScorerSetup(OldDifference(target, questions), target, questions), pairs, LookOptions(random_subsets=0)
    )
    assert look.verdict == "noise"
    exact = look_at_reward(
        ScorerSetup(InfluenceScorer(target, questions), target, questions), pairs, LookOptions(random_subsets=0)
    )
    assert exact.verdict in ("sound", "doubtful"), exact.reasons


def test_a_scorer_that_says_how_far_it_is_off_is_believed() -> None:
    target, pairs, questions = tiny_target(dtype=torch.float32), made_pairs(8), made_questions(6)
    scorer: Any = InfluenceScorer(target, questions)
    scorer.method, scorer.numerical_error = "twin", 1.08
    look = look_at_reward(ScorerSetup(scorer, target, questions), pairs, LookOptions(random_subsets=0))
    assert look.verdict == "noise" and look.stated_error == 1.08 and look.method == "twin"


def test_few_pairs_are_never_sound() -> None:
    target, questions = tiny_target(dtype=torch.float32), made_questions(6)
    scorer = InfluenceScorer(target, questions)
    for count, words in ((1, "there was one pair"), (3, "there were 3 pairs")):
        look = look_at_reward(ScorerSetup(scorer, target, questions), made_pairs(count))
        assert look.training is None
        assert look.verdict in ("too few to tell", "doubtful")
        assert look.verdict == "doubtful" or words in look.reasons[0]
    with pytest.raises(DataError, match="at least one pair"):
        look_at_reward(ScorerSetup(scorer, target, questions), [])


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, "sound", "real training agreed with it"),
        ({"training": None}, "sound", "was not looked at"),
        (
            {"training": replace(TRAINING, agreement=Interval(0.3, -0.4, 0.8), difference=Interval(0.1, -1, 1))},
            "sound",
            "was not shown",
        ),
        ({"training": replace(TRAINING, agreement=Interval(-0.8, -0.9, -0.1))}, "doubtful", "against the ranking"),
        ({"training": replace(TRAINING, difference=Interval(-0.8, -0.9, -0.1))}, "doubtful", "against the ranking"),
        ({"numerical_error": 0.06}, "doubtful", "off by 6% of their size"),
        ({"stated_error": 0.2}, "doubtful", "off by 20%"),
        ({"end_share": 0.15}, "sound", ""),
        ({"end_share": 0.3}, "doubtful", "30% of the influence comes from the token that ends"),
        ({"length": Interval(0.71, 0.4, 0.9)}, "doubtful", "short answers earn more"),
        ({"length": Interval(-0.71, -0.9, -0.4)}, "doubtful", "long answers earn more"),
        ({"length": Interval(0.6, -0.1, 0.9)}, "sound", ""),
        ({"empty": 0.006}, "doubtful", "momentum alone"),
        ({"numerical_error": 0.5}, "noise", "off by 50% of their size"),
        ({"numerical_error": None}, "noise", "not finite"),
        ({"spread": 0.0}, "noise", "all pairs have the same score"),
        ({"numerical_error": 0.1, "absolute_error": 0.02}, "noise", "differ from each other"),
        ({"agreement": 0.4}, "noise", "rank agreement with plain automatic differentiation is 0.40"),
        ({"agreement": 0.4, "pairs": 5}, "too few to tell", "there were 5 pairs to look at, and it takes 6"),
        ({"numerical_error": 0.9, "pairs": 2}, "too few to tell", ""),
    ],
)
def test_verdicts_follow_the_rules(changes: dict[str, Any], verdict: str, words: str) -> None:
    look = judged(replace(LOOK, **changes))
    assert look.verdict == verdict and words in look.sentence
    assert RewardLook.from_json(json.loads(json.dumps(look.to_json(), allow_nan=False))) == look
    assert verdict in look._repr_html_()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "look.json").write_text('{"verdict": "sound"}')
    with pytest.raises(DataError, match=r"look\.json: not a readable look"):
        RewardLook.load(tmp_path / "look.json")


def test_training_is_that_of_adamw_from_the_warm_checkpoint() -> None:
    target, pairs, questions = tiny_target(), made_pairs(6), made_questions(4)
    found = train_on_subsets(
        trainings_of(target, pairs, questions, Influence(tokens=CountedTokens()), lr=1e-2),
        [0.5, 0.1, 0.9, 0.3, 0.2, 0.4],
        LookOptions(random_subsets=3, steps=3, batch_size=1, seed=7),
        held_out=True,
    )
    assert (found.subsets, found.members, found.batch_size) == (5, 2, 1)
    assert found.start == pytest.approx(_loss(target, questions), rel=1e-9)
    # The best are the pairs 0 and 2 and the first to be trained on, the worst 1 and 4.
    assert found.top == pytest.approx(_trained(target, [pairs[0], pairs[2]], questions, seed=7), rel=1e-9)
    assert found.bottom == pytest.approx(_trained(target, [pairs[1], pairs[4]], questions, seed=8), rel=1e-9)
    assert found.difference.value == pytest.approx(found.bottom - found.top)


def test_real_training_is_measured_by_the_probability_where_the_direction_is_its_gradient() -> None:
    target, pairs, questions = tiny_target(), made_pairs(12), made_questions(18)
    config = Influence(question_gradients="probability")
    scorer = InfluenceScorer(target, questions, question_gradients="probability")
    look = look_at_reward(ScorerSetup(scorer, target, questions, config), pairs, LookOptions(lr=1e-2))
    assert look.training is not None and look.training.by == "miss" and 0 < look.training.start <= 1
    assert look.numerical_error is not None and look.numerical_error < 1e-6
    shown = [f"{name}: {note}" for name, _, note in reward_look_rows(look)]
    assert sum("probability of another answer" in row for row in shown) == 2
    assert not any("loss" in row for row in shown)
    # The same training as by the loss, with the measure written out; so small a power that no digit is lost.
    powers = [0.1, 0.2, 0.1, 0.3]
    found = train_on_subsets(
        trainings_of(target, pairs[:4], questions[:4], Influence(), lr=1e-2),
        [0.4, 0.3, 0.2, 0.1],
        LookOptions(random_subsets=0, steps=3, batch_size=1, seed=7),
        held_out=True,
        lengths=powers,
    )

    def missed() -> float:
        losses = [_loss(target, [question]) for question in questions[:4]]
        return sum(1 - math.exp(-n * loss) for n, loss in zip(powers, losses, strict=True)) / 4

    assert found.start == pytest.approx(missed(), rel=1e-9)
    best = _trained(target, pairs[:2], questions[:4], seed=7, measure=missed)
    assert found.top == pytest.approx(best, rel=1e-9)


def _loss(target: Target, questions: list[Any]) -> float:
    losses = []
    for question in questions:
        encoded = target.encode(question)
        # The last label is the end of the text, which does not count.
        labels = [*encoded.labels[:-1], -100]
        losses.append(float(plain_loss(target, replace(encoded, labels=labels)).detach()))
    return sum(losses) / len(losses)


def _trained(
    target: Target, pairs: list[Any], questions: list[Any], *, seed: int, measure: Callable[[], float] | None = None
) -> float:
    """The loss, or a measure, after three steps of torch's own AdamW that goes on from the checkpoint's state."""
    checkpoint = target.checkpoints[-1]
    target.load_checkpoint(checkpoint)
    optimizer = torch.optim.AdamW(target.parameters.values(), lr=1e-2, weight_decay=0.0)
    for name, parameter in target.parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(checkpoint.step)),
            "exp_avg": checkpoint.exp_avg[name].clone(),
            "exp_avg_sq": checkpoint.exp_avg_sq[name].clone(),
        }
    for number, (row,) in enumerate(schedule(range(len(pairs)), 3, 1, seed)):
        optimizer.param_groups[0]["lr"] = 1e-2 * (3 - number) / 3
        optimizer.zero_grad()
        plain_loss(target, target.encode(pairs[row])).backward()
        torch.nn.utils.clip_grad_norm_(target.parameters.values(), 1.0)
        optimizer.step()
    loss = _loss(target, questions) if measure is None else measure()
    target.load_checkpoint(checkpoint)
    return loss


def test_intervals_tell_order_from_chance() -> None:
    means = np.linspace(-1, 1, 10)
    means = np.concatenate([[1.0, -1.0], means[1:-1]])
    start, questions = np.full(8, 3.0), np.linspace(0, 0.01, 8)
    losses = 2.5 - 0.5 * means[:, None] + questions
    agreement, difference = subset_intervals(means, start, losses, seed=0)
    assert agreement.value == pytest.approx(1) and agreement.above_zero
    assert difference.value == pytest.approx(1.0)
    agreement, difference = subset_intervals(means, start, 5 - losses, seed=0)
    assert agreement.below_zero and difference.value == pytest.approx(-1.0)
    # Random subsets that end further apart than the best and the worst: no telling.
    scattered = losses + np.random.default_rng(0).normal(0, 2, size=(10, 1))
    _, difference = subset_intervals(means, start, scattered, seed=0)
    assert not difference.above_zero and not difference.below_zero


def test_questions_are_parted_by_group_and_every_subtask_keeps_most() -> None:
    questions = made_questions(36, subtasks=3)
    held = module.questions_held_back(questions, seed=3)
    assert held == module.questions_held_back(questions, seed=3)
    kept = [q for i, q in enumerate(questions) if i not in held]
    assert 6 <= len(held) <= 12
    assert not {questions[i].group for i in held} & {q.group for q in kept}
    assert all(count >= 8 for count in Counter(q.subtask for q in kept).values())
    assert len(module.questions_held_back(made_questions(90), seed=0)) <= 12
    assert module.questions_held_back(questions[:11], seed=0) == []


def test_unseen_and_different_pairs_come_first() -> None:
    pairs = made_pairs(10)
    pairs += [pairs[9].model_copy(update={"id": "again"})]
    chosen = module.pairs_to_train_on(pairs, {f"p{i}" for i in range(6)}, 6, seed=0)
    ids = [pairs[i].id for i in chosen]
    assert {"p6", "p7", "p8"} < set(ids[:4]) and ids[3:4] != ["p0"] and len(ids) == 6
    assert len({"p9", "again"} & set(ids)) == 1


@pytest.mark.parametrize("passages", [3, 12])
def test_length_is_compared_within_passages_where_there_are_enough_pairs(passages: int) -> None:
    target, pairs, questions = tiny_target(dtype=torch.float32), made_pairs(12, passages=passages), made_questions(4)
    scores = InfluenceScorer(target, questions).score(pairs)
    found, within = module.length_agreement(pairs, scores)
    x, y = 1 / scores.label_tokens.double().numpy(), scores.total.numpy()
    if passages == 3:
        for name in {pair.passage_id for pair in pairs}:
            rows = [i for i, pair in enumerate(pairs) if pair.passage_id == name]
            x[rows] -= x[rows].mean()
            y[rows] -= y[rows].mean()
    assert within == (passages == 3)
    assert found.value == pytest.approx(np.corrcoef(x, y)[0, 1]) if np.std(x) > 0 else found == NOWHERE
