"""A custom scorer instead of influence: a reward model, a similarity, anything that returns a number."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar, cast

import torch

from optimsyn.base.errors import ModelError, OptimsynError, RecipeError
from optimsyn.base.source_identity import source_identity
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.accuracy import Choice
from optimsyn.influence.fingerprint import encoding_digest
from optimsyn.influence.scores import Scores
from optimsyn.influence.simulated.scorer import BatchTraining
from optimsyn.recipe.sections.influence import OWN_SCORER, Influence
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.encoding import as_sample, counted
from optimsyn.target.target import Target

Item = Pair | Question | Sample
T = TypeVar("T")

# Increased when the same facts give other scores.
_RULE = 1


@dataclass(frozen=True)
class ScorerContext:
    """The inputs of a scorer.

    Attributes:
        questions: The validation questions. Test questions stay hidden until the evaluation.
        target: The warmed-up target, with `model`, `tokenizer` and `checkpoints`.
        config: The recipe's section `influence`.
        folder: A cache folder that lasts from one stage to the next; None for no cache.
        training: The training that the estimator `simulated` places pairs in; None for others.
        report: Optional progress callback; call it with the number of questions done.
    """

    questions: Sequence[Question | Sample]
    target: Target
    config: Influence
    folder: Path | None = None
    training: BatchTraining | None = None
    report: Callable[[int], None] | None = None


class ScorerPart(Protocol):
    """The interface of a custom scorer: an object with this method.

    A recipe names its factory, `influence.scorer: package.module:name`: a class or function that takes the run's
    `ScorerContext` and returns the object.

    Optional attributes:

    - `fingerprint`, a text that identifies what its scores depend on besides its source, the target and the questions,
      such as the name and revision of a reward model. Rewards are cached under it;
    - `zero_gradient_baseline()`, the score of a pair that teaches nothing, as `{"total": ..., "by_subtask": {...}}`;
      0 by default.
    """

    def score(self, pairs: Sequence[Item]) -> Scores | Sequence[float]:
        """One finite number per pair, in the caller's order; higher is better.

        A pair's number must not depend on the other pairs of the call: pairs are scored once and cached.

        Returns:
            The numbers, or `Scores` with more detail, such as scores by subtask.
        """


class OwnScorer:
    """Wraps a custom scorer for a run.

    Attributes:
        subtasks: Names of the columns of `Scores.by_subtask`; only `all` where the part returns numbers.
        fingerprint: Changes with its source, its own `fingerprint`, the target, the warm-up and the questions.

    Raises:
        ModelError: The factory failed.
        RecipeError: The object cannot score, or its source is not known.
    """

    numerical_error: ClassVar[float] = 0.0

    def __init__(self, context: ScorerContext, make: Callable[[ScorerContext], ScorerPart]) -> None:
        name = context.config.scorer
        self.method = name
        self.choice: Choice | None = None
        self.target = context.target
        self._part = self._tried(name, lambda: make(context))
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
        self.fingerprint = f"{OWN_SCORER}{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"

    def score(self, pairs: Sequence[Item], *, token_shares: bool = False) -> Scores:
        """Scores of pairs, in the caller's order.

        Raises:
            ModelError: Token shares are requested, or the part failed, or it returned too few or too many numbers, one
                that is not finite, or something else.
        """
        if token_shares:
            raise ModelError(f"scorer {self.method} gives a pair one number, which is not a sum over its tokens")
        scores: object = self._tried("score", lambda: self._part.score(pairs))
        if not isinstance(scores, Scores):
            try:
                numbers = [float(number) for number in scores]  # type: ignore[attr-defined]
            except (TypeError, ValueError) as error:
                raise ModelError(
                    f"influence.scorer: {self.method} gave {scores!r:.200} ({error}); score returns a number a pair"
                ) from error
            self._refuse_count(len(numbers), len(pairs))
            scores = numbers_with_losses(self.target, self._tokens, pairs, numbers)
        if scores.subtasks != self.subtasks:
            raise ModelError(
                f"influence.scorer: {self.method} gave scores by {', '.join(scores.subtasks)}, and its attribute "
                f"`subtasks` has {', '.join(self.subtasks)}; set it to those"
            )
        self._refuse_count(len(scores), len(pairs))
        bad = [i for i, number in enumerate(scores.total.tolist()) if not math.isfinite(number)]
        if bad:
            raise ModelError(
                f"influence.scorer: {self.method} gave {scores.ids[bad[0]]!r} the score {scores.total[bad[0]]}; every "
                "score must be a finite number"
            )
        return scores

    def _refuse_count(self, scores: int, pairs: int) -> None:
        if scores != pairs:
            raise ModelError(f"influence.scorer: {self.method} gave {scores} scores for {pairs} pairs")

    def _tried(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except OptimsynError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"influence.scorer: {what if what == self.method else f'{what} of {self.method}'} raised "
                f"{type(error).__name__}: {error}; fix it and run again"
            ) from error

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """The part's baseline, or 0."""
        own = getattr(self._part, "zero_gradient_baseline", None)
        if own is not None:
            return cast("dict[str, float | dict[str, float]]", own())
        return {"total": 0.0, "by_subtask": dict.fromkeys(self.subtasks, 0.0)}


def numbers_with_losses(
    target: Target, tokens: CountedTokens, items: Sequence[Item], numbers: Sequence[float]
) -> Scores:
    """A number for each item together with the target's loss on it (one forward pass), for the report.

    Args:
        target: Warmed up.
        tokens: Which tokens count for the loss.
        items: Pairs, or what else can be scored.
        numbers: One for each, in order.
    """
    encoded = [counted(target.encode(as_sample(item)), tokens, "pair") for item in items]
    total = torch.tensor(numbers, dtype=torch.float64)
    losses = torch.zeros(len(encoded), dtype=torch.float64)
    if encoded:
        target.load_checkpoint(target.checkpoints[-1])
    with target.scoring(), torch.no_grad():
        for batch in target.batches(encoded):
            losses[batch.indices] = target.losses(batch).double().cpu()
    return Scores(
        ids=tuple(item.id for item in encoded),
        subtasks=("all",),
        total=total,
        by_subtask=total.unsqueeze(1),
        gradient_norm=None,
        loss=losses,
        label_tokens=torch.tensor([item.label_tokens for item in encoded], dtype=torch.int64),
    )
