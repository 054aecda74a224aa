"""Charts, word differences and the small helpers of the pages."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_helpers import Page, metric_row

from optimsyn.base.terminal.labels import variant_color
from optimsyn.base.terminal.table import decimals_for, fixed
from optimsyn.report.charts import Chart, influence_chart, interval_chart, policy_chart, prompt_chart
from optimsyn.report.drawing import page_axes
from optimsyn.report.page.pairs import excerpt_around
from optimsyn.report.panels import draw_prompt, prompt_words
from optimsyn.report.rendering import cut, render
from optimsyn.report.word_diff import word_diff


def drawn(chart: Chart | None) -> str:
    """The drawing: small, complete in itself, of the page's colours, and in words too."""
    assert chart is not None
    html = render("chart.html.j2", drawn=chart)
    page = Page(html)
    assert page.problems == [] and page.ids == []
    assert set(page.tags) <= {"figure", "figcaption", "svg", "g", "path", "text", "title", "p"}
    assert dict(page.attributes_of("svg"))["role"] == "img" and dict(page.attributes_of("svg"))["aria-label"]
    assert "url(" not in html and "font-family" not in html
    assert "nan" not in html and "inf" not in html.replace("influence", "")
    # What is not of the page's colours is that of a variant of somebody's own.
    assert set(re.findall(r"#[0-9a-fA-F]{6}", html)) <= {variant_color("own_variant").lower()}
    return html


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
    assert len(html) < 12_000
    assert "Dashed" not in html and html.count("h0") == sum(min(180, len(values)) for values in influence.values())
    dashed = drawn(influence_chart(influence, zero_gradient=0.5))
    assert "Dashed" in dashed and "<title>a pair without any gradient</title>" in dashed


def test_a_drawing_follows_the_page_and_says_more_where_one_points() -> None:
    html = drawn(influence_chart({"policy": [0.1, 0.2, 0.3, 0.4, 0.5], "static": [0.1]}))
    assert "var(--v-policy)" in html and "var(--ink)" in html
    assert "<title>median 0.3</title>" in html and "<title>middle half: 0.2 to 0.4</title>" in html
    assert ">5 pairs, median 0.300</text>" in html and ">trained policy</text>" in html


def test_histories_of_optimisers_are_drawn_or_left_out() -> None:
    assert prompt_chart([]) is None and policy_chart([]) is None
    assert prompt_chart([{"status": "proposal failed", "reason": "x"}]) is None
    assert "<title>rejected: 0.1</title>" in drawn(prompt_chart([{"judged": 4, "status": "rejected", "score": 0.1}]))
    html = drawn(
        prompt_chart(
            [{"judged": 4, "status": "start", "score": 0.1}, {"judged": 9, "status": "accepted", "score": 0.3}]
        )
    )
    assert "reward 0.1 at the start, best 0.3" in html
    assert "Dotted" not in drawn(policy_chart([{"step": 1, "reward": 0.1}]))
    many = [{"step": i, "reward": 0.01 * i, "reward_std": 0.1, "valid": 1.0} for i in range(1, 500)]
    assert "on the right: the share of pairs" in drawn(policy_chart(many))


@pytest.mark.parametrize("counts", [(3, 3), (2, 8), (None, None)])
def test_scores_of_few_passages_are_not_on_the_axis_of_those_of_all(counts: tuple[int | None, int | None]) -> None:
    history: list[dict[str, Any]] = [
        {"judged": 16, "status": "start", "score": 0.1},
        {"judged": 19, "status": "rejected", "score": 5.0},
        {"judged": 40, "status": "compared", "score": 0.2},
        {"judged": 43, "status": "rejected", "score": -7.0},
    ]
    if counts[0] is not None:
        history = [row | {"passages": n} for row, n in zip(history, (16, counts[0], 16, counts[1]), strict=True)]
    with page_axes(380, 300, (50, 20, 370, 280)) as axes:
        note = draw_prompt(axes, history)
        above, below = axes.child_axes
    low, high = above.get_ylim()
    assert 0 < low < 0.1 < 0.2 < high < 0.3 and below.get_ylim()[0] < -7 < 5 < below.get_ylim()[1]
    assert above.get_xlim() == below.get_xlim()
    names = [text.get_text() for each in (above, below) for text in each.texts]
    assert names[0] == "● compared (n = 16 passages), line: best", "the first text tells how many, where no row does"
    told = {(3, 3): " (n = 3 passages)", (2, 8): " (n = 2 to 8 passages)"}.get(counts, "")  # type: ignore[call-overload]
    assert f"○ rejected early{told}" in names
    assert ("8" in names) == (counts == (2, 8)), "dots of different numbers of passages carry theirs"
    assert "scale of its own" in note and f"2 of them rejected early{told}" in prompt_words(history)


def test_intervals_of_one_run_and_of_several() -> None:
    rows: list[dict[str, Any]] = [metric_row("target", "accuracy", 0.2, None, 0.1)]
    rows.append(metric_row("policy", "accuracy", 0.3, 0.1, 0.1))
    html = drawn(interval_chart("accuracy", rows))
    assert "0.200 [0.100, 0.300]" in html and "stroke-dasharray" in html
    rows[0] |= {"low": None, "high": None}
    assert "0.200</text>" in drawn(interval_chart("accuracy", rows))
    several = interval_chart("accuracy", [*rows, *rows], ["a $x$", "a $x$", "b", "b"], zero=True)
    html = drawn(several)
    assert html.count(">a $x$</text>") == 1 and "<title>a $x$, trained policy: 0.300" in html
    assert "a $x$ (target as it came) 0.200" in html


def test_no_secret_gets_through_a_drawing() -> None:
    rows: list[dict[str, Any]] = [metric_row("target", "accuracy", 0.2, None, 0.1)]
    chart = interval_chart("accuracy", rows, ["my sesame-open-now run <b>&"])
    html = render("chart.html.j2", ["sesame-open-now"], drawn=chart)
    assert "sesame" not in html and "<b>" not in html
    assert html.count("my [redacted] run &lt;b&gt;&amp;") == 4, (
        "in words, in the row, and where one points at dot and line"
    )


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
