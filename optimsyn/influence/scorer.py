"""The influence scorer: how much one training step on a pair would help the validation questions.

    IF_k(z) = Σ_i w_i · ⟨ V_{k,i} , Γ_i(z) ⟩ / ‖Γ_i(z)‖            w_i = η̄_i / Σ η̄

over warm-up checkpoints i with mean learning rates η̄_i. `dot` divides by a constant instead of ‖Γ_i(z)‖: the root mean
square of ‖Γ_i‖ over the validation questions, so that both have the same scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import torch

from optimsyn.base.identity import digest_of
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.accuracy import Choice, MeasuresGradients, Method, probes_of
from optimsyn.influence.directions import Directions, compute_directions, directions_fingerprint
from optimsyn.influence.distributed import in_shares, process_count
from optimsyn.influence.estimators import Estimator, estimator_of
from optimsyn.influence.fingerprint import scorer_fingerprint
from optimsyn.influence.gradients.taps import GradientTaps, output_slices
from optimsyn.influence.options import (
    Across,
    Normalization,
    ScoringOptions,
    checkpoint_weights,
    refuse_nothing_to_score_by,
    refuse_precision,
    refuse_unknown,
)
from optimsyn.influence.scores import Scores, across_subtasks, refuse_not_finite
from optimsyn.influence.sinks import DotSink
from optimsyn.influence.token_attribution import TangentSink
from optimsyn.influence.token_attribution import token_shares as shares_of
from optimsyn.llm.local.turns import turn
from optimsyn.recipe.sections.models import CountedTokens, QuestionGradients
from optimsyn.target.encoding import Encoded, as_sample, counted
from optimsyn.target.target import Target
from optimsyn.target.upcast import Precision, computing, is_narrow
from optimsyn.target.warm_up.checkpoints import Checkpoint

T = TypeVar("T")


class InfluenceScorer(MeasuresGradients):
    """Scores pairs by their influence on validation questions.

    Args:
        target: A warmed-up target.
        questions: The validation questions; their `subtask` groups them.
        estimator: As in a recipe: a built-in one (see `optimsyn.influence.estimators`) or a custom one.
        normalization: cosine (the paper's), or dot: longer directions count for more.
        across_subtasks: mean, or max as in LESS.
        question_gradients: plain: the direction is that of the questions' mean loss. unit: each question's gradient
            is scaled to length 1 first, so that each has one vote. probability: the direction is that of the answers'
            mean probability; answers that all have next to none are refused.
        tokens: Which tokens of questions and pairs count; see `optimsyn.target.encoding.counted`.
        batch_tokens: Tokens scored in one batch.
        folder: Cache validation directions here, one file per checkpoint, model and set of questions.
        processes: With several processes (`accelerate`, `torchrun`): share, where all call `score`, each scores a part
            of the same samples and all get the whole result; or own, where each scores its own samples, as rewards
            inside a trainer need it.
        precision: The precision of a 16-bit model. mixed multiplies in its dtype and does the rest in float32: less
            rounding, but slower; float32 does everything in float32, without a copy of the weights, at float32's
            speed. Validation directions always use float32.
        like: A scorer of the same target, questions and options, whose directions to reuse.
        report: Called with the number of questions of each batch whose directions have been computed.

    Attributes:
        method: exact.
        options: The options above.
        choice: Why `build_scorer` chose it; None where it was made directly.
        numerical_error: The numerical error as a share of the scores' size, measured on first access (see
            `optimsyn.influence.accuracy`).
        subtasks: Names of the columns of `Scores.by_subtask`.
        fingerprint: Changes with everything that changes scores (see `optimsyn.influence.fingerprint`).

    Raises:
        DataError: There are no questions.
        ModelError: The target has not been warmed up, or its trained parameters cannot be scored.
        RecipeError: An option has no such value.

    Example:
        >>> scorer = InfluenceScorer(target, questions)                              # doctest: +SKIP
        >>> scorer.score(pairs).total                                                # doctest: +SKIP
    """

    method: ClassVar[Method] = "exact"

    def __init__(  # noqa: PLR0913 - keyword options of a public class
        self,
        target: Target,
        questions: Sequence[Question | Sample],
        *,
        estimator: str = "adam_linear",
        normalization: Normalization = "dot",
        across_subtasks: Across = "mean",
        question_gradients: QuestionGradients = "plain",
        tokens: CountedTokens = CountedTokens(),  # noqa: B008 - frozen
        batch_tokens: int = 2048,
        folder: Path | None = None,
        processes: Literal["share", "own"] = "share",
        precision: Precision = "model",
        like: InfluenceScorer | None = None,
        report: Callable[[int], None] | None = None,
    ) -> None:
        options = ScoringOptions(
            estimator, normalization, across_subtasks, question_gradients, tokens, batch_tokens, folder, report
        )
        refuse_precision(precision)
        refuse_unknown("processes", processes, ("share", "own"))
        refuse_nothing_to_score_by(target, questions)
        self._checkpoints = tuple(target.checkpoints)
        self._weights = checkpoint_weights([checkpoint.lr for checkpoint in self._checkpoints])
        self.target = target
        self.options = options
        self.estimator: Estimator = estimator_of(estimator)
        self.processes = processes
        self._taps = GradientTaps(target)
        self._narrow = is_narrow(target.model)
        self._precision: Precision = precision if self._narrow else "model"
        self._kept: tuple[Directions, DotSink] | None = None
        self.choice: Choice | None = None
        self._questions = [as_sample(question) for question in questions]
        encoded = [counted(target.encode(question), tokens, "question") for question in self._questions]
        asked = [question.subtask or "all" for question in self._questions]
        self.directions: list[Directions] = self._directions(encoded, asked) if like is None else like.directions
        self.subtasks: tuple[str, ...] = self.directions[0].subtasks
        computing_in = {} if self._precision == "model" else {"computing": self._precision}
        self.fingerprint = scorer_fingerprint(
            "exact", target, encoded, asked, options, question_gradients=question_gradients, **computing_in
        )
        self.probes: list[Encoded] = probes_of([counted(target.encode(q), tokens, "pair") for q in self._questions])

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        """Scores of pairs, in the caller's order.

        The adapter is left at the last checkpoint. A sample whose direction is 0 scores 0.

        Args:
            pairs: What to score.
            token_shares: Also split each total into the shares of its label tokens, which adds about twice the cost.

        Raises:
            ModelError: A pair has an empty answer, is too long without its context, or its loss is not finite; or the
                model has no forward-mode derivatives, which token shares need.
        """
        samples = [as_sample(pair) for pair in pairs]

        def measure(places: list[int]) -> Scores:
            encoded = [counted(self.target.encode(samples[i]), self.options.tokens, "pair") for i in places]
            with turn(self.target.device):
                return self._measure(encoded, token_shares)

        if self.processes == "own" or process_count() == 1:
            return measure(list(range(len(samples))))
        sizes = [len(sample.prompt) + len(sample.completion) for sample in samples]
        return _joined(in_shares(sizes, self._digest(samples, token_shares), measure))

    def _measure(self, encoded: list[Encoded], token_shares: bool) -> Scores:
        by_subtask, gradient_norm, loss = self._score(encoded)
        # Before token shares, which cost more.
        refuse_not_finite([item.id for item in encoded], torch.isfinite(by_subtask).all(dim=1))
        return Scores.finished(
            [item.id for item in encoded],
            self.subtasks,
            self.options.across_subtasks,
            by_subtask=by_subtask,
            gradient_norm=gradient_norm,
            loss=loss,
            label_tokens=torch.tensor([item.label_tokens for item in encoded], dtype=torch.int64),
            token_shares=self._shares(encoded, by_subtask) if token_shares else None,
        )

    def _digest(self, samples: list[Sample], token_shares: bool) -> str:
        """Digest of everything that processes must agree on to share a score."""
        texts = [[sample.id, sample.prompt, sample.completion] for sample in [*self._questions, *samples]]
        return digest_of([self.fingerprint, token_shares, texts], 64)

    def _score(
        self, encoded: Sequence[Encoded], precision: Precision | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores by subtask [n, k], gradient norms [n] and losses [n]."""
        n, k = len(encoded), len(self.subtasks)
        columns = torch.zeros(n, k + 2, dtype=torch.float64)
        for weight, checkpoint, directions in self._each_checkpoint() if n else ():
            sink = self._sink(checkpoint, directions)
            waiting: list[tuple[list[int], torch.Tensor]] = []
            with self._taps.attached(), self._computing(precision or self._precision) as budget:
                for batch in self.target.batches(encoded, budget):
                    sink.start(len(batch))
                    losses = self._taps.run(batch, sink)
                    scores, norms = sink.results()
                    # Copied to the CPU after the last batch is launched, not one by one.
                    parts = [scores, norms.unsqueeze(1), losses.to(scores).unsqueeze(1)]
                    waiting.append((batch.indices, torch.cat(parts, dim=1)))
            for indices, part in waiting:
                columns[indices] += weight * part.cpu()
        return columns[:, :k], columns[:, k], columns[:, k + 1]

    def _shares(self, encoded: list[Encoded], by_subtask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shares = [torch.zeros(item.label_tokens, dtype=torch.float64) for item in encoded]
        winners = by_subtask.argmax(dim=1) if encoded and self.options.across_subtasks == "max" else None
        for weight, checkpoint, directions in self._each_checkpoint() if encoded else ():
            with computing(self.target.model, self._precision):
                cosine = self.options.normalization == "cosine"
                sink = TangentSink(self.target, self.estimator, checkpoint, directions, cosine=cosine)
                parts = shares_of(self._taps, sink, encoded, winners, batch_tokens=self.options.batch_tokens)
            for share, part in zip(shares, parts, strict=True):
                share.add_(part, alpha=weight)
        return tuple(shares)

    def _sink(self, checkpoint: Checkpoint, directions: Directions) -> DotSink:
        if self._kept is not None and self._kept[0] is directions:
            return self._kept[1]
        cosine = self.options.normalization == "cosine"
        sink = DotSink(self.target, self.estimator, checkpoint, directions, cosine=cosine)
        # Copying its content to a GPU takes seconds. With several checkpoints none is used twice in a row.
        self._kept = (directions, sink) if len(self._checkpoints) == 1 else None
        return sink

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """The score of a sample that teaches nothing (g = 0): what momentum alone earns.

        Returns:
            `{"total": ..., "by_subtask": {name: ...}}`; all 0 for estimators without momentum.
        """
        scores = torch.zeros(1, len(self.subtasks), dtype=torch.float64)
        for weight, checkpoint, directions in self._each_checkpoint():
            sink = self._sink(checkpoint, directions)
            sink.start(1)
            for name, parameter in self.target.parameters.items():
                for piece in output_slices(parameter, self.target.dtype):
                    zeros = torch.zeros_like(parameter[piece], dtype=self.target.dtype).unsqueeze(0)
                    sink.take_slice(name, slice(0, 1), piece, zeros)
            scores += weight * sink.results()[0].cpu()
        return {
            "total": float(across_subtasks(scores, self.options.across_subtasks)[0]),
            "by_subtask": dict(zip(self.subtasks, scores[0].tolist(), strict=True)),
        }

    def _each_checkpoint(self) -> Iterator[tuple[float, Checkpoint, Directions]]:
        for weight, checkpoint, directions in zip(self._weights, self._checkpoints, self.directions, strict=True):
            self.target.load_checkpoint(checkpoint)
            yield weight, checkpoint, directions

    def _directions(self, encoded: list[Encoded], subtasks: list[str]) -> list[Directions]:
        all_directions, verified = [], False
        folder, kind = self.options.folder, self.options.question_gradients
        for checkpoint in self._checkpoints:
            file = kept = None
            if folder is not None:
                name = directions_fingerprint(self.target, checkpoint, encoded, subtasks, kind)
                file = folder / f"directions-{name}.safetensors"
                if file.is_file():
                    kept = Directions.load(file)
                    if self.estimator.identity in kept.reference_norms:
                        all_directions.append(kept)
                        continue
            if not verified:
                self.target.load_checkpoint(checkpoint)
                self._taps.verify(encoded)
                verified = True
            directions = compute_directions(self._taps, checkpoint, encoded, subtasks, self.options, self.estimator)
            if kept is not None:
                # The cached directions lack only the reference norm of this estimator.
                directions = replace(kept, reference_norms=kept.reference_norms | directions.reference_norms)
            if file is not None:
                directions.save(file)
            all_directions.append(directions)
        self.target.load_checkpoint(self._checkpoints[-1])
        return all_directions


def _joined(parts: list[tuple[list[int], Scores]]) -> Scores:
    """The scores of several processes, put back into the caller's order."""
    places = [place for indices, _ in parts for place in indices]
    back = torch.tensor(sorted(range(len(places)), key=places.__getitem__), dtype=torch.int64)
    scores = [part for _, part in parts]

    def ordered(items: Iterable[T]) -> tuple[T, ...]:
        values = list(items)
        return tuple(values[i] for i in back.tolist())

    norms = [part.gradient_norm for part in scores if part.gradient_norm is not None]
    shares = [part.token_shares for part in scores if part.token_shares is not None]
    return Scores(
        ids=ordered(name for part in scores for name in part.ids),
        subtasks=scores[0].subtasks,
        total=torch.cat([part.total for part in scores])[back],
        by_subtask=torch.cat([part.by_subtask for part in scores])[back],
        gradient_norm=torch.cat(norms)[back] if norms else None,
        loss=torch.cat([part.loss for part in scores])[back],
        label_tokens=torch.cat([part.label_tokens for part in scores])[back],
        token_shares=ordered(chain.from_iterable(shares)) if shares else None,
    )
