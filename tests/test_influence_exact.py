"""Every estimator's score is an independent float64 computation, over random tiny models of every make."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import by_hand, samples
from influence_reference import MAKES, random_target, reference_gradients, reference_scores

from optimsyn.influence.estimators import BUILT_IN
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.target import Target

NORMALIZATIONS: tuple[Any, ...] = ("cosine", "dot")
ACROSS: tuple[Any, ...] = ("mean", "max")
QUESTION_GRADIENTS: tuple[Any, ...] = ("plain", "unit", "probability")


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(["llama", "gemma"]),
    make=st.sampled_from(MAKES),
    seed=st.integers(0, 10_000),
    checkpoints=st.integers(1, 3),
    subtasks=st.integers(1, 3),
    across=st.sampled_from(ACROSS),
    question_gradients=st.sampled_from(QUESTION_GRADIENTS),
    batch_tokens=st.sampled_from([1, 130, 10_000]),
    recompute=st.booleans(),
)
def test_every_estimator_equals_the_long_way(
    kind: str,
    make: str,
    seed: int,
    checkpoints: int,
    subtasks: int,
    across: Any,
    question_gradients: Any,
    batch_tokens: int,
    recompute: bool,
) -> None:
    target = random_target(kind, make, seed=seed, checkpoints=checkpoints, recompute=recompute)
    questions = samples(subtasks + 1, seed=seed, subtasks=("c", "a", "b")[:subtasks])
    pairs = samples(3, seed=seed + 1)
    gradients = reference_gradients(target, questions, pairs)
    with TemporaryDirectory() as folder:
        for name in BUILT_IN:
            for normalization in NORMALIZATIONS:
                scores = InfluenceScorer(
                    target,
                    questions,
                    estimator=name,
                    normalization=normalization,
                    across_subtasks=across,
                    question_gradients=question_gradients,
                    batch_tokens=batch_tokens,
                    folder=Path(folder),
                ).score(pairs)
                names, wanted = reference_scores(
                    target, questions, pairs, name, normalization == "cosine", gradients, question_gradients
                )
                assert scores.subtasks == tuple(names)
                # Relative to the size of scores: a sum of terms of both signs may itself be as small as it likes.
                bound = {"rtol": 1e-6, "atol": 1e-6 * float(wanted.abs().mean()) * 1e-2}
                torch.testing.assert_close(scores.by_subtask, wanted, **bound)
                total = wanted.mean(1) if across == "mean" else wanted.max(1).values
                torch.testing.assert_close(scores.total, total, **bound)


@pytest.mark.parametrize("question_gradients", QUESTION_GRADIENTS)
@pytest.mark.parametrize("make", MAKES)
def test_each_make_of_target_is_met(make: str, question_gradients: Any) -> None:
    target = random_target("llama", make, seed=1, checkpoints=1, recompute=True)
    pairs, questions = samples(2, seed=2), samples(2, seed=3)
    scores = InfluenceScorer(
        target, questions, estimator="adam", normalization="cosine", question_gradients=question_gradients
    ).score(pairs)
    _, wanted = reference_scores(target, questions, pairs, "adam", True, question_gradients=question_gradients)
    torch.testing.assert_close(scores.by_subtask, wanted, rtol=1e-6, atol=1e-12)


def unreduced(target: Target, item: Any, *, end: bool) -> torch.Tensor:
    """The mean of -log p over an answer's tokens, from all logits; the token that ends the text stands last."""
    ids = torch.tensor(target.encode(item).input_ids)
    first = next(i for i, label in enumerate(target.encode(item).labels) if label != -100)
    assert ids[-1] == target.tokenizer.eos_token_id
    logits = target.model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    last = len(ids) if end else len(ids) - 1
    return -torch.stack([logits[i - 1, ids[i]] for i in range(first, last)]).mean()


@pytest.mark.parametrize("asked", ["plain", "probability"])
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_scores_are_what_a_real_step_on_the_pair_does_to_the_mean_loss_or_probability(kind: str, asked: Any) -> None:
    """Up to one constant for all pairs: how fast the questions' mean loss falls along the step for a pair's full loss.

    The step is torch's own, Adam with frozen second moments and no momentum, that is RMSprop at its first step. What is
    trained on is every token of the pair, the end too, as fine-tuning does; what is measured is every question's answer
    without its end, as the evaluation does.
    """
    target = random_target(kind, "lora", seed=4, checkpoints=1)
    checkpoint = target.checkpoints[-1]
    questions, pairs = samples(5, seed=21), samples(6, seed=22)
    whole = CountedTokens(end_of_pairs=1)
    scores = InfluenceScorer(target, questions, tokens=whole, question_gradients=asked).score(pairs).total
    target.load_checkpoint(checkpoint)
    parameters = target.parameters

    def measured() -> float:
        with torch.no_grad():
            losses = torch.stack([unreduced(target, item, end=False) for item in questions])
            if asked == "plain":
                return float(losses.mean())
            counts = torch.tensor([by_hand(target, item, "question").label_tokens for item in questions])
            return -float(torch.exp(-counts * losses).mean())

    rates = []
    for pair in pairs:
        moved = []
        for lr in (1e-9, -1e-9):
            target.load_checkpoint(checkpoint)
            # alpha 1: the second moment stays what the warm-up left, corrected for its bias.
            optimizer = torch.optim.RMSprop(parameters.values(), lr=abs(lr), alpha=1.0, eps=1e-8, maximize=lr < 0)
            for name, parameter in parameters.items():
                second = checkpoint.exp_avg_sq[name].clone() / (1 - 0.999**checkpoint.step)
                optimizer.state[parameter] = {"step": torch.tensor(0.0), "square_avg": second}
            optimizer.zero_grad()
            torch.autograd.backward([unreduced(target, pair, end=True)])
            optimizer.step()
            moved.append(measured())
        rates.append((moved[1] - moved[0]) / 2e-9)
    target.load_checkpoint(checkpoint)
    falls = torch.tensor(rates, dtype=torch.float64)
    constant = float(falls @ scores / (scores @ scores))
    assert constant > 0
    torch.testing.assert_close(scores * constant, falls, rtol=1e-5, atol=1e-6 * float(falls.abs().max()))
    # Neither choice is idle: with the paper's directions, or without the end of the pairs, it is not that rate.
    others: tuple[dict[str, Any], ...] = (
        {"question_gradients": "unit"},
        {"question_gradients": "plain" if asked == "probability" else "probability"},
        {"tokens": CountedTokens(end_of_pairs=0), "question_gradients": asked},
        {"tokens": CountedTokens(end_of_pairs=1), "question_gradients": "unit"},
        {"tokens": CountedTokens(end_of_questions=1), "question_gradients": asked},
    )
    for options in others:
        other = InfluenceScorer(target, questions, **options).score(pairs).total
        rest = falls - other * float(falls @ other / (other @ other))
        assert float(rest.norm() / falls.norm()) > 1e-3, options
