"""Answer comparison, bootstrap intervals and the table of metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optimsyn.base.errors import StageError
from optimsyn.data.answer_metrics import exact_match, normalize_answer, token_f1
from optimsyn.training.evaluation import QuestionRow
from optimsyn.training.intervals import UNTUNED, bootstrap_mean, metrics_of, summarize


def row(key: str, loss: float, correct: bool, f1: float | None = None) -> QuestionRow:
    kind = "free" if f1 is not None else "multiple_choice"
    return {
        "id": key,
        "kind": kind,  # type: ignore[typeddict-item]
        "subtask": "all",
        "loss": loss,
        "correct": correct,
        "exact_match": correct if f1 is not None else None,
        "token_f1": f1,
        "prediction": "",
        "choice_scores": None,
    }


@pytest.mark.parametrize(
    ("prediction", "answers", "match", "f1"),
    [
        ("The Thyroid.", ("thyroid",), True, 1.0),
        ("vitamin C", ("ascorbic acid", "Vitamin  c"), True, 1.0),
        ("vitamin D", ("vitamin C",), False, 0.5),
        ("", ("iron",), False, 0.0),
        ("A", ("a",), True, 1.0),
        ("A", ("the",), False, 0.0),
        ("“1,200 mg”", ("1200 mg",), True, 1.0),
        ("iron iron", ("iron",), False, 2 / 3),
        ("anaemia", ("an aemia",), False, 0.0),
    ],
)
def test_answers_are_compared_after_normalisation(
    prediction: str, answers: tuple[str, ...], match: bool, f1: float
) -> None:
    assert exact_match(prediction, answers) is match
    assert token_f1(prediction, answers) == pytest.approx(f1)


# Digits have laws of their own (test_data_figures.py).
WORDS = st.text(st.characters(exclude_categories=["Nd", "Nl", "No", "Cs"]), max_size=40)


@given(WORDS, WORDS)
@example("\u2f00#", "C#")
def test_laws_of_the_comparison(left: str, right: str) -> None:
    assert normalize_answer(normalize_answer(left)) == normalize_answer(left)
    f1 = token_f1(left, [right])
    assert 0.0 <= f1 <= 1.0
    assert f1 == pytest.approx(token_f1(right, [left]))
    if exact_match(left, [right]):
        assert f1 == 1.0


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30), st.floats(-5, 5))
def test_interval_holds_the_mean_and_moves_with_the_values(values: list[float], shift: float) -> None:
    found = bootstrap_mean(values, resamples=200, seed=3)
    assert found.low is not None and found.high is not None
    assert min(values) - 1e-9 <= found.low <= found.high + 1e-9 <= max(values) + 2e-9
    assert found.value == pytest.approx(math.fsum(values) / len(values))
    moved = bootstrap_mean([value + shift for value in values], resamples=200, seed=3)
    assert moved.low == pytest.approx(found.low + shift, abs=1e-9)
    assert moved.high == pytest.approx(found.high + shift, abs=1e-9)


def test_interval_agrees_with_a_hand_written_bootstrap_and_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    found = bootstrap_mean(list(values), resamples=4000, seed=1)
    drawn = np.random.default_rng(9).integers(0, 400, (4000, 400))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    spread = values.std() / math.sqrt(400)
    assert found.low == pytest.approx(low, abs=0.1 * spread)
    assert found.high == pytest.approx(high, abs=0.1 * spread)
    assert found.high - values.mean() == pytest.approx(1.96 * spread, rel=0.1)


def test_one_value_has_no_interval_and_none_is_refused() -> None:
    assert bootstrap_mean([0.3]) == (0.3, None, None, 1)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="value 1 is not finite"):
        bootstrap_mean([0.0, float("nan")])


def test_metrics_are_over_the_questions_that_have_them() -> None:
    rows = [row("f", 1.0, False, 0.5), row("m", 2.0, True)]
    assert metrics_of(rows) == {
        "answer_loss": {"f": 1.0, "m": 2.0},
        "accuracy": {"f": 0.0, "m": 1.0},
        "token_f1": {"f": 0.5},
    }
    assert set(metrics_of(rows[1:])) == {"answer_loss", "accuracy"}


def test_summary_pairs_questions_by_id_not_by_place() -> None:
    # Every question gains exactly 0.5, though their losses differ widely and the rows come in another order.
    losses = {"a": 1.0, "b": 4.0, "c": 9.0}
    before = [row(key, loss, False) for key, loss in losses.items()]
    after = [row(key, losses[key] - 0.5, True) for key in ("c", "a", "b")]
    table = {(r["variant"], r["metric"]): r for r in summarize({UNTUNED: before, "static": after}, resamples=200)}
    gained = table["static", "answer_loss"]
    assert gained["difference"] == pytest.approx(-0.5)
    assert gained["difference_low"] == pytest.approx(-0.5)
    assert gained["difference_high"] == pytest.approx(-0.5)
    assert gained["low"] is not None and gained["high"] is not None and gained["high"] - gained["low"] > 2
    assert table["static", "accuracy"]["difference"] == 1.0
    assert table[UNTUNED, "answer_loss"]["difference"] is None
    assert table[UNTUNED, "answer_loss"]["n"] == 3


def test_summary_is_seeded_and_needs_no_baseline() -> None:
    rows = {"static": [row(str(i), i * 0.37 % 1, i % 3 == 0) for i in range(20)]}
    assert summarize(rows, seed=5) == summarize(rows, seed=5)
    assert summarize(rows, seed=5) != summarize(rows, seed=6)
    assert summarize(rows)[0]["difference"] is None


def test_variants_with_different_questions_are_refused() -> None:
    with pytest.raises(StageError, match=r"different questions.*'a'"):
        summarize({UNTUNED: [row("a", 1, True)], "static": [row("b", 1, True)]})
    with pytest.raises(StageError, match="appears twice"):
        summarize({UNTUNED: [row("a", 1, True), row("a", 2, True)]})


def test_a_unit_without_a_figure_is_a_word() -> None:
    assert token_f1("L", ["L"]) == 1.0
    assert token_f1("5 dollars", ["7 dollars"]) == 0.0
