"""Scorers whose reward is noise, by hand, and pairs and questions for a tiny target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.estimators import AdamLinear
from optimsyn.influence.moments import moments_of
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.scores import Scores
from optimsyn.recipe.sections.influence import Influence
from optimsyn.target.encoding import counted
from optimsyn.target.target import Target

WORDS = "amber birch cedar delta ember fjord grove haven islet jetty knoll lagoon marsh".split()


def made_pairs(count: int, *, passages: int = 4) -> list[Pair]:
    """Different pairs with answers of one to three words, from a few passages."""
    return [
        Pair(
            id=f"p{i}",
            question=f"Which {WORDS[i % 13]} is in {WORDS[(3 * i + 1) % 13]} {i // 13}?",
            answer=" ".join(WORDS[(i + j) % 13] for j in range(1 + i % 3)),
            passage_id=f"passage{i % passages}",
        )
        for i in range(count)
    ]


def made_questions(count: int, *, subtasks: int = 2) -> list[Question]:
    """Different questions, two of each group."""
    return [
        Question(
            id=f"q{i}",
            question=f"What {WORDS[i % 13]} lies by {WORDS[(5 * i + 2) % 13]} {i // 13}?",
            answer=WORDS[(7 * i) % 13],
            subtask="abc"[i % subtasks],
            group=f"g{i // 2 // subtasks}-{i % subtasks}",
        )
        for i in range(count)
    ]


class Shuffled:
    """The exact scorer with the entries of its directions in another order."""

    method = "exact"
    numerical_error = 0.0
    choice = None

    def __init__(
        self,
        target: Target,
        questions: Sequence[Question | Sample],
        config: Influence | None = None,
        folder: Path | None = None,
        **_: Any,
    ) -> None:
        tokens = (config or Influence()).tokens
        self.exact = InfluenceScorer(target, questions, tokens=tokens)
        self.subtasks = self.exact.subtasks
        self.fingerprint = "shuffled"
        generator = torch.Generator().manual_seed(0)
        for directions in self.exact.directions:
            for vector in directions.vectors.values():
                order = torch.randperm(vector[0].numel(), generator=generator)
                vector.copy_(vector.flatten(1)[:, order].view_as(vector))

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        return self.exact.score(pairs)

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        return self.exact.zero_gradient_baseline()


class OldDifference:
    """The finite difference as it was: both ends rounded to bfloat16, a step too small for what rounding does."""

    method = "twin"
    numerical_error = 0.0
    choice = None

    def __init__(
        self,
        target: Target,
        questions: Sequence[Question | Sample],
        config: Influence | None = None,
        folder: Path | None = None,
        **_: Any,
    ) -> None:
        self.tokens = (config or Influence()).tokens
        exact = InfluenceScorer(target, questions, tokens=self.tokens)
        self.subtasks = exact.subtasks
        self.fingerprint = "old difference"
        self.target, self.checkpoint, self.directions = target, target.checkpoints[-1], exact.directions[-1]

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        encoded = [counted(self.target.encode(pair), self.tokens, "pair") for pair in pairs]
        (norm,) = {self.directions.reference_norms["adam_linear"]}
        found = torch.zeros(len(pairs), len(self.subtasks), dtype=torch.float64)
        epsilon = 1e-6
        for k in range(len(self.subtasks)):
            ends = [self._losses(encoded, sign * epsilon, k) for sign in (1.0, -1.0)]
            found[:, k] = (ends[0] - ends[1]) / (2 * epsilon * norm)
        here = self._losses(encoded, 0.0, 0)
        self.target.load_checkpoint(self.checkpoint)
        lengths = torch.tensor([item.label_tokens for item in encoded])
        ids = tuple(item.id for item in encoded)
        return Scores(ids, self.subtasks, found.mean(1), found, None, here, lengths)

    def _losses(self, encoded: Sequence[Any], epsilon: float, k: int) -> torch.Tensor:
        losses = torch.zeros(len(encoded), dtype=torch.float64)
        with torch.no_grad():
            for name, parameter in self.target.parameters.items():
                moments = moments_of(self.checkpoint, name, dtype=torch.float32, device="cpu")
                step = AdamLinear().bind(moments)(self.directions.vectors[name][k].float())
                moved = self.checkpoint.state[name].float() + epsilon * step
                parameter.copy_(moved.to(torch.bfloat16))
            for batch in self.target.batches(encoded, 1024):
                losses[batch.indices] = self.target.losses(batch).double()
        return losses

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        return {"total": 0.0, "by_subtask": dict.fromkeys(self.subtasks, 0.0)}
