"""Bootstrap intervals over questions, and the table of variants and metrics that `evaluation.json` holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from optimsyn.base.errors import StageError

if TYPE_CHECKING:
    from optimsyn.training.evaluation import QuestionRow

UNTUNED = "target"
"""Name of the untuned target, the variant that the others are compared with."""

# Resampled indices held in memory at once; 32 MB of int64.
_INDICES_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A mean with its bootstrap interval.

    Attributes:
        value: The mean.
        low: Lower end; None with fewer than two values, which have no spread.
        high: Upper end, or None as above.
        n: How many values.
    """

    value: float
    low: float | None
    high: float | None
    n: int


class MetricRow(TypedDict):
    """One row of `evaluation.json`: a metric of a variant.

    `difference` is the mean over questions of this variant's value minus the untuned target's on the same question,
    with its own interval; it is None for the untuned target itself. The questions' difficulty cancels in it, so read
    its interval to see whether training helped.
    """

    variant: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    difference: float | None
    difference_low: float | None
    difference_high: float | None


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of `values` with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: One number per question; at least one.
        confidence: Coverage of the interval, for example 0.95.
        resamples: Resampled means to draw.
        seed: Seed of the resampling; equal seeds draw the same questions, so that variants are comparable.

    Raises:
        ValueError: `values` is empty or holds a number that is not finite.
    """
    import numpy as np
    from scipy import stats

    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("bootstrap_mean: no values")
    if not np.isfinite(data).all():
        raise ValueError(f"bootstrap_mean: value {int(np.argmin(np.isfinite(data)))} is not finite")
    mean = math.fsum(data) / data.size
    if data.size < 2:
        return Interval(mean, None, None, 1)
    interval = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _INDICES_AT_ONCE // data.size),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high), int(data.size))


def metrics_of(rows: Sequence[QuestionRow]) -> dict[str, dict[str, float]]:
    """The metrics of these rows, each as question id -> value.

    `answer_loss` is over all questions, `accuracy` over those whose answer is right or wrong (a free answer is correct
    when it matches exactly);
    `token_f1` is over the questions whose answer is decoded, and a form's own metrics over those of that form. A metric
    without questions is absent.
    """
    by_metric: dict[str, dict[str, float]] = {"answer_loss": {}, "accuracy": {}, "token_f1": {}}
    for row in rows:
        by_metric["answer_loss"][row["id"]] = row["loss"]
        if row["correct"] is not None:
            by_metric["accuracy"][row["id"]] = float(row["correct"])
        if row["token_f1"] is not None:
            by_metric["token_f1"][row["id"]] = row["token_f1"]
        for name, value in row.get("metrics", {}).items():
            by_metric.setdefault(name, {})[row["id"]] = value
    return {name: values for name, values in by_metric.items() if values}


def summarize(
    rows_by_variant: Mapping[str, Sequence[QuestionRow]],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    baseline: str = UNTUNED,
) -> list[MetricRow]:
    """A row per variant and metric, with intervals over questions and the paired difference to `baseline`.

    Without a row of the baseline there are no differences.

    Raises:
        StageError: Two variants were evaluated on different questions, or a question appears twice.
    """
    metrics = {variant: metrics_of(rows) for variant, rows in rows_by_variant.items()}
    reference = metrics.get(baseline)
    _check_same_questions(rows_by_variant)
    table: list[MetricRow] = []
    for variant, by_metric in metrics.items():
        for metric, values in by_metric.items():
            whole = bootstrap_mean(list(values.values()), confidence=confidence, resamples=resamples, seed=seed)
            paired: Interval | None = None
            before = reference.get(metric, {}) if reference is not None and variant != baseline else {}
            differences = [value - before[key] for key, value in values.items() if key in before]
            if differences:
                paired = bootstrap_mean(differences, confidence=confidence, resamples=resamples, seed=seed)
            table.append(
                MetricRow(
                    variant=variant,
                    metric=metric,
                    value=whole.value,
                    low=whole.low,
                    high=whole.high,
                    n=whole.n,
                    difference=paired.value if paired else None,
                    difference_low=paired.low if paired else None,
                    difference_high=paired.high if paired else None,
                )
            )
    return table


def _check_same_questions(rows_by_variant: Mapping[str, Sequence[QuestionRow]]) -> None:
    first: tuple[str, set[str]] | None = None
    for variant, rows in rows_by_variant.items():
        ids = {row["id"] for row in rows}
        if len(ids) != len(rows):
            raise StageError(f"evaluation of {variant}: a question id appears twice; ids must be unique")
        if first is None:
            first = (variant, ids)
        elif ids != first[1]:
            example = sorted(ids ^ first[1])[0]
            raise StageError(
                f"evaluation of {variant} and {first[0]}: they answered different questions (for example {example!r} "
                "is in one only); evaluate every variant on the same test questions"
            )


def differs(row: MetricRow) -> bool:
    """Whether the interval of the paired difference to the untuned target excludes zero."""
    low, high = row["difference_low"], row["difference_high"]
    return low is not None and high is not None and (low > 0 or high < 0)
