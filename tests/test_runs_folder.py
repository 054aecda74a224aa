"""Run folders: what the manifest says after success, failure and interruption, and who may work on a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from runs_helpers import tiny_recipe

from optimsyn.base.errors import RecipeError, StageError
from optimsyn.base.files import write_text
from optimsyn.llm.hosted.service_memory import Learned, ServiceMemory
from optimsyn.llm.replies import Reply
from optimsyn.machine.forecast.wall_clock import expected_time
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs import STAGES, Run
from optimsyn.runs.durations import clock, earlier_seconds, seconds_left, whole_runs
from optimsyn.runs.manifest import Failure, ManifestFile
from optimsyn.runs.resources import find_recipe, notebook_name, notebook_path


def test_open_writes_a_recipe_that_loads_equal(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    run = Run.open(recipe, tmp_path)
    assert run.folder == tmp_path / f"tiny-{recipe.fingerprint}"
    assert Run.load(run.folder).recipe == recipe
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert [stage["name"] for stage in manifest["stages"]] == list(STAGES)
    assert manifest["seeds"] == {"recipe": 0}
    assert manifest["versions"]["python"]
    assert manifest["cost"]["cost_usd"] == 0


def test_limits_may_change_between_starts_but_results_may_not(tmp_path: Path) -> None:
    first = Run.open(tiny_recipe(), tmp_path)
    again = Run.open(tiny_recipe(limits={"cost_usd": 3}), tmp_path)
    assert again.folder == first.folder
    assert Run.load(first.folder).recipe.limits.cost_usd == 3
    assert Run.open(tiny_recipe(seed=1), tmp_path).folder != first.folder


def test_stage_finishes_once(tmp_path: Path) -> None:
    run = Run.open(tiny_recipe(), tmp_path)
    with run.stage("prepare") as stage:
        assert not stage.finished
        assert run.manifest.stage("prepare").status == "running"
        stage.progress(1, 4, "documents")
        assert run.progress() is not None
        stage.note(passages=4)
    record = run.manifest.stage("prepare")
    assert (record.status, record.attempts, record.notes) == ("finished", 1, {"passages": 4})
    assert run.progress() is None
    with run.stage("prepare") as stage:
        assert stage.finished
    assert run.manifest.stage("prepare").attempts == 1


@pytest.mark.slow
def test_failure_and_interruption_are_told_and_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANY_API_KEY", "sk-0123456789")
    run = Run.open(tiny_recipe(), tmp_path)
    with pytest.raises(ValueError, match="boom"), run.stage("prepare"):
        raise ValueError("boom with sk-0123456789")
    record = run.manifest.stage("prepare")
    assert record.status == "failed"
    assert record.error == "ValueError: boom with [redacted]"
    with pytest.raises(KeyboardInterrupt), run.stage("prepare"):
        raise KeyboardInterrupt
    assert run.manifest.stage("prepare").status == "interrupted"
    with run.stage("prepare"):
        pass
    record = run.manifest.stage("prepare")
    assert (record.status, record.attempts, record.error) == ("finished", 3, None)


def test_a_failure_is_on_record_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY_API_KEY", "sk-0123456789")
    run = Run.open(tiny_recipe(), tmp_path)
    with pytest.raises(ValueError, match="boom"), run.stage("prepare"):
        raise ValueError("boom with sk-0123456789")
    failure = run.manifest.stage("prepare").failure
    assert failure == Failure(kind="ValueError", reason="boom with [redacted]")
    told = Failure(kind="KernelDied", cell=3, source="print('sk-0123456789')\n", reason="killed with sk-0123456789")
    run.mark_stopped("prepare", "failed", told, seconds=2.0)
    record = run.manifest.stage("prepare")
    assert record.failure == Failure(
        kind="KernelDied", cell=3, source="print('[redacted]')\n", reason="killed with [redacted]"
    )
    assert (record.error, record.seconds) == ("KernelDied: killed with [redacted]", 2.0)
    with run.stage("prepare"):
        pass
    assert run.manifest.stage("prepare").failure is None
    # What has finished stays finished.
    run.mark_stopped("prepare", "failed", told)
    assert run.manifest.stage("prepare").status == "finished"


def test_a_cause_that_echoes_a_key_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "correct-horse-battery"
    monkeypatch.setenv("ANY_API_KEY", key)

    def ask() -> None:
        try:
            raise ConnectionError(f"401: key {key} is wrong")
        except ConnectionError as error:
            raise RuntimeError(f"the service refused {key}") from error

    run = Run.open(tiny_recipe(), tmp_path)
    with pytest.raises(RuntimeError) as caught, run.stage("prepare"):
        ask()
    assert key not in "".join(traceback.format_exception(caught.value))
    assert "the service refused [redacted]" in str(caught.value)


@pytest.mark.slow
def test_each_stage_has_its_own_cost_over_all_attempts(tmp_path: Path) -> None:
    run = Run.open(tiny_recipe(), tmp_path)

    def buy(key: str) -> None:
        run.replies.put(key, Reply(text="x", input_tokens=10, output_tokens=2, cost_usd=0.25), {})

    buy("preview")
    with pytest.raises(ValueError), run.stage("prepare"):
        buy("a")
        raise ValueError
    with run.stage("prepare"):
        buy("b")
    with run.stage("warm_up"):
        buy("c")
    costs = [run.manifest.stage(stage).cost for stage in ("prepare", "warm_up", "evaluate")]
    assert [cost.replies for cost in costs] == [2, 1, 0]
    assert [cost.cost_usd for cost in costs] == [0.5, 0.25, 0.0]
    assert run.manifest.cost.replies == 4


@pytest.mark.slow
def test_what_services_answered_about_themselves_is_in_the_manifest(tmp_path: Path) -> None:
    run = Run.open(tiny_recipe(), tmp_path)
    memory = ServiceMemory.beside(run.replies.path)
    run.replies.put("a", Reply(text="x", cost_usd=0.25), {})
    with run.stage("prepare"):
        memory.change("openai/x", lambda known: Learned(left_out={"seed": "HTTP 400: no seed"}))
    assert run.manifest.services == {"openai/x": {"left_out": {"seed": "HTTP 400: no seed"}}}
    assert run.manifest.cost.usd() == "0.25 USD"
    with run.stage("warm_up"):
        run.replies.put("b", Reply(text="x", cost_usd=None), {})
        memory.change("openai/x", lambda known: replace(known, price_unknown=True))
    assert run.manifest.stage("warm_up").cost.usd() == "unknown"
    assert run.manifest.cost.usd() == "at least 0.25 USD"
    assert run.manifest.stage("prepare").cost.usd() == "0.00 USD"


@pytest.mark.slow
def test_peak_memory_is_that_of_the_stage(tmp_path: Path) -> None:
    run = Run.open(tiny_recipe(), tmp_path)
    with run.stage("prepare"):
        held = bytearray(200_000_000)
    del held
    with run.stage("warm_up"):
        pass
    peaks = [run.manifest.stage(stage).peak_memory_bytes or 0 for stage in ("prepare", "warm_up")]
    assert peaks[0] > 200_000_000
    if Path("/proc/self/clear_refs").exists():
        assert peaks[1] < peaks[0] - 100_000_000


def test_a_manifest_without_the_newer_fields_loads(tmp_path: Path) -> None:
    run = Run.open(tiny_recipe(), tmp_path)
    raw = json.loads((run.folder / "manifest.json").read_text())
    for stage in raw["stages"]:
        for field in ("peak_memory_bytes", "bought_before", "cost", "failure"):
            del stage[field]
    (run.folder / "manifest.json").write_text(json.dumps(raw))
    record = run.manifest.stage("prepare")
    assert (record.peak_memory_bytes, record.failure, record.cost.replies) == (None, None, 0)
    with run.stage("prepare"):
        pass
    assert run.done("prepare")


def test_stages_keep_their_order(tmp_path: Path) -> None:
    run = Run.open(tiny_recipe(), tmp_path)
    with pytest.raises(StageError, match="needs prepare"), run.stage("warm_up"):
        pass
    with pytest.raises(StageError, match="there is no stage 'warmup'"), run.stage("warmup"):
        pass
    with pytest.raises(StageError, match="did you mean `warm_up`"):
        notebook_name("warmup")


@pytest.mark.slow
def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    run = Run.open(tiny_recipe(), tmp_path)
    code = (
        "import sys\nfrom optimsyn.runs import Run\nrun = Run.load(sys.argv[1])\n"
        "with run.lock(), run.stage('prepare'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StageError, match=rf"already running by process {other.pid}"), run.lock():
            pass
        with pytest.raises(StageError, match="another process works on it"), run.stage("prepare"):
            pass
    finally:
        other.kill()
        other.wait()
    with run.lock(), run.stage("prepare"):
        pass
    assert run.manifest.stage("prepare").attempts == 2


def test_load_names_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not a run folder"):
        Run.load(tmp_path)
    run = Run.open(tiny_recipe(), tmp_path)
    (run.folder / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(StageError, match=r"manifest.json: recipe: "):
        run.done("prepare")
    (run.folder / "manifest.json").write_text('{"format": ')
    with pytest.raises(StageError, match=r"manifest.json: Invalid JSON"):
        run.done("prepare")


def test_a_file_in_place_of_which_there_is_a_folder_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").mkdir()
    for path in (tmp_path / "taken", tmp_path, Path()):
        with pytest.raises(IsADirectoryError) as caught:
            write_text(path, "text")
        assert caught.value.filename == str(path)
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "full", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_estimates(tmp_path: Path) -> None:
    earlier = Run.open(tiny_recipe(seed=1), tmp_path)
    with earlier.stage("prepare"):
        pass
    with ManifestFile(earlier.folder / "manifest.json").change() as manifest:
        manifest.stage("prepare").seconds = 30.0
    run = Run.open(tiny_recipe(), tmp_path)
    assert "not foreseen" in expected_time(run.recipe, tmp_path)
    assert "--size tiny" in expected_time(run.recipe, tmp_path)
    assert "--size tiny" not in expected_time(run.recipe.resized("tiny"), tmp_path)
    for seed, seconds in ((2, 60.0), (3, 240.0)):
        whole = Run.open(tiny_recipe(seed=seed), tmp_path)
        with ManifestFile(whole.folder / "manifest.json").change() as manifest:
            for record in manifest.stages:
                record.status, record.seconds = "finished", seconds
    assert sorted(whole_runs(tmp_path, run.recipe.name)) == [420.0, 1680.0]
    said = expected_time(run.recipe, tmp_path)
    assert "about 7 min 00 s to 28 min 00 s" in said and "2 finished runs" in said
    for seed in (2, 3):
        shutil.rmtree(Run.folder_of(tiny_recipe(seed=seed), tmp_path))
    known = earlier_seconds(run)
    assert known == {"prepare": 30.0}
    assert seconds_left(run, "prepare", 10, known) == 20
    assert seconds_left(run, "warm_up", 10, known) is None
    (run.folder / ".progress.json").write_text(
        json.dumps({"stage": "warm_up", "done": 2, "total": 6, "what": "pairs", "seconds": 10.0})
    )
    assert seconds_left(run, "warm_up", 10, known) == 20
    assert [clock(7), clock(750), clock(3723)] == ["0:07", "12:30", "1:02:03"]


def test_shipped_recipes_and_notebooks_are_found() -> None:
    assert Recipe.load(find_recipe("quickstart")).name == "quickstart"
    with pytest.raises(RecipeError, match="did you mean `quickstart`"):
        find_recipe("quickstrt")
    for stage in STAGES:
        assert notebook_path(stage).is_file()
