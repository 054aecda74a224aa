"""What a person sees of a batch, in a terminal and elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from runs_helpers import tiny_recipe

from optimsyn.base.files import write_json
from optimsyn.batch.plan import Job
from optimsyn.batch.progress import Progress, Watch
from optimsyn.batch.state import BatchState, Options, RunState
from optimsyn.batch.table import View, spent, summary
from optimsyn.llm.reply import Usage
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import ManifestFile


def _batch(*runs: RunState) -> tuple[list[Job], BatchState]:
    options = Options(jobs=2, engine="processes", size="full", changes=[], until="evaluate", cost_usd=5)
    state = BatchState(pid=1, begun="2030-01-01T00:00:00+00:00", options=options, versions={}, runs=list(runs))
    state.add_up()
    state.seconds = 100.0
    return [Job(run.recipe, run) for run in runs], state


RUNS = (
    RunState(
        recipe="medicine", folder="/r/medicine", state="running", seconds=63, cost=Usage(replies=3, cost_usd=1.25)
    ),
    RunState(recipe="law", state="waiting"),
    RunState(
        recipe="finance",
        folder="/r/finance",
        state="failed",
        stage="warm_up",
        cell=3,
        source="stage.run(run)",
        kind="KernelDied",
        reason="the kernel was killed by SIGKILL",
        seconds=12.0,
        report="/r/finance/report.html",
    ),
    RunState(recipe="humanities", folder="/r/humanities", state="finished", earlier=True),
)
PROGRESS = {"/r/medicine": Progress("warm_up", 2, 7, "7 of 24 pairs", 125.0, Usage())}


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_table_says_where_each_run_is(width: int) -> None:
    jobs, state = _batch(*RUNS)
    text = io.StringIO()
    with View(Console(file=text, force_terminal=True, width=width, no_color=True), jobs, state) as view:
        view.show(PROGRESS)
    shown = text.getvalue()
    assert "1 running, 1 waiting, 1 finished, 1 failed · 1:40 · $1.25 of $5" in shown
    for word in ("2/7", "1:03", "~2:05", "$1.25", "running", "waiting", "failed"):
        assert word in shown, word
    if width > 80:
        assert "7 of 24 pairs" in shown
        assert "finished earlier" in shown


def test_a_long_batch_shows_what_matters_first() -> None:
    waiting = [RunState(recipe=f"w{number}", state="waiting") for number in range(50)]
    jobs, state = _batch(*waiting, *RUNS)
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=20, no_color=True)
    with View(console, jobs, state) as view:
        view.show(PROGRESS)
    lines = text.getvalue().splitlines()
    assert len({line.split()[0] for line in lines if line.startswith("w")}) == 13
    assert "medicine" in text.getvalue()
    assert "finance" in text.getvalue()
    assert "and 39 more" in text.getvalue()


def test_without_a_terminal_each_change_is_a_line_and_told_once() -> None:
    jobs, state = _batch(*RUNS)
    text = io.StringIO()
    with View(Console(file=text, width=100), jobs, state) as view:
        for _ in range(3):
            view.show(PROGRESS)
    lines = [line.split(None, 1)[1] for line in text.getvalue().splitlines()]
    assert [" ".join(line.split()) for line in lines] == [
        "medicine 2/7 warm_up",
        "finance failed in warm_up, cell [3] `stage.run(run)`: the kernel was killed by SIGKILL",
        "humanities finished earlier",
    ]


def test_the_summary_ends_with_reasons_reports_and_the_file(tmp_path: Path) -> None:
    jobs, state = _batch(*RUNS)
    state.comparison = "/r/batch.html"
    text = io.StringIO()
    summary(Console(file=text, width=90), jobs, state, tmp_path / "batch.json")
    lines = text.getvalue().splitlines()
    assert lines[-1] == str(tmp_path / "batch.json")
    assert any(line.startswith("side by side") and line.endswith("/r/batch.html") for line in lines)
    assert any(line.startswith("finance") and line.endswith("/r/finance/report.html") for line in lines)
    assert "  KernelDied: the kernel was killed by SIGKILL" in lines


def test_brackets_in_names_are_no_markup() -> None:
    jobs, state = _batch(RunState(recipe="[red]a.yaml", state="refused", kind="RecipeError", reason="[bold]: no"))
    text = io.StringIO()
    console = Console(file=text, width=90)
    summary(console, jobs, state, Path("batch.json"))
    View(console, jobs, state).show({})
    assert "[red]a.yaml" in text.getvalue()
    assert "[bold]: no" in text.getvalue()


@pytest.mark.slow
def test_progress_comes_from_the_folder_and_time_left_from_the_other_runs(tmp_path: Path) -> None:
    runs = [Run.open(tiny_recipe(name=name), tmp_path) for name in ("first", "second")]
    jobs = [Job(run.recipe.name, RunState(recipe=run.recipe.name), run, until="warm_up") for run in runs]
    watch = Watch()
    with runs[1].stage("prepare"):
        write_json(
            runs[1].folder / ".progress.json",
            {"stage": "prepare", "done": 5, "total": 10, "what": "documents", "seconds": 10.0},
        )
        found = watch.look(jobs[1])
        assert found is not None
        assert (found.stage, found.number, found.detail) == ("prepare", 1, "5 of 10 documents")
        assert found.left is None, "nobody knows how long warm_up takes"
        for stage in ("prepare", "warm_up"):
            with runs[0].stage(stage):
                pass
        with ManifestFile(runs[0].folder / "manifest.json").change() as manifest:
            manifest.stage("warm_up").seconds = 100.0
        watch.look(jobs[0])
        found = watch.look(jobs[1])
        assert found is not None
        assert found.left == pytest.approx(110.0, abs=3)


def test_money_is_shown_where_there_is_some() -> None:
    assert spent(Usage(cost_usd=12.345)) == "$12.35"
    assert spent(Usage(cost_usd=0.00123)) == "$0.0012"
    assert spent(Usage(input_tokens=9000, output_tokens=200)) == "9,200 tokens"
    assert spent(Usage(input_tokens=90_000)) == "90k tokens"
    assert Usage(replies=1, cost_usd=0.5) + Usage(replies=2) == Usage(replies=3, cost_usd=0.5)
