"""The notebooks: cells match their percent sources, parameters are typed, each runs the stage of its name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from optimsyn.runs import STAGES
from optimsyn.runs.parameters import read_parameters
from optimsyn.runs.resources import notebook_path

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_tool", ROOT / "tools" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("stage", STAGES)
def test_cells_match_their_source(tool: ModuleType, stage: str) -> None:
    path = notebook_path(stage)
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert tool.cells_of(notebook) == tool.cells_of(tool.generated(path.with_suffix(".py"))), "run `make notebooks`"


@pytest.mark.parametrize("stage", STAGES)
def test_each_takes_a_run_folder_and_runs_its_stage(stage: str) -> None:
    notebook = nbformat.read(notebook_path(stage), as_version=4)
    parameters = read_parameters(notebook, stage)
    assert {name: (p.annotation, p.default) for name, p in parameters.items()} == {"run_folder": ("str", "")}
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert f"from optimsyn.stages import {stage}" in code
    assert f"{stage}.run(run)" in code


def test_no_notebook_is_without_source() -> None:
    folder = ROOT / "notebooks"
    assert {path.stem for path in folder.glob("*.ipynb")} == {path.stem for path in folder.glob("*.py")}
