"""The pictures of the stages: drawn from plain numbers, in words too, the same bytes each time, also when empty."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from optimsyn.report import look
from optimsyn.report.drawing import Picture
from optimsyn.report.stage_plots import (
    MeasuredPolicy,
    costs_figure,
    evaluation_figure,
    passages_figure,
    policies_figure,
    policy_figure,
    prompt_search_figure,
    rewards_figure,
    training_figure,
    variants_figure,
    warm_up_curve_figure,
    warm_up_figure,
)
from optimsyn.study.similarity import REAL, SYNTHETIC, ComparedSample, similarity_figure
from optimsyn.target.warm_up.curve import Look, TriedRate, WarmUpCurve
from optimsyn.training.intervals import MetricRow

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PNG = b"\x89PNG"
HISTORY = [{"step": step, "reward": 0.01 * step, "reward_std": 0.02, "valid": 0.5, "kl": 1e-4} for step in (1, 2)]
GROUPS = {"Vitamin A and the eye": [(0.04, True), (-0.1, False), (-0.1, False)], "Iron": [(0.02, True)]}
EVALUATION = [
    MetricRow(
        variant=variant,
        metric=metric,
        value=value,
        low=value - 0.1,
        high=value + 0.1,
        n=8,
        difference=None,
        difference_low=None,
        difference_high=None,
    )
    for variant in ("target", "policy")
    for metric, value in (("answer_loss", 3.1), ("accuracy", 0.25))
]
SAMPLES = [ComparedSample(kind, "q?", "a", 0.1 * i, 0.02 * i, i, -i) for i, kind in enumerate([SYNTHETIC, REAL] * 3)]

LOOKS = (Look(0, 6.0, 5.0, 3.3, 5.8, None), Look(4, 1.0, 5.0, 3.4, 5.3, 4.0), Look(8, 0.2, 5.0, 3.4, None, 3.0))
RATES = (TriedRate(1e-4, LOOKS[1], 6.3), TriedRate(2e-4, LOOKS[1], 7.0, "the loss rose"), TriedRate(4e-4, None, None))
CURVE = WarmUpCurve(1e-4, 8, "settled", "", "", tuple(map(float, range(8, 0, -1))), LOOKS, RATES, 11, 3, 24)

DRAWN: dict[str, tuple[Callable[[], Picture], str]] = {
    "passages": (lambda: passages_figure([20, 80, 120], {"too short": 2}, longest=160), "2 too short"),
    "nothing lost": (lambda: passages_figure([20], {}, longest=160), "Rows lost: none"),
    "warm-up": (lambda: warm_up_figure([4.0, 3.0], [0.01, -0.02], zero_gradient=0.0), "4.00 at the first step"),
    "warm-up curve": (lambda: warm_up_curve_figure(CURVE), "end of an answer (questions) 6.00 to 0.20"),
    "warm-up, one rate": (lambda: warm_up_curve_figure(replace(CURVE, rates=())), "settled"),
    "warm-up, as given": (lambda: warm_up_curve_figure(replace(CURVE, looks=(), rates=())), "nothing was looked at"),
    "search": (
        lambda: prompt_search_figure(
            [
                {"judged": 3, "status": "start", "score": 0.1},
                {"judged": 5, "status": "rejected", "score": 0.2},
                {"status": "proposal failed"},
            ]
        ),
        "2 guiding texts",
    ),
    "no search": (lambda: prompt_search_figure([]), "No guiding text"),
    "policy": (lambda: policy_figure(HISTORY, GROUPS), "over 2 steps"),
    "no policy": (lambda: policy_figure([], {}), "No step"),
    "rewards": (lambda: rewards_figure(GROUPS), "Iron 0.02"),
    "costs": (lambda: costs_figure({"dear": 2.0, "cheap": 0.31}, "1,000 pairs"), "cheap 0.31, dear 2.00"),
    "no costs": (lambda: costs_figure({}, "1,000 pairs"), "No price"),
    "variants": (lambda: variants_figure({"static": [0.1, 0.2], "policy": []}, zero_gradient=0.0), "guiding text 0.15"),
    "training": (lambda: training_figure({"static": [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.5}]}), "to 3.50"),
    "evaluation": (lambda: evaluation_figure(EVALUATION), "target as it came 3.10"),
    "similarity": (lambda: similarity_figure(SAMPLES, note="n = 6"), "3 expert questions"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_drawn_in_words_too_and_the_same_each_time(name: str) -> None:
    draw, said = DRAWN[name]
    picture = draw()
    assert picture.png.startswith(PNG)
    assert said in picture.alt
    assert draw().png == picture.png
    data, metadata = picture._repr_mimebundle_()
    assert data == {"image/png": picture.png, "text/plain": picture.alt}
    assert metadata == {"alt": picture.alt}
    assert "PNG" not in repr(picture)


def test_policies_are_shown_in_standard_deviations_of_influence() -> None:
    rows = [
        MeasuredPolicy("law", "preferences", 40, 12, 0.2, 0.5, -0.25, -0.75, 0.1),
        MeasuredPolicy("arts", "expert iteration", 40, 12, 0.2, 0.02, 0.01, -0.002, 0.03),
    ]
    alt = policies_figure(rows).alt
    assert "law, preferences -0.50 [-1.50, +0.20]; arts, expert iteration +0.50 [-0.10, +1.50]." in alt


def test_the_measured_policies_that_are_shipped_are_those_of_the_benchmark() -> None:
    results = json.loads((RESULTS / "policy_remedies.json").read_text(encoding="utf-8"))
    alt = look.policies_picture().alt
    trained = [
        (domain.replace("_", " "), row["reward_gain"]["mean"] / row["spread"])
        for domain, rows in results.items()
        for way, row in rows.items()
        if way != "untrained"
    ]
    assert len(trained) == alt.count("[")
    for domain, gain in trained:
        assert re.search(rf"{domain}, [^;]* {re.escape(f'{gain:+.2f}')} \[", alt), (domain, gain)
