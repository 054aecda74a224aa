"""Twin-adapter scoring: influence from the losses at θ + εd and θ − εd, without stored activations.

Why that is the influence: `optimsyn.influence.derivative.scorer`; what θ + εd is: `twin_adapters`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from pydantic import TypeAdapter

from optimsyn.base.errors import ModelError
from optimsyn.base.files import write_text
from optimsyn.base.identity import digest_of
from optimsyn.data.records import Question, Sample
from optimsyn.influence.accuracy import MOST_ERROR, Method
from optimsyn.influence.derivative.scorer import DerivativeScorer, TokenSums, linear_estimator
from optimsyn.influence.derivative.smoothness import choice_of
from optimsyn.influence.derivative.step_size import Plan, Step, measure_step
from optimsyn.influence.derivative.twin_adapters import Twins, length, step_directions
from optimsyn.influence.directions import Directions
from optimsyn.influence.options import Across, Normalization, ScoringOptions, refuse_unknown
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.recipe.problems import in_a_line
from optimsyn.recipe.sections.models import CountedTokens, QuestionGradients
from optimsyn.target.encoding import IGNORE, Batch, Encoded, counted
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint

Sides = Literal["auto", "central", "one-sided"]
_PROBES = 4
# auto uses the one-sided form where its measured error is at most this share.
_FORWARD_LIMIT = 0.01
_RULE = 2


class TwinScorer(DerivativeScorer):
    """Scores pairs by their influence, from the losses of slightly moved adapters; a drop-in for `InfluenceScorer`.

    It gives the scores of `InfluenceScorer` with the same linear estimator and `normalization="dot"`, up to the error
    in `numerical_error`: in float32 about 1e-4 of the scores' size. In 16 bits a step changes a layer's output by less
    than rounding does, so scores are noise and the constructor refuses. `ForwardScorer` works there.

    Args:
        target: A warmed-up target.
        questions: The validation questions; their `subtask` groups them.
        estimator: adam_linear, sgd, or a custom linear one.
        normalization: dot; nothing else is a derivative of the loss.
        across_subtasks: mean, or max as in LESS.
        by_subtask: Score every subtask. Otherwise the mean over subtasks is one direction, so there are two passes for
            any number of subtasks, and `Scores.by_subtask` has the single column "mean".
        sides: central takes two passes per subtask. one-sided takes one pass more than there are subtasks, with an
            error of ε·ℓ''/2. auto: one-sided for two subtasks or more where its measured error is at most 1 per cent
            in each of them, else central.
        question_gradients: As for `InfluenceScorer`.
        tokens: Which tokens of questions and pairs count; see `optimsyn.target.encoding.counted`.
        batch_tokens: Tokens per forward pass, all twins together.
        together: Run two twins as one batch of twice the rows (half the samples at once), else one after the other.
        folder: Cache validation directions and steps here, as `InfluenceScorer` does.
        report: As for `InfluenceScorer`.
        most_error: Refuse scores whose measured error is at least this share of their size.
        exact: A scorer of the same target, questions and options, whose directions to reuse.

    Attributes:
        method: twin.
        numerical_error: The error against gradients, as a share of the scores' size (`optimsyn.influence.accuracy`).
        choice: Why `build_scorer` chose it; None where it was made directly.
        subtasks: Names of the columns of `Scores.by_subtask`.
        plans: One per checkpoint: the steps with their measured errors, and the form of the difference.
        fingerprint: Changes with everything that changes scores (see `optimsyn.influence.fingerprint`).

    Raises:
        DataError: There are no questions.
        ModelError: The target has not been warmed up, its trained parameters cannot be scored, it is a mixture of
            experts, or the error is too large.
        RecipeError: The estimator is not linear, or an option has no such value.

    Example:
        >>> scorer = TwinScorer(target, questions)                                   # doctest: +SKIP
        >>> scorer.score(pairs).total                                                # doctest: +SKIP
    """

    method: ClassVar[Method] = "twin"

    def __init__(  # noqa: PLR0913 - keyword options of a public class
        self,
        target: Target,
        questions: Sequence[Question | Sample],
        *,
        estimator: str = "adam_linear",
        normalization: Normalization = "dot",
        across_subtasks: Across = "mean",
        by_subtask: bool = True,
        sides: Sides = "auto",
        question_gradients: QuestionGradients = "plain",
        tokens: CountedTokens = CountedTokens(),  # noqa: B008 - frozen
        batch_tokens: int = 2048,
        together: bool = True,
        folder: Path | None = None,
        report: Callable[[int], None] | None = None,
        most_error: float = MOST_ERROR,
        exact: InfluenceScorer | None = None,
    ) -> None:
        options = ScoringOptions(
            estimator, normalization, across_subtasks, question_gradients, tokens, batch_tokens, folder, report
        )
        refuse_unknown("influence.sides", sides, get_args(Sides))
        linear_estimator(estimator, self.method)
        if target.checkpoints and questions and (choice := choice_of(target, questions)) is not None:
            raise ModelError(
                f"the target chooses among its layers ({choice}, as in a mixture of experts), so its loss jumps where "
                "the choice changes, and twins mistake the jump for influence; set influence.method to exact"
            )
        super().__init__(
            target, questions, options, by_subtask=by_subtask, exact=exact, steps=[_RULE, sides, by_subtask]
        )
        self.together = together
        self._twins = Twins(target)
        encoded = self._questions
        asked = [(e.id, e.input_ids, e.labels, e.weights, q.subtask) for e, q in zip(encoded, questions, strict=True)]
        marks = [target.fingerprint(), [c.fingerprint for c in self.checkpoints]]
        facts = [
            _RULE,
            marks,
            self.estimator.identity,
            self.subtasks,
            sides,
            asked,
            question_gradients,
            tokens.model_dump(mode="json"),
        ]
        self._steps_name = digest_of(facts, sort_keys=False)
        # Steps are for pairs, so the questions they are measured on count the same tokens as pairs.
        whole = [counted(target.encode(question), tokens, "pair") for question in questions]
        self.plans: list[Plan] = self._plans(whole, sides, folder)
        self._judge(most_error)

    @property
    def epsilon(self) -> dict[str, list[float]]:
        """ε of each checkpoint by subtask, in units of d = D ⊙ V; `plans` holds the measurements."""
        return {
            name: [p.steps[k].epsilon if p.sides == "central" else p.steps[k].forward_epsilon for p in self.plans]
            for k, name in enumerate(self.subtasks)
        }

    @property
    def estimated_error(self) -> dict[str, float]:
        """By subtask, the largest measured error over checkpoints, as a share of the derivatives' size."""
        return {
            name: max(p.steps[k].error if p.sides == "central" else p.steps[k].forward_error for p in self.plans)
            for k, name in enumerate(self.subtasks)
        }

    def _add(self, place: int, encoded: list[Encoded], sums: TokenSums) -> None:
        plan, step = self.plans[place], self.step_at(place)
        values = self._twins.moved([_scaled(step, k, epsilon) for k, epsilon in plan.points])
        for batch in self.target.batches(encoded, self.batch_tokens // (2 if self.together else 1)):
            losses, rows = self._losses(batch, values)
            sums.add(plan.weight, plan.reference_norm, batch.indices, *plan.read(losses), rows)

    def _losses(self, batch: Batch, values: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """[points, N] and [N], with one or two points per pass."""
        count = len(next(iter(values.values())))
        size = 2 if self.together else 1
        parts = []
        for start in range(0, count, size):
            group = {name: value[start : start + size] for name, value in values.items()}
            losses, rows = self._twins.token_losses(batch, group, together=self.together)
            parts.append(losses)
        return torch.cat(parts), rows

    def _plans(self, encoded: list[Encoded], sides: Sides, folder: Path | None) -> list[Plan]:
        file = None if folder is None else folder / f"twin-steps-{self._steps_name}.json"
        if file is not None and file.is_file():
            try:
                return TypeAdapter(list[Plan]).validate_python(json.loads(file.read_text(encoding="utf-8")))
            except ValueError as error:
                raise ModelError(f"{file}: not readable as twin steps ({in_a_line(error)}); delete the file") from error
        total = sum(checkpoint.lr for checkpoint in self.checkpoints)
        measured = [
            self._measure(checkpoint, directions, encoded)
            for checkpoint, directions in zip(self.checkpoints, self.directions, strict=True)
        ]
        if sides == "auto":
            enough = all(step.forward_error <= _FORWARD_LIMIT for steps in measured for step in steps)
            sides = "one-sided" if len(self.subtasks) > 1 and enough else "central"
        plans = [
            Plan(c.step, c.lr / total, directions.reference_norms[self.estimator.identity], sides, steps)
            for c, directions, steps in zip(self.checkpoints, self.directions, measured, strict=True)
        ]
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps([asdict(plan) for plan in plans]))
        self.target.load_checkpoint(self.checkpoints[-1])
        return plans

    def _measure(self, checkpoint: Checkpoint, directions: Directions, encoded: list[Encoded]) -> tuple[Step, ...]:
        """The step of each subtask's direction, measured on a few short to long questions."""
        self.target.load_checkpoint(checkpoint)
        step = step_directions(self.target, checkpoint, directions, self.estimator)
        order = sorted(encoded, key=lambda item: len(item.input_ids))
        places = sorted({round(i * (len(order) - 1) / max(1, _PROBES - 1)) for i in range(_PROBES)})
        probes = list(self.target.batches([order[i] for i in places], self.batch_tokens // 2))

        def losses(points: list[dict[str, torch.Tensor]]) -> torch.Tensor:
            values = self._twins.moved(points)
            return torch.cat([_sample_losses(*self._losses(batch, values), batch) for batch in probes], dim=1)

        here = losses([{}])[0]
        origin = length(self.target.parameters) or 1.0
        # The step that balances curvature of order one against rounding of the model's dtype: its cube root.
        relative = max(torch.finfo(p.dtype).eps for p in self.target.model.parameters() if p.is_floating_point())
        steps = []
        for k in range(len(directions.subtasks)):
            size = length({name: value[k] for name, value in step.items()})

            def both(epsilon: float, k: int = k) -> tuple[torch.Tensor, torch.Tensor]:
                pair = losses([_scaled(step, k, epsilon), _scaled(step, k, -epsilon)])
                return pair[0], pair[1]

            start = relative ** (1 / 3) * origin / (size or 1.0)
            steps.append(measure_step(both, here, start=start, length=size))
        return tuple(steps)


def _scaled(step: dict[str, torch.Tensor], k: int | None, epsilon: float) -> dict[str, torch.Tensor]:
    return {} if k is None else {name: value[k] * epsilon for name, value in step.items()}


def _sample_losses(losses: torch.Tensor, rows: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Losses of label tokens [points, N] -> of samples [points, B]."""
    places = (batch.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    weights = batch.token_weights(places[0], places[1] + 1).to(losses)
    return torch.zeros(len(losses), len(batch), dtype=losses.dtype).index_add_(1, rows, losses * weights)
