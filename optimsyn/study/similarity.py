"""Does influence see more than similarity? Samples compared by both, with a 2-D map of their embeddings.

Half of the validation questions define the direction of influence and the centre for similarity. The other half
represent real data: they are scored like the synthetic pairs, and no question is scored against itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from optimsyn.base.errors import DataError
from optimsyn.base.statistics import correlation, ranks
from optimsyn.base.terminal.table import Table, number
from optimsyn.data.forms import shown
from optimsyn.data.records import Pair, Question
from optimsyn.influence.factory import build_scorer
from optimsyn.study.baselines import BaseModelEmbedder, Embedder, text_of
from optimsyn.study.compared import ComparedSample

if TYPE_CHECKING:
    from optimsyn.influence.simulated.scorer import BatchTraining
    from optimsyn.recipe.sections.influence import Influence
    from optimsyn.report.drawing import Picture
    from optimsyn.target.target import Target

SYNTHETIC, REAL = "synthetic pair", "expert question"
# With fewer samples a rank correlation means nothing, despite its interval.
_FEWEST = 4


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's coefficient with its percentile bootstrap interval over samples.

    Attributes:
        value: None where it is undefined (too few samples, or one side is constant).
        low: Lower end of the interval.
        high: Upper end.
        n: Number of samples.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def text(self) -> str:
        """Such as `−0.12 [−0.45, 0.22], n = 31`."""
        if self.value is None or self.low is None or self.high is None:
            return f"undefined, n = {self.n}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}], n = {self.n}".replace("-", "−")


@dataclass(frozen=True)
class SimilarityComparison:
    """Similarity against influence, shown as a table in a notebook.

    Attributes:
        samples: Synthetic pairs and real questions.
        questions: Number of questions behind the direction.
        correlations: Of similarity with influence: over all samples, and over each kind.
        confidence: Coverage of the intervals.
    """

    samples: tuple[ComparedSample, ...]
    questions: int
    correlations: dict[str, RankCorrelation]
    confidence: float

    def table(self) -> Table:
        """Means of both kinds, and the rank correlation."""
        rows = []
        for kind, estimate in self.correlations.items():
            of_kind = [sample for sample in self.samples if kind in ("all", sample.kind)]
            similarity = sum(sample.similarity for sample in of_kind) / max(1, len(of_kind))
            influence = sum(sample.influence for sample in of_kind) / max(1, len(of_kind))
            rows.append((kind, str(len(of_kind)), number(similarity), number(influence), estimate.text()))
        return Table(
            "Similarity and influence",
            ("samples", "n", "mean similarity", "mean influence", "Spearman of the two"),
            tuple(rows),
            frozenset({1, 2, 3}),
            f"Direction and centre: {self.questions} validation questions. Brackets: {self.confidence:.0%} bootstrap "
            "over samples. One target, one seed.",
        )

    def apart(self) -> Table:
        """The two synthetic pairs closest in similarity and furthest apart in influence."""
        pairs = [sample for sample in self.samples if sample.kind == SYNTHETIC]
        if len(pairs) < 2:
            raise DataError("fewer than two synthetic pairs were compared; synthesize more")
        spread = max(sample.similarity for sample in pairs) - min(sample.similarity for sample in pairs) or 1.0
        reach = max(sample.influence for sample in pairs) - min(sample.influence for sample in pairs) or 1.0

        def distance(two: tuple[ComparedSample, ComparedSample]) -> float:
            a, b = two
            return abs(a.influence - b.influence) / reach - abs(a.similarity - b.similarity) / spread

        furthest = max(itertools.combinations(pairs, 2), key=distance)
        best, worst = sorted(furthest, key=lambda sample: -sample.influence)
        rows = tuple((number(s.similarity), number(s.influence), s.question, s.answer) for s in (best, worst))
        columns = ("similarity", "influence", "question", "answer")
        return Table("Alike to an embedding, not to the target", columns, rows, frozenset({0, 1}))

    def picture(self) -> Picture:
        """Scatter plot of similarity against influence, and the map."""
        from optimsyn.study.similarity_plot import similarity_figure

        return similarity_figure(self.samples, note=f"Spearman over all: {self.correlations['all'].text()}")

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def compare_similarity(  # noqa: PLR0913 - the last five are keyword-only options, each with a default
    target: Target,
    config: Influence,
    validation: Sequence[Question],
    pairs: Sequence[Pair],
    *,
    training: BatchTraining | None = None,
    embedder: Embedder | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> SimilarityComparison:
    """Scores pairs and half of the validation questions by influence on, and similarity to, the other half.

    Args:
        target: Warmed up.
        config: The recipe's section `influence`.
        validation: Every second question of each subtask defines the direction.
        pairs: Synthetic pairs.
        training: As for `build_scorer`: the training that the estimator `simulated` places pairs in.
        embedder: Maps texts to vectors; None uses the target's own base model, which is no embedding model.
        confidence: Coverage of the intervals.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        DataError: There are too few questions or pairs.
        ModelError: A sample cannot be scored.
    """
    validation_half, real = halves(validation)
    if not validation_half or not real or not pairs:
        raise DataError(
            f"{len(validation)} validation questions and {len(pairs)} pairs: at least two questions of one subtask and "
            "one pair are needed"
        )
    items: list[Pair | Question] = [*pairs, *real]
    influence = build_scorer(target, validation_half, config, training=training).score(items).total.tolist()
    embed = embedder if embedder is not None else BaseModelEmbedder(target)
    vectors = embed([text_of(item) for item in [*items, *validation_half]]).double()
    # The hidden states of a language model share one large direction, which makes every cosine nearly 1.
    vectors = vectors - vectors.mean(0)
    unit = torch.nn.functional.normalize
    centre = unit(unit(vectors[len(items) :], dim=1).mean(0), dim=0)
    similarity = (unit(vectors[: len(items)], dim=1) @ centre).tolist()
    places = principal_plane(vectors[: len(items)]).tolist()
    samples = tuple(
        ComparedSample(
            SYNTHETIC if index < len(pairs) else REAL,
            item.question,
            shown(item)[1],
            similarity[index],
            influence[index],
            *places[index],
        )
        for index, item in enumerate(items)
    )
    correlations = {}
    for kind in ("all", SYNTHETIC, REAL):
        of_kind = [sample for sample in samples if kind in ("all", sample.kind)]
        correlations[kind] = spearman(
            [sample.similarity for sample in of_kind],
            [sample.influence for sample in of_kind],
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )
    return SimilarityComparison(samples, len(validation_half), correlations, confidence)


def halves(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Every second question of each subtask, and the others."""
    seen: dict[str, int] = {}
    sides: tuple[list[Question], list[Question]] = ([], [])
    for question in questions:
        place = seen.get(question.subtask, 0)
        sides[place % 2].append(question)
        seen[question.subtask] = place + 1
    return sides


def principal_plane(vectors: torch.Tensor) -> torch.Tensor:
    """[n, 2], the first two principal components of [n, d], each with its largest loading positive."""
    centred = vectors - vectors.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    plane = torch.zeros(2, vectors.shape[1], dtype=vectors.dtype)
    plane[: min(2, len(axes))] = axes[:2]
    largest = plane.abs().argmax(1, keepdim=True)
    plane = plane * torch.where(plane.gather(1, largest) < 0, -1.0, 1.0)
    return centred @ plane.T


def spearman(
    x: Sequence[float], y: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> RankCorrelation:
    """Spearman's rank correlation with a percentile bootstrap interval over samples."""
    count = len(x)
    if count < _FEWEST:
        return RankCorrelation(None, None, None, count)
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    value = float(correlation(ranks(first), ranks(second)))
    if math.isnan(value):
        return RankCorrelation(None, None, None, count)
    drawn = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    draws = correlation(ranks(first[drawn]), ranks(second[drawn]))
    low, high = np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return RankCorrelation(value, float(low), float(high), count)
