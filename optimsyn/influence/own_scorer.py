"""A scorer of your own in the place of influence: by a reward model, by similarity, by anything that gives a number."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, cast

import torch

from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.base.source_identity import source_identity
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.accuracy import Choice
from optimsyn.influence.fingerprint import encoding_digest
from optimsyn.influence.scores import Scores
from optimsyn.influence.simulated.scorer import BatchTraining
from optimsyn.recipe.sections.influence import Influence
from optimsyn.target.encoding import Encoded, as_sample, counted
from optimsyn.target.target import Target

Item = Pair | Question | Sample

# Raised when the same facts come to give other scores.
_RULE = 1


@dataclass(frozen=True)
class ScorerContext:
    """What a scorer is made from.

    Attributes:
        questions: The validation questions. Test questions are nobody's to see before the evaluation.
        target: The warmed-up target, with `model`, `tokenizer` and `checkpoints`.
        config: The recipe's section `influence`.
        folder: Where something may be kept from one stage to the next; None: nowhere.
        training: What the estimator `simulated` places pairs in; None for the others.
        report: May be called with the number of questions that have been worked through, to show how far it is.
    """

    questions: Sequence[Question | Sample]
    target: Target
    config: Influence
    folder: Path | None = None
    training: BatchTraining | None = None
    report: Callable[[int], None] | None = None


class ScorerPart(Protocol):
    """What a scorer of your own has to be: an object with this method.

    A recipe names what makes it, `influence.scorer: package.module:name`: a class or function that is called with the
    run's `ScorerContext` and returns the object.

    It may also have:

    - `fingerprint`, a text: what its scores depend on beside its own source, the target and the questions, such as the
      name and revision of a reward model. Rewards are kept under it;
    - `zero_gradient_baseline()`: the score of a pair that teaches nothing, as `{"total": ..., "by_subtask": {...}}`.
      Without one, 0.
    """

    def score(self, pairs: Sequence[Item]) -> Scores | Sequence[float]:
        """One number a pair, in the caller's order; higher is better, and every number is finite.

        The same pair gets the same number, whatever it is scored beside: pairs are scored once and kept.

        Returns:
            The numbers, or `Scores` where there is more to tell, such as scores by subtask.
        """


class OwnScorer:
    """A scorer of a user's as the run takes it.

    Args:
        context: What it is made from.
        make: What `context.config.scorer` names.

    Attributes:
        method: What the recipe calls it.
        choice: None; nothing was tried.
        subtasks: Names of the columns of `Scores.by_subtask`; only `all` where the part gives numbers.
        fingerprint: Changes with its source, its own `fingerprint`, the target, the warm-up and the questions.

    Raises:
        RecipeError: What was made cannot score, or its source is not known.
    """

    numerical_error: ClassVar[float] = 0.0

    def __init__(self, context: ScorerContext, make: Callable[[ScorerContext], ScorerPart]) -> None:
        name = context.config.scorer
        self.method = name
        self.choice: Choice | None = None
        self.target = context.target
        self._part = make(context)
        if not callable(getattr(self._part, "score", None)):
            raise RecipeError(
                f"influence.scorer: {name!r} made a {type(self._part).__name__}, which has no method score(pairs)"
            )
        self.subtasks: tuple[str, ...] = tuple(getattr(self._part, "subtasks", ("all",)))
        self._tokens = context.config.tokens
        facts = [
            _RULE,
            name,
            source_identity(name, make, "influence.scorer"),
            str(getattr(self._part, "fingerprint", "")),
            context.config.model_dump(mode="json", exclude={"batch_tokens"}),
            [context.target.fingerprint(), str(context.target.dtype), encoding_digest(context.target.tokenizer)],
            [checkpoint.fingerprint for checkpoint in context.target.checkpoints],
            [(s.prompt, s.completion, s.subtask) for s in map(as_sample, context.questions)],
        ]
        self.fingerprint = f"own-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"

    def score(self, pairs: Sequence[Item], *, token_shares: bool = False) -> Scores:
        """Scores of pairs, in the caller's order.

        Raises:
            ModelError: Token shares are asked for, or the part gave too few or too many numbers, or one that is not
                finite.
        """
        if token_shares:
            raise ModelError(f"scorer {self.method} gives a pair one number, which is not a sum over its tokens")
        scores = self._part.score(pairs)
        if not isinstance(scores, Scores):
            scores = self._with_losses(pairs, [float(number) for number in scores])
        if len(scores) != len(pairs):
            raise ModelError(f"influence.scorer: {self.method} gave {len(scores)} scores for {len(pairs)} pairs")
        bad = [i for i, number in enumerate(scores.total.tolist()) if not math.isfinite(number)]
        if bad:
            raise ModelError(
                f"influence.scorer: {self.method} gave {scores.ids[bad[0]]!r} the score {scores.total[bad[0]]}; every "
                "score has to be a finite number"
            )
        return scores

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """That of the part, or 0."""
        own = getattr(self._part, "zero_gradient_baseline", None)
        if own is not None:
            return cast("dict[str, float | dict[str, float]]", own())
        return {"total": 0.0, "by_subtask": dict.fromkeys(self.subtasks, 0.0)}

    def _with_losses(self, pairs: Sequence[Item], numbers: list[float]) -> Scores:
        """The numbers with what the report shows beside a score: the target's loss on each pair, one forward pass."""
        if len(numbers) != len(pairs):
            raise ModelError(f"influence.scorer: {self.method} gave {len(numbers)} scores for {len(pairs)} pairs")
        encoded = [counted(self.target.encode(as_sample(pair)), self._tokens, "pair") for pair in pairs]
        total = torch.tensor(numbers, dtype=torch.float64)
        return Scores(
            ids=tuple(item.id for item in encoded),
            subtasks=("all",),
            total=total,
            by_subtask=total.unsqueeze(1),
            gradient_norm=None,
            loss=self._losses(encoded),
            label_tokens=torch.tensor([item.label_tokens for item in encoded], dtype=torch.int64),
        )

    def _losses(self, encoded: list[Encoded]) -> torch.Tensor:
        losses = torch.zeros(len(encoded), dtype=torch.float64)
        if encoded:
            self.target.load_checkpoint(self.target.checkpoints[-1])
        with self.target.scoring(), torch.no_grad():
            for batch in self.target.batches(encoded):
                losses[batch.indices] = self.target.losses(batch).double().cpu()
        return losses
