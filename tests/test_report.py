"""Tables, picture, summary and text in a notebook."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from optimsyn.base.terminal.labels import VARIANT_COLORS, metric_label, variant_color, variant_label
from optimsyn.base.terminal.live_line import TRANSIENT, NotebookText
from optimsyn.base.terminal.table import Table, duration, number
from optimsyn.recipe.recipe import VARIANTS
from optimsyn.report.drawing import Picture
from optimsyn.report.stage_plots import RunNumbers, run_figure
from optimsyn.report.summary import Summary, influence_summaries
from optimsyn.report.tables import evaluation_table, facts_table
from optimsyn.training.intervals import UNTUNED, MetricRow, differs


def metric(variant: str, name: str, value: float, difference: float | None = None, half: float = 0.1) -> MetricRow:
    return MetricRow(
        variant=variant,
        metric=name,
        value=value,
        low=value - half,
        high=value + half,
        n=60,
        difference=difference,
        difference_low=None if difference is None else difference - half,
        difference_high=None if difference is None else difference + half,
    )


EVALUATION = [
    metric("target", "answer_loss", 3.2),
    metric("target", "accuracy", 0.2),
    metric("policy", "answer_loss", 2.9, -0.3),
    metric("policy", "accuracy", 0.25, 0.05),
]
INFLUENCE = {"static": [0.01, 0.2, -0.05, 0.11], "policy": [0.3], "no_rubric": []}
PROMPT = [
    {"judged": 8, "status": "start", "score": 0.05, "best": 0.05},
    {"judged": 12, "status": "rejected", "score": 0.01, "best": 0.05},
    {"status": "proposal failed", "reason": "no evidence"},
    {"judged": 20, "status": "accepted", "score": 0.09, "best": 0.09},
]
POLICY = [{"step": step, "reward": 0.01 * step, "reward_std": 0.02, "valid": 0.5} for step in (1, 2, 3)]


def terminal(item: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(item)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_variant_has_a_name_and_a_colour_of_its_own() -> None:
    names = [UNTUNED, *VARIANTS]
    assert set(names) <= set(VARIANT_COLORS)
    assert len({variant_color(name) for name in names}) == len(names)
    assert len({variant_label(name) for name in names}) == len(names)
    assert variant_color("own") == variant_color("own") != ""
    assert metric_label("answer_loss") == "answer loss ↓"
    assert metric_label("accuracy") == "accuracy ↑"


def test_evaluation_table_shows_value_interval_and_paired_difference() -> None:
    table = evaluation_table(EVALUATION)
    assert table.rows == (
        ("answer loss ↓ (60 questions)", "", ""),
        ("  target as it came", "3.200 [3.100, 3.300]", "–"),
        ("  trained policy", "2.900 [2.800, 3.000]", "−0.300 [−0.400, −0.200]"),
        ("accuracy ↑ (60 questions)", "", ""),
        ("  target as it came", "0.200 [0.100, 0.300]", "–"),
        ("  trained policy", "0.250 [0.150, 0.350]", "+0.050 [−0.050, +0.150]"),
    )
    assert "95% percentile bootstrap" in table.note
    assert "paired by question" in table.note


def test_single_values_have_no_interval() -> None:
    table = evaluation_table([MetricRow(**{**EVALUATION[0], "low": None, "high": None, "n": 1})])
    assert table.rows[1] == ("  target as it came", "3.200", "–")
    assert "paired" not in table.note


def test_tables_escape_what_models_write() -> None:
    table = Table("<b>", ("[red]a", "b"), (("<script>", "[bold]x[/bold] [/]"),), frozenset({1}), note="[link]")
    shown = table._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    text = terminal(table)
    assert "[bold]x[/bold] [/]" in text
    assert "[red]a" in text
    assert "[link]" in text
    assert str(table).strip() == text.strip() or "[bold]x" in str(table)


def test_table_with_a_short_row_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 1 cells under 2 headings"):
        Table("t", ("a", "b"), (("x",),))


def test_numbers_survive_a_narrow_terminal() -> None:
    text = terminal(evaluation_table(EVALUATION), width=76)
    assert "  trained policy" in text
    assert "2.900 [2.800, 3.000]" in text
    assert "−0.300 [−0.400, −0.200]" in text
    assert "static guiding" in terminal(make_summary(), width=80)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.123"), (-2.0, "−2"), (None, "–"), (0.0, "0"), (1e-9, "1e-09"), (123456.0, "1.23e+05")],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_facts() -> None:
    assert facts_table("f", {"best_score": 0.123456, "changed": True, "x": None}).rows == (
        ("best score", "0.1235"),
        ("changed", "True"),
        ("x", "–"),
    )


def size_of(picture: Picture) -> tuple[int, int]:
    from PIL import Image

    return Image.open(io.BytesIO(picture.png)).size


def test_picture_of_a_whole_run(tmp_path: Path) -> None:
    numbers = RunNumbers(INFLUENCE, PROMPT, POLICY, EVALUATION, zero_gradient=0.04)
    picture = run_figure(numbers, "quickstart-0123456789")
    width, height = size_of(picture)
    assert width == 1365
    assert 600 < height < 1100
    assert "reward 0.05 at the start, best 0.09" in picture.alt
    assert "trained policy 2.9" in picture.alt
    assert picture.save(tmp_path / "deep" / "summary.png").read_bytes() == picture.png
    assert picture._repr_mimebundle_()[0]["image/png"] == picture.png
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["summary.png"]
    assert picture.alt.startswith("Median influence")


def test_picture_is_the_same_every_time() -> None:
    many = {"static": [index / 999 for index in range(1000)]}
    assert run_figure(RunNumbers(many)).png == run_figure(RunNumbers(many)).png


@pytest.mark.parametrize(
    ("influence", "prompt", "policy", "evaluation"),
    [
        ({}, [], [], []),
        ({"static": []}, [], [], []),
        ({"static": [0.1]}, [], [], []),
        ({}, PROMPT[:1], [], []),
        ({}, PROMPT[1:2], [], []),
        ({}, [], [{"step": 1, "reward": 0.1}], []),
        ({}, [], [], EVALUATION[:1]),
    ],
)
def test_parts_that_a_run_does_not_have_are_left_out(
    influence: dict[str, list[float]],
    prompt: list[dict[str, Any]],
    policy: list[dict[str, Any]],
    evaluation: list[MetricRow],
) -> None:
    assert size_of(run_figure(RunNumbers(influence, prompt, policy, evaluation)))[0] == 1365


def test_star_marks_intervals_that_leave_out_zero() -> None:
    assert differs(metric("policy", "accuracy", 0.3, 0.2, half=0.1))
    assert differs(metric("policy", "accuracy", 0.3, -0.2, half=0.1))
    assert not differs(metric("policy", "accuracy", 0.3, 0.1, half=0.2))
    assert not differs(metric("target", "accuracy", 0.3))


def make_summary() -> Summary:
    return Summary(
        run="quickstart-0123456789",
        recipe="quickstart",
        fingerprint="0123456789",
        dataset_variant="policy",
        dataset_pairs=24,
        evaluation=[dict(row) for row in EVALUATION],
        influence=influence_summaries(INFLUENCE),
        zero_gradient=0.04,
        losses={"static": {"candidates": 36, "invalid": 9, "invalid: grounded": 6, "invalid: length": 3, "kept": 24}},
        optimization={"prompt": {"start_score": 0.05, "score": 0.09}},
        cost={"replies": 1234, "input_tokens": 50000, "output_tokens": 900, "cost_usd": 0.0},
        seconds={"prepare": 3.2, "synthesize": 200.0},
        notes=["A note with <brackets> and [markup]."],
    )


def test_summary_is_written_read_and_shown(tmp_path: Path) -> None:
    summary = make_summary()
    summary.write(tmp_path, Picture(b"png"))
    assert Summary.read(tmp_path) == summary
    raw = json.loads((tmp_path / "summary.json").read_text())
    assert raw["evaluation"][0]["variant"] == "target"
    assert raw["influence"]["static"]["n"] == 4
    assert "no_rubric" not in raw["influence"]
    assert (tmp_path / "summary.png").read_bytes() == b"png"
    shown = terminal(summary, width=140)
    for wanted in ("3.200 [3.100, 3.300]", "grounded 6, length 3", "3 min 20 s", "1,234", "[markup]", "24 pairs"):
        assert wanted in shown
    page = summary._repr_html_()
    assert "&lt;brackets&gt;" in page
    assert page.count("<table>") == 4


def test_durations() -> None:
    assert [duration(s) for s in (0.2, 59.4, 59.6, 61, 3599.7, 7500)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 05 min",
    ]


def test_text_in_a_notebook_updates_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    shown: list[dict[str, str]] = []

    class Handle:
        def update(self, bundle: dict[str, str], raw: bool, metadata: dict[str, Any]) -> None:
            assert metadata == TRANSIENT
            shown.append(bundle)

    def display(bundle: dict[str, str], raw: bool, metadata: dict[str, Any], display_id: bool) -> Handle:
        assert raw and display_id and metadata == TRANSIENT and not shown
        shown.append(bundle)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    text = NotebookText()
    for state in ("<reading>: 0/2", "<reading>: 2/2, done"):
        text.show(state)
    assert shown[0]["text/plain"].startswith("<reading>: 0/2")
    assert "&lt;reading&gt;: 2/2, done" in shown[-1]["text/html"]
