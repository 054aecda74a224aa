"""Charts, word differences and the small helpers of the pages."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_helpers import Page, metric_row

from optimsyn.base.table import decimals_for, fixed
from optimsyn.report.charts import WIDTH, Axis, Chart, influence_chart, interval_chart, policy_chart, prompt_chart
from optimsyn.report.page.pairs import excerpt_around
from optimsyn.report.rendering import byte_size, cut, render
from optimsyn.report.word_diff import word_diff

finite = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-60)


def drawn(chart: Chart | None) -> str:
    """The drawing, well-formed and within its borders."""
    assert chart is not None
    from optimsyn.report.rendering import template_environment

    html = (
        template_environment()
        .from_string('{% from "chart.html.j2" import chart %}{{ chart(drawn) }}')
        .render(drawn=chart)
    )
    assert Page(html).problems == []
    assert chart.alt and "nan" not in html and "inf" not in html.replace("influence", "")
    for mark in chart.marks:
        numbers = [*mark.at, *(float(n) for n in re.findall(r"-?\d+\.\d", mark.text) if mark.kind != "text")]
        assert all(-0.1 <= number <= max(WIDTH, chart.height) + 0.1 for number in numbers), mark
    return html


@settings(max_examples=200, deadline=None)
@given(st.lists(finite, min_size=1, max_size=20), st.booleans())
def test_axes_hold_their_values_and_tick_at_round_places(values: list[float], whole: bool) -> None:
    values = [round(value) for value in values] if whole else values
    axis = Axis(values, 10.0, 90.0, whole=whole)
    assert all(10.0 <= axis.at(value) <= 90.0 for value in values)
    places = [place for place, _ in axis.ticks]
    assert places == sorted(places)
    assert all(9.99 <= place <= 90.01 for place in places)
    assert len({label for _, label in axis.ticks}) == len(axis.ticks), "no two ticks look alike"
    if whole:
        assert all("." not in label for _, label in axis.ticks)


def test_ticks_read_well() -> None:
    assert [label for _, label in Axis([0.0, 0.0955], 0, 100).ticks] == ["0.00", "0.05", "0.10"]
    assert [label for _, label in Axis([-1.3, 0.0], 0, 100).ticks] == ["−1.0", "−0.5", "0.0"]
    assert [label for _, label in Axis([1, 2], 0, 100, whole=True, room=0.0).ticks] == ["1", "2"]


@pytest.mark.parametrize(
    "influence",
    [
        {"static": [0.1]},
        {"static": [0.0, 0.0, 0.0, 0.0, 0.0]},
        {"first_draft": [-3e-9, 4e-9], "policy": [1e-9] * 4, "own_variant": [2e-9, 3e-9, 9e-9, 1e-8]},
        {"static": [math.sin(i) for i in range(1000)]},
    ],
)
def test_influence_is_drawn_for_whatever_there_is(influence: dict[str, list[float]]) -> None:
    html = drawn(influence_chart(influence))
    assert len(html) < 30_000
    assert "Dashed" not in html
    dashed = influence_chart(influence, zero_gradient=0.5)
    assert "Dashed" in dashed.note and any("dashed" in mark.tone for mark in dashed.marks)


def test_histories_of_optimisers_are_drawn_or_left_out() -> None:
    assert prompt_chart([]) is None and policy_chart([]) is None
    assert prompt_chart([{"status": "proposal failed", "reason": "x"}]) is None
    drawn(prompt_chart([{"judged": 4, "status": "rejected", "score": 0.1}]))
    html = drawn(
        prompt_chart(
            [{"judged": 4, "status": "start", "score": 0.1}, {"judged": 9, "status": "accepted", "score": 0.3}]
        )
    )
    assert "reward 0.1 at the start, best 0.3" in html
    assert "Below" not in drawn(policy_chart([{"step": 1, "reward": 0.1}]))
    many = [{"step": i, "reward": 0.01 * i, "reward_std": 0.1, "valid": 1.0} for i in range(1, 500)]
    assert "Below: the share of pairs" in drawn(policy_chart(many))


def test_intervals_of_one_run_and_of_several() -> None:
    rows: list[dict[str, Any]] = [metric_row("target", "accuracy", 0.2, None, 0.1)]
    rows.append(metric_row("policy", "accuracy", 0.3, 0.1, 0.1))
    html = drawn(interval_chart("accuracy", rows))
    assert "0.200 [0.100, 0.300]" in html and "dashed" in html
    rows[0] |= {"low": None, "high": None}
    assert "0.200</text>" in drawn(interval_chart("accuracy", rows))
    several = interval_chart("accuracy", [*rows, *rows], ["a", "a", "b", "b"], zero=True)
    html = drawn(several)
    assert html.count('class="label"') == 2 and "a, trained policy: 0.300" in html
    assert "a (target as it came) 0.200" in several.alt


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("a b c", "a b c", ["same a b c"]),
        ("a b c", "a x c", ["same a ", "removed b ", "added x ", "same c"]),
        ("", "new text", ["added new text"]),
        ("gone", "", ["removed gone"]),
        ("一二三", "一四三", ["same 一", "removed 二", "added 四", "same 三"]),
        ("end.", "end. More.", ["same end. ", "added More."]),
    ],
)
def test_word_differences(before: str, after: str, told: list[str]) -> None:
    assert [f"{part.kind} {part.text}" for part in word_diff(before, after)] == told


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_difference_holds_both_texts(before: str, after: str) -> None:
    parts = word_diff(before, after)
    assert "".join(part.text for part in parts if part.kind != "removed") == after
    old = "".join(part.text for part in parts if part.kind != "added")
    assert "".join(old.split()) == "".join(before.split()), "only blanks may be those of the other text"


def test_numbers_of_one_column_have_the_same_decimals() -> None:
    assert [fixed(v, decimals_for([0.0301, 0.0054])) for v in (0.0301, 0.0054, -0.032, None)] == [
        "0.0301",
        "0.0054",
        "−0.0320",
        "–",
    ]
    assert decimals_for([]) == 3 and decimals_for([0.0]) == 3 and decimals_for([1234.5]) == 0
    assert fixed(0.5, 2, sign=True) == "+0.50"
    assert fixed(-3.014e-9, decimals_for([-3.014e-9])) == "−3.01e−09"
    assert [byte_size(n) for n in (0, 999, 1000, 1_500_000_000, 12_345_678)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 GB",
        "12 MB",
    ]
    assert cut("abcdef", 6) == "abcdef" and cut("abc defg", 5) == "abc…"


def test_an_excerpt_is_cut_between_words_around_the_quote() -> None:
    text = "word " * 300 + "The quoted sentence." + " more" * 300
    before, quote, after = excerpt_around(text, "The quoted sentence.")
    assert quote == "The quoted sentence."
    assert before.startswith("…word ") and after.endswith(" more…") and len(before + quote + after) < 710
    assert excerpt_around("Short. Quote.", "Quote.") == ("Short. ", "Quote.", "")
    assert excerpt_around("x" * 900, "not in it")[0] == "x" * 699 + "…"
    assert excerpt_around("y" * 500 + "Q" + "z" * 500, "Q")[0].startswith("…y")


def test_templates_take_secrets_out_of_every_value() -> None:
    html = render(
        "heatmap.html.j2", ["<secret>"], heatmap=type("H", (), {"title": "a <secret>", "rows": [], "legend": []})
    )
    assert "secret" not in html and "[redacted]" in html
