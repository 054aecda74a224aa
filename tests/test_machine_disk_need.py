"""The room that a run will take on the disk, predicted and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimsyn.base.disk import cannot_write, free_bytes, is_disk_trouble, size_text
from optimsyn.base.errors import RecipeError, StageError
from optimsyn.machine import disk_need as module
from optimsyn.machine.disk_need import disk_need
from optimsyn.machine.preflight import checked
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES
from tests.llm_helpers import Service
from tests.stages_helpers import recipe, run_stage, served

__all__ = ["recipe", "served"]


@pytest.mark.slow
def test_a_whole_run_takes_no_more_than_predicted(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    need = disk_need(recipe, Run.folder_of(recipe, root))
    run = Run.open(recipe, root)
    for stage in STAGES:
        run_stage(run, stage)
    assert not list(run.folder.glob("*.reserve")), "what was set aside is given back"
    taken = {path: path.stat().st_size for path in run.folder.rglob("*") if path.is_file()}
    assert sum(taken.values()) <= need.total
    adapters = sum(size for path, size in taken.items() if path.name == "adapter_model.safetensors")
    header = 30_000  # of each file, and this model is tiny
    assert need.parts["fine-tuning"] / 12 * 3 <= adapters <= need.parts["fine-tuning"] + header
    # The target's two layers of q, k, v, o at rank 8: hidden 32, two of four heads for keys and values.
    assert need.parts["warm-up checkpoints"] == 3 * 4 * 2 * 8 * ((32 + 32) + 2 * (32 + 16) + (32 + 32))
    assert need.more == need.total
    assert disk_need(recipe, run.folder).more == 0, "a finished run needs nothing"


def test_what_is_there_is_not_asked_for_again(recipe: Recipe, tmp_path: Path) -> None:
    run = Run.open(recipe, tmp_path / "runs")
    before = disk_need(recipe, run.folder)
    run.path("replies.sqlite").write_bytes(bytes(1000))
    run.path("fine_tune", "static", "adapter", "adapter_model.safetensors").write_bytes(bytes(500))
    assert disk_need(recipe, run.folder).more == before.more - 1500
    run.path("manifest.json").write_text("{}")
    assert disk_need(recipe, run.folder).more == before.more - 1500


def test_more_of_anything_takes_more(recipe: Recipe, tmp_path: Path) -> None:
    before = disk_need(recipe, tmp_path / "run").parts

    def after(**changes: object) -> dict[str, int]:
        return disk_need(changed(recipe, {k.replace("__", "."): v for k, v in changes.items()}), tmp_path).parts

    assert after(synthesis__pairs=4000)["replies"] > 100 * before["replies"]
    assert after(synthesis__pairs=4000)["judgements"] > 100 * before["judgements"]
    assert after(warm_up__checkpoints=2)["warm-up checkpoints"] == 2 * before["warm-up checkpoints"]
    assert after(synthesis__pairs=4000, limits__requests=10)["replies"] < before["replies"]
    whole = after(models__target__full_weights=["down_proj"])
    assert whole["warm-up checkpoints"] == 3 * 4 * 2 * 32 * 48


@pytest.mark.parametrize(("share", "refused", "told"), [(0.5, True, False), (1.2, False, True), (2.0, False, False)])
def test_a_run_that_cannot_fit_is_refused_and_a_tight_one_is_told(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, refused: bool, told: bool
) -> None:
    total = disk_need(recipe, tmp_path / "run").total
    monkeypatch.setattr(module, "free_bytes", lambda path: round(share * total))
    found = checked(recipe, tmp_path / "runs", offline=True)
    assert any("its file system has" in text for text in found.problems) == refused
    assert any("its file system has" in text for text in found.warnings) == told
    assert "of disk" in found._repr_html_()
    if refused:
        with pytest.raises(
            RecipeError, match=r"the run will take about \d+ MB of disk \(.*, name another disk with --ro"
        ):
            found.raise_if_refused()


def test_a_root_that_cannot_be_written_to_is_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    found = checked(recipe, tmp_path / "runs" / "mine", deep=False, offline=True)
    assert any(text.startswith(f"{tmp_path}: cannot be written to") for text in found.problems)


def test_a_missing_folder_lies_where_its_parent_does(tmp_path: Path) -> None:
    free = free_bytes(tmp_path / "not" / "there" / "yet")
    assert free is not None
    assert free == pytest.approx(free_bytes(tmp_path), rel=0.05)
    assert [size_text(n) for n in (0, 41_300_000, 3_210_000_000)] == ["0 MB", "41 MB", "3.2 GB"]


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (OSError(30, "Read-only file system", "x"), True),
        (OSError(2, "No such file or directory", "x"), False),
        (RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0"), True),
        (RuntimeError("basic_ios::clear: iostream error"), True),
        (ValueError("I/O error: No space left on device (os error 28)"), True),
        (ValueError("nothing of the kind"), False),
    ],
)
def test_a_disk_that_takes_nothing_is_told_from_other_errors(error: Exception, found: bool) -> None:
    assert is_disk_trouble(error) == found
    with pytest.raises(StageError) as caught:
        try:
            raise error
        except Exception as inner:
            raise StageError("something failed") from inner
    assert is_disk_trouble(caught.value) == found


def test_the_message_says_file_reason_room_and_cure(tmp_path: Path) -> None:
    text = str(cannot_write(tmp_path / "file", "a reply", OSError(28, "No space left on device")))
    assert text.startswith(f"{tmp_path / 'file'}: cannot write a reply (No space left on device; ")
    assert "are free on its file system). What to do: free space there" in text


def test_a_stage_whose_library_meets_a_full_disk_fails_with_the_file_system_named(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimsyn.base.errors import DataError
    from optimsyn.stages import prepare

    def full(*args: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(prepare, "load_document_set", full)
    run = Run.open(recipe, tmp_path / "runs")
    with pytest.raises(DataError, match="cannot write what stage prepare writes"):
        run_stage(run, "prepare")
    record = run.manifest.stage("prepare")
    assert (record.status, record.failure and record.failure.kind) == ("failed", "DataError")
