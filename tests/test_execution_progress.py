"""How far a stage is: counted in parts, estimated, and drawn as one line."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from runs_helpers import tiny_recipe

from optimsyn.base.errors import Outcome, StageError
from optimsyn.base.terminal import live_line as live
from optimsyn.base.terminal.live_line import TRANSIENT, LiveLine
from optimsyn.execution import runner
from optimsyn.execution.engine import NotebookError
from optimsyn.execution.runner import run_stages, tell_notes
from optimsyn.execution.status_line import Screen
from optimsyn.llm.hosted.service_memory import BY_THE_LIST, ServiceMemory
from optimsyn.llm.outcome_log import DAMAGED
from optimsyn.machine.forecast.requests import forecast_run
from optimsyn.report.page.report import write_report
from optimsyn.runs import Run
from optimsyn.runs import stage_handle as handle
from optimsyn.runs.durations import clock, described, seconds_left, share_done, since_begun
from optimsyn.runs.manifest import Failure, ManifestFile


class Cell:
    """Stands in for the output area of a notebook's cell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import IPython.display

        self.outputs: list[str] = []
        monkeypatch.setattr(live, "in_notebook", lambda: True)
        monkeypatch.setattr(handle, "in_notebook", lambda: True)
        monkeypatch.setattr("optimsyn.execution.status_line.in_notebook", lambda: True)
        monkeypatch.setattr(IPython.display, "display", self._display)

    def _display(self, bundle: dict[str, str], raw: bool, metadata: dict[str, Any], display_id: bool) -> Any:
        assert raw and display_id
        assert metadata == TRANSIENT
        place = len(self.outputs)
        self.outputs.append(bundle["text/plain"])

        class Handle:
            def update(_, bundle: dict[str, str], raw: bool, metadata: dict[str, Any]) -> None:
                assert metadata == TRANSIENT
                self.outputs[place] = bundle["text/plain"]

        return Handle()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(tiny_recipe(), tmp_path)


def _tell(run: Run, **facts: Any) -> None:
    base = {"stage": "warm_up", "done": 0, "total": 8, "what": "pairs", "first": 0, "seconds": 0.0, "last": True}
    (run.folder / ".progress.json").write_text(json.dumps(base | facts))


def _wait(true: Callable[[], bool]) -> None:
    # A test that hangs is ended from outside.
    while not true():
        time.sleep(0.01)


def test_parts_of_a_stage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.stage("prepare") as stage:
        count = stage.count(3, "documents", last=False)
        assert run.progress() is None
        count.add(0)
        assert run.progress() is not None
        count.add(2)
        count.add(2)
        told = run.progress()
        assert told is not None
        # The third is more than was expected; the last of a part is always told.
        assert (told["done"], told["total"], told["what"], told["last"]) == (4, 4, "documents", False)
        stage.progress(5, 9, "passages")
        told = run.progress()
        assert told is not None
        assert (told["first"], told["what"], told["last"]) == (5, "passages", True)
        monkeypatch.setattr(handle, "TELL_SECONDS", 600)
        stage.progress(6, 9, "passages")
        again = run.progress()
        assert again == told, "told too soon after the last time"
    assert run.progress() is None


def test_estimates_by_part(run: Run) -> None:
    _tell(run, done=2, seconds=10.0)
    assert seconds_left(run, "warm_up", 10, {}) == 30
    assert described(run, "warm_up", 70, {}) == "2 of 8 pairs, 1:10, about 0:30 to go"
    assert share_done(run, "warm_up") == 0.25
    # What was there before this part began says nothing about its speed.
    _tell(run, done=4, first=2, seconds=10.0)
    assert seconds_left(run, "warm_up", 10, {}) == 20
    # Another part comes after this one: the whole is known from earlier runs only, and is no less than the part.
    _tell(run, done=2, seconds=10.0, last=False)
    assert seconds_left(run, "warm_up", 10, {}) is None
    assert described(run, "warm_up", 10, {}) == "2 of 8 pairs, 0:10, about 0:30 for these pairs"
    assert seconds_left(run, "warm_up", 10, {"warm_up": 100.0}) == 90
    assert seconds_left(run, "warm_up", 90, {"warm_up": 100.0}) == 30
    # Time goes on although nothing was told since.
    _tell(run, done=2, seconds=10.0, at=time.time() - 12)
    left = seconds_left(run, "warm_up", 22, {})
    assert left is not None
    assert left <= 18
    _tell(run, done=0, seconds=10.0)
    assert seconds_left(run, "warm_up", 10, {}) is None
    assert described(run, "prepare", 5, {}) == "0:05"
    assert share_done(run, "prepare") is None


def test_replies_without_a_value_are_told_while_a_stage_runs_and_kept_in_the_manifest(run: Run) -> None:
    for key, outcome in (("a", Outcome.READ), ("b", Outcome.CUT), ("c", Outcome.REFUSAL), ("d", Outcome.CUT)):
        run.replies.outcomes.note(key, "generator", outcome, asked_again=outcome is Outcome.CUT)
    run.replies.outcomes.note("e", "rubric", Outcome.INVALID)
    with run.stage("prepare") as stage:
        stage.progress(2, 8, "pairs")
        line = described(run, "prepare", 5.0, {})
        assert line == "2 of 8 pairs, 0:05, 4 replies without a value (1 of a wrong form, 2 cut, 1 refused)"
    assert run.manifest.outcomes == {
        "generator": {"read": 1, "cut": 2, "refusal": 1, "asked_again": 2},
        "rubric": {"invalid": 1},
    }
    _tell(run)
    assert described(run, "warm_up", 5.0, {}) == "0 of 8 pairs, 0:05"


@pytest.mark.slow
def test_a_stage_in_a_notebook_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "REDRAW_SECONDS", 0.02)
    cell = Cell(monkeypatch)
    with run.stage("prepare") as stage:
        stage.progress(1, 4, "documents")
        _wait(lambda: cell.outputs[0].startswith("prepare: 1 of 4 documents, "))
    assert re.fullmatch(r"prepare: finished after \d+:\d\d", "".join(cell.outputs))
    with pytest.raises(ValueError, match="boom"), run.stage("warm_up"):
        raise ValueError("boom")
    assert re.fullmatch(r"warm_up: stopped after \d+:\d\d", "".join(cell.outputs[1:]))
    with run.stage("prepare") as stage:
        assert stage.finished
    assert len(cell.outputs) == 2


def test_what_is_shown_of_a_stage_is_what_the_manifest_says(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(monkeypatch)
    with run.stage("prepare"):
        assert since_begun(run.manifest.stage("warm_up")) == 0
        with ManifestFile(run.folder / "manifest.json").change() as manifest:
            manifest.stage("prepare").started = (datetime.now(UTC) - timedelta(seconds=75)).isoformat()
        assert since_begun(run.manifest.stage("prepare")) >= 75
        # A clock that is not the run's own: what is shown at the end has to come from the manifest.
        monkeypatch.setattr("optimsyn.runs.folder.time.monotonic", lambda: 1e9)
    seconds = run.manifest.stage("prepare").seconds
    assert seconds is not None
    assert cell.outputs == [f"prepare: finished after {clock(seconds)}"]
    assert seconds > 1e6


@pytest.mark.parametrize("fails", [False, True])
def test_the_runner_shows_the_time_that_is_on_record(run: Run, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    def execute(notebook: Path, output: Path, *_: object, **__: object) -> None:
        with ManifestFile(run.folder / "manifest.json").change() as manifest:
            manifest.stage("prepare").seconds = 754.0
            if not fails:
                manifest.stage("prepare").status = "finished"
        if fails:
            raise NotebookError(output, 1, "1 / 0", "ValueError", "boom")

    monkeypatch.setattr("optimsyn.execution.engine.execute", execute)
    monkeypatch.setattr(runner, "embedded_server", lambda _: nullcontext())
    text = io.StringIO()
    with pytest.raises(StageError, match="boom") if fails else nullcontext():
        run_stages(run, until="prepare", console=Console(file=text, width=100))
    ends = [line.split() for line in text.getvalue().splitlines() if "12:34" in line]
    assert ends == [["✗" if fails else "✓", "1/7", "prepare", "12:34"]]


def test_the_runner_in_a_notebook_shows_a_line_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(monkeypatch)
    screen = Screen()
    with screen.line("1/7 prepare", lambda: "0:03") as end:
        assert cell.outputs == ["1/7 prepare 0:03"]
        end("[green]✓[/] 1/7 prepare 0:04")
    with pytest.raises(KeyboardInterrupt), screen.line("2/7 warm_up", lambda: "0:01"):
        raise KeyboardInterrupt
    screen.say("[dim]done[/]")
    assert cell.outputs == ["✓ 1/7 prepare 0:04", "2/7 warm_up stopped", "done"]


def test_in_a_log_a_long_stage_says_now_and_then_how_far_it_is() -> None:
    text, ended = io.StringIO(), threading.Event()
    states = iter(["3 of 9 pairs, 1:00", "5 of 9 pairs, 6:00"])

    def pauses() -> Iterator[float]:
        yield from (0.0, 0.0)
        ended.set()
        yield 3600.0

    Screen(Console(file=text, width=80)).tell("2/7 warm_up", lambda: next(states), pauses(), ended)
    assert text.getvalue() == "… 2/7 warm_up 3 of 9 pairs, 1:00\n… 2/7 warm_up 5 of 9 pairs, 6:00\n"


def test_the_runner_in_a_log_writes_two_lines_for_a_short_stage() -> None:
    text = io.StringIO()
    with Screen(Console(file=text, width=80)).line("1/7 prepare", lambda: "0:03") as end:
        end("[green]✓[/] 1/7 prepare 0:04")
    assert text.getvalue() == "… 1/7 prepare\n✓ 1/7 prepare 0:04\n"


def test_a_live_line_in_a_terminal_and_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "REDRAW_SECONDS", 0.02)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    states = iter(["a long line"] + ["short"] * 1000)
    terminal = Terminal()
    with LiveLine(lambda: next(states), stream=terminal) as line:
        _wait(lambda: "short" in terminal.getvalue())
        line.finish("done")
    assert terminal.getvalue() == "\ra long line\rshort      \rdone \n"
    log = io.StringIO()
    with LiveLine(lambda: f"now {time.monotonic()}", stream=log):
        time.sleep(0.2)
    assert len(log.getvalue().splitlines()) == 2


def test_what_a_stage_learned_of_services_and_kept_replies_is_told_once_and_stays_on_record(tmp_path: Path) -> None:
    run = Run.open(tiny_recipe(), tmp_path / "runs")
    text = io.StringIO()
    screen = Screen(Console(file=text, width=400))
    told: set[str] = set()
    tell_notes(run, screen, told)
    assert text.getvalue() == ""
    run.replies.outcomes.note("one", "generator", Outcome.READ)
    run.replies.outcomes.count("one", DAMAGED)
    memory = ServiceMemory.beside(run.replies.path)
    listed = {"seed": BY_THE_LIST, "stop": "HTTP 400: no stop"}
    memory.change("openai/x at http://h", lambda known: replace(known, usage="prompt_tokens: -5", left_out=listed))
    for _ in range(2):
        tell_notes(run, screen, told)
    lines = text.getvalue().splitlines()
    assert len(lines) == 3 and all(line.startswith("  note: ") for line in lines)
    assert "openai/x at http://h takes no stop" in lines[0]
    assert "cannot be true (prompt_tokens: -5)" in lines[1]
    assert "1 kept reply was damaged in replies.sqlite and bought again" in lines[2]
    run.mark_stopped("prepare", "failed", Failure(kind="Killed", reason="by a test"))
    assert run.manifest.outcomes == {"generator": {"read": 1, "damaged": 1}}
    assert run.manifest.services["openai/x at http://h"]["usage"] == "prompt_tokens: -5"
    assert any("cannot be true" in note for note in forecast_run(run).notes)
    page = write_report(run).read_text(encoding="utf-8")
    for words in ("damaged when kept, bought again", "cannot be true (prompt_tokens: -5)", "1 kept reply was damaged"):
        assert words in page
