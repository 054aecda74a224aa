"""Finds runs by what a user types: a folder, a name, or the name of a recipe that one run begins with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.errors import StageError
from optimsyn.base.suggestions import nearest

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run


def find_run(name: str) -> Run:
    """The run that a name means; see `run_folder`."""
    from optimsyn.runs.folder import Run

    return Run.load(run_folder(name))


def run_folder(name: str, root: Path | None = None) -> Path:
    """The folder of a run.

    Args:
        name: The folder, its name in `root`, or the name of a recipe that has one run beside it or in `root`.
        root: Folder of the run folders; None means `runs`.

    Raises:
        StageError: There is no such run, or several begin with this name; suggests names.
    """
    folder = Path(name).expanduser()
    if _is_run(folder):
        return folder
    inside = _near(folder)
    if inside:
        raise StageError(f"{folder}: is a folder of runs, not a run; name one of them, such as {folder / inside[0]}")
    # Users often leave out the folder of the runs.
    places = (folder.resolve().parent, Path("runs") if root is None else root)
    for place in places:
        names = _near(place)
        begin = [run for run in names if run == folder.name or (folder.name and run.startswith(f"{folder.name}-"))]
        if len(begin) == 1:
            return place / begin[0]
        if begin:
            raise StageError(f"{folder}: {len(begin)} runs begin with this name; name one of {', '.join(begin)}")
    for place in places:
        near = nearest(folder.name, _near(place), cutoff=0.5)
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


def _near(folder: Path) -> list[str]:
    """Runs to suggest; what may not be looked into is none."""
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    return sorted(path.name for path in folder.iterdir() if os.access(path, os.X_OK) and _is_run(path))


def _reason(folder: Path) -> str:
    return "not a run folder (no manifest.json in it)" if folder.exists() else "there is no such run folder"
