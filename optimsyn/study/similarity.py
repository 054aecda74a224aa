"""Does influence see more than similarity? Samples compared by both, with a 2-D map of their embeddings.

Half of the validation questions define the direction of influence and the centre for similarity. The other half
represent real data: they are scored like the synthetic pairs, and no question is scored against itself.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch

from optimsyn.base import statistics
from optimsyn.base.counting import plural
from optimsyn.base.errors import DataError
from optimsyn.base.terminal.table import Table, number
from optimsyn.data.forms import shown
from optimsyn.data.records import Pair, Question
from optimsyn.influence.factory import build_scorer
from optimsyn.influence.simulated.scorer import BatchTraining
from optimsyn.recipe.sections.influence import Influence
from optimsyn.report.drawing import BLUE, SOFT, Picture, drawing, finish, picture, round_ticks
from optimsyn.study.baselines import BaseModelEmbedder, Embedder, text_of
from optimsyn.study.fidelity.statistics import draws
from optimsyn.target.target import Target

SYNTHETIC, REAL = "synthetic pair", "expert question"
# Marker, colour and size of each kind in the picture.
_MARKERS: tuple[tuple[str, str, str, int], ...] = ((SYNTHETIC, "o", BLUE, 34), (REAL, "^", "#D55E00", 40))
# With fewer samples a rank correlation means nothing, despite its interval.
_FEWEST = 4


class ComparedSample(NamedTuple):
    """A sample compared by embedding and by influence.

    Attributes:
        kind: `synthetic pair` or `expert question`.
        similarity: Cosine of its centred embedding with the mean embedding of the direction's questions.
        influence: On the direction's questions.
        x: First principal component of the embeddings.
        y: Second.
    """

    kind: str
    question: str
    answer: str
    similarity: float
    influence: float
    x: float
    y: float


class RankCorrelation(NamedTuple):
    """Spearman's coefficient over n samples with its percentile bootstrap interval.

    It is None where it is undefined: of too few samples, or where one side is constant.
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
            of_kind = _of_kind(self.samples, kind)
            means = (number(fmean(getattr(s, name) for s in of_kind)) for name in ("similarity", "influence"))
            rows.append((kind, str(len(of_kind)), *means, estimate.text()))
        return Table(
            "Similarity and influence",
            ("samples", "n", "mean similarity", "mean influence", "Spearman of the two"),
            tuple(rows),
            frozenset({1, 2, 3}),
            f"Direction and centre: {plural(self.questions, 'validation question')}. Brackets: "
            f"{self.confidence:.0%} bootstrap "
            "over samples. One target, one seed.",
        )

    def apart(self) -> Table:
        """The two synthetic pairs closest in similarity and furthest apart in influence."""
        pairs = _of_kind(self.samples, SYNTHETIC)
        if len(pairs) < 2:
            raise DataError("fewer than two synthetic pairs were compared; synthesize more")
        spread = float(np.ptp([sample.similarity for sample in pairs])) or 1.0
        reach = float(np.ptp([sample.influence for sample in pairs])) or 1.0

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
            f"{plural(len(validation), 'validation question')} and {plural(len(pairs), 'pair')}: at least two "
            "questions of one subtask and "
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
    kinds = [SYNTHETIC] * len(pairs) + [REAL] * len(real)
    samples = tuple(
        ComparedSample(kind, item.question, shown(item)[1], alike, value, *place)
        for kind, item, alike, value, place in zip(kinds, items, similarity, influence, places, strict=True)
    )
    options: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    correlations = {}
    for kind in ("all", SYNTHETIC, REAL):
        of_kind = _of_kind(samples, kind)
        correlations[kind] = spearman([s.similarity for s in of_kind], [s.influence for s in of_kind], **options)
    return SimilarityComparison(samples, len(validation_half), correlations, confidence)


def halves(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Every second question of each subtask, and the others."""
    seen: Counter[str] = Counter()
    sides: tuple[list[Question], list[Question]] = ([], [])
    for question in questions:
        sides[seen[question.subtask] % 2].append(question)
        seen[question.subtask] += 1
    return sides


def _of_kind(samples: Sequence[ComparedSample], kind: str) -> list[ComparedSample]:
    return [sample for sample in samples if kind in ("all", sample.kind)]


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
    drawn = draws(np.random.default_rng(seed), count, resamples)
    value, *others = statistics.spearman(np.asarray(x, np.float64)[drawn], np.asarray(y, np.float64)[drawn])
    if math.isnan(value):
        return RankCorrelation(None, None, None, count)
    low, high = np.nanquantile(others, [(1 - confidence) / 2, (1 + confidence) / 2])
    return RankCorrelation(float(value), float(low), float(high), count)


def similarity_figure(samples: Sequence[ComparedSample], *, note: str = "") -> Picture:
    """Left: similarity to the questions against influence on them, and a note. Right: the embeddings, by influence."""
    most = max((abs(sample.influence) for sample in samples), default=1.0) or 1.0
    colours: dict[str, Any] = {"cmap": "RdBu", "vmin": -most, "vmax": most, "edgecolors": SOFT, "linewidths": 0.6}
    words = []
    with drawing(4.1, width=10.2) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.12))
        for kind, marker, color, size in _MARKERS:
            of_kind = _of_kind(samples, kind)
            similarity, influence = [s.similarity for s in of_kind], [s.influence for s in of_kind]
            style: dict[str, Any] = {"color": color, "alpha": 0.75, "linewidths": 0}
            left.scatter(similarity, influence, s=size, marker=marker, label=f"{kind} ({len(of_kind)})", **style)
            places = [s.x for s in of_kind], [s.y for s in of_kind]
            drawn = right.scatter(*places, c=influence, s=size * 1.5, marker=marker, **colours)
            if of_kind:
                words.append(
                    f"{len(of_kind)} {kind}s: similarity {min(similarity):.2f} to {max(similarity):.2f}, influence "
                    f"{min(influence):.3g} to {max(influence):.3g}."
                )
        left.axhline(0, color=SOFT, linewidth=0.8, zorder=0)
        below = "similarity to the questions (cosine of embeddings)" + (f"\n{note}" if note else "")
        finish(left, "Alike is not the same as helpful", below, "influence on the questions", grid="both")
        left.xaxis.set_major_locator(round_ticks())
        left.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
        right.set_title("The embeddings, coloured by influence")
        right.set_xlabel("first principal component (circles: synthetic, triangles: experts)")
        right.set_ylabel("second")
        right.set_xticks([])
        right.set_yticks([])
        bar = figure.colorbar(drawn, ax=right, shrink=0.85, pad=0.02)
        bar.set_label("influence (blue helps)")
        bar.outline.set_visible(False)
        return picture(figure, " ".join([*words, note]).strip())
