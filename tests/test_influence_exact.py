"""Every estimator's score is an independent float64 computation, over random tiny models of every make."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import samples
from influence_reference import MAKES, random_target, reference_gradients, reference_scores

from optimsyn.influence.gamma import ESTIMATORS
from optimsyn.influence.scorer import InfluenceScorer

NORMALIZATIONS: tuple[Any, ...] = ("cosine", "dot")
ACROSS: tuple[Any, ...] = ("mean", "max")


@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(["llama", "gemma"]),
    make=st.sampled_from(MAKES),
    seed=st.integers(0, 10_000),
    checkpoints=st.integers(1, 3),
    subtasks=st.integers(1, 3),
    across=st.sampled_from(ACROSS),
    batch_tokens=st.sampled_from([1, 130, 10_000]),
    recompute=st.booleans(),
)
def test_every_estimator_equals_the_long_way(
    kind: str, make: str, seed: int, checkpoints: int, subtasks: int, across: Any, batch_tokens: int, recompute: bool
) -> None:
    target = random_target(kind, make, seed=seed, checkpoints=checkpoints, recompute=recompute)
    questions = samples(subtasks + 1, seed=seed, subtasks=("c", "a", "b")[:subtasks])
    pairs = samples(3, seed=seed + 1)
    gradients = reference_gradients(target, [*questions, *pairs])
    with TemporaryDirectory() as folder:
        for name in ESTIMATORS:
            for normalization in NORMALIZATIONS:
                scores = InfluenceScorer(
                    target,
                    questions,
                    estimator=name,
                    normalization=normalization,
                    across_subtasks=across,
                    batch_tokens=batch_tokens,
                    folder=Path(folder),
                ).score(pairs)
                names, wanted = reference_scores(target, questions, pairs, name, normalization == "cosine", gradients)
                assert scores.subtasks == tuple(names)
                # Relative to the size of scores: a sum of terms of both signs may itself be as small as it likes.
                bound = {"rtol": 1e-6, "atol": 1e-6 * float(wanted.abs().mean()) * 1e-2}
                torch.testing.assert_close(scores.by_subtask, wanted, **bound)
                total = wanted.mean(1) if across == "mean" else wanted.max(1).values
                torch.testing.assert_close(scores.total, total, **bound)


@pytest.mark.parametrize("make", MAKES)
def test_each_make_of_target_is_met(make: str) -> None:
    target = random_target("llama", make, seed=1, checkpoints=1, recompute=True)
    pairs, questions = samples(2, seed=2), samples(2, seed=3)
    scores = InfluenceScorer(target, questions, estimator="adam", normalization="cosine").score(pairs)
    _, wanted = reference_scores(target, questions, pairs, "adam", True)
    torch.testing.assert_close(scores.by_subtask, wanted, rtol=1e-6, atol=1e-12)
