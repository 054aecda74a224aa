"""Finds runs by the folder names that a user types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.errors import StageError
from optimsyn.base.suggestions import nearest

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run


def find_run(name: str) -> Run:
    """The run in a folder.

    Raises:
        StageError: There is no such folder, or it is no run; suggests a similar name.
        RecipeError: Its recipe.yaml does not fit this version.
    """
    from optimsyn.runs.folder import Run

    folder = Path(name).expanduser()
    if _is_run(folder):
        return Run.load(folder)
    inside = _runs_in(folder)
    if inside:
        raise StageError(f"{folder}: is a folder of runs, not a run; name one of them, such as {folder / inside[0]}")
    # Users often leave out the folder of the runs.
    for place in (folder.resolve().parent, Path("runs")):
        names = _runs_in(place)
        near = nearest(folder.name, names, cutoff=0.5)
        if near is None and folder.name:
            near = next((run for run in names if run.startswith(f"{folder.name}-")), None)
        if near is not None:
            path = place / near
            here = Path.cwd()
            path = path.relative_to(here) if path.is_relative_to(here) else path
            raise StageError(f"{folder}: {_reason(folder)}; did you mean {path}?")
    raise StageError(f"{folder}: {_reason(folder)}; `optimsyn run RECIPE` makes one and ends with its name")


def find_runs(names: Sequence[str]) -> list[Run]:
    """The runs in some folders; a folder of runs stands for all runs in it."""
    runs = []
    for name in names:
        folder = Path(name).expanduser()
        inside = [] if _is_run(folder) else _runs_in(folder)
        runs += [find_run(str(folder / run)) for run in inside] if inside else [find_run(name)]
    return runs


def _is_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _runs_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if _is_run(path)) if folder.is_dir() else []


def _reason(folder: Path) -> str:
    return "not a run folder (no manifest.json in it)" if folder.exists() else "there is no such run folder"
