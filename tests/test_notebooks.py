"""The notebooks that are committed: they match their sources, keep the contract, show outputs and hide nothing."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from notebook_helpers import ROOT, load_tool

from optimsyn.execution.parameters import check_parameters, read_parameters
from optimsyn.runs import STAGES
from optimsyn.runs.resources import notebook_path

FOLDER = ROOT / "notebooks"
SOURCES = sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.py"))
CONTRACT = {
    "recipe": ("str", "quickstart"),
    "size": ("str", "full"),
    "generator": ("str", ""),
    "changes": ("dict", {}),
    "run_folder": ("str", ""),
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("notebooks")


def notebook(name: str) -> nbformat.NotebookNode:
    found = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(found)
    return found


def test_what_is_committed_passes_the_check(tool: ModuleType) -> None:
    assert tool.check() == []


def test_there_is_a_notebook_for_each_source_and_stage() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SOURCES)
    assert {notebook_path(stage).stem for stage in STAGES} <= set(SOURCES)
    assert "00_quickstart" in SOURCES


@pytest.mark.parametrize("name", SOURCES)
def test_parameters_are_typed_and_those_of_the_contract(name: str) -> None:
    parameters = read_parameters(notebook(name), name)
    found = {key: (parameter.annotation, parameter.default) for key, parameter in parameters.items()}
    if name[3:] in STAGES:
        assert found == CONTRACT
    elif name == "00_quickstart":
        assert found == {**CONTRACT, "size": ("str", "tiny")}
    else:
        # Further notebooks may have fewer or others; those that they share mean the same.
        assert all(found[key][0] == kind for key, (kind, _) in CONTRACT.items() if key in found)
    check_parameters(notebook(name), {}, name)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_notebook_starts_the_run_in_one_line_and_runs_its_stage(stage: str) -> None:
    code = "\n".join(cell.source for cell in notebook(notebook_path(stage).stem).cells if cell.cell_type == "code")
    assert "run = Run.start(recipe, size=size, generator=generator, changes=changes, run_folder=run_folder)" in code
    assert f"{stage}.run(run)" in code


@pytest.mark.parametrize("name", SOURCES)
def test_it_says_what_one_learns_measures_itself_checks_and_ends_with_what_to_try(name: str) -> None:
    cells = notebook(name).cells
    assert cells[0].source.startswith("# ")
    assert "measured" in cells[1].metadata.tags
    assert "Not measured" not in cells[1].source
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert "check_environment()" in code[1].source
    assert "## What to try next" in cells[-1].source


@pytest.mark.parametrize("name", SOURCES)
def test_cells_are_thin_and_a_picture_is_shown(name: str) -> None:
    code = [cell for cell in notebook(name).cells if cell.cell_type == "code"]
    for cell in code:
        tree = ast.parse(cell.source)
        assert not any(
            isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.While) for node in ast.walk(tree)
        )
        assert len(cell.source.splitlines()) <= 16
    shown = [kind for cell in code for output in cell.outputs for kind in output.get("data", {})]
    assert "image/png" in shown


def test_links_between_notebooks_lead_somewhere() -> None:
    for name in SOURCES:
        for cell in notebook(name).cells:
            for part in cell.source.split("](")[1:]:
                target = part.partition(")")[0]
                assert target.startswith("https://") or (FOLDER / target).is_file(), f"{name}: {target}"


def test_the_example_folder_is_whole() -> None:
    folder = FOLDER / "examples" / "beekeeping"
    assert {path.suffix for path in (folder / "documents").iterdir()} == {".md", ".txt", ".html", ".docx"}
    rows = (folder / "questions.csv").read_text().splitlines()
    assert len(rows) - 1 == len((folder / "questions.jsonl").read_text().splitlines()) == 24


def test_pictures_have_words_for_those_who_cannot_see_them() -> None:
    for name in SOURCES:
        for cell in notebook(name).cells:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    assert len(output.metadata.get("alt", "")) > 20, name


def test_sources_are_in_percent_format_without_outputs_of_their_own() -> None:
    for name in SOURCES:
        text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert text.startswith("# %% [markdown]\n")
        assert max(map(len, text.splitlines())) <= 120


def test_the_tool_finds_what_must_not_be_committed(tool: ModuleType, tmp_path: Path) -> None:
    form = load_tool("notebook_form")
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", name="stderr", text="careful")])
    leaky = nbformat.v4.new_code_cell(
        "y", outputs=[nbformat.v4.new_output("stream", text="see /home/someone/optimsyn/runs and sk-" + "a" * 24)]
    )
    failed = nbformat.v4.new_code_cell("z", outputs=[nbformat.v4.new_output("error", ename="KeyError", evalue="'a'")])
    faults = "\n".join(form.faults_of(nbformat.v4.new_notebook(cells=[cell, leaky, failed]), "n"))
    for fault in ("standard error", "absolute path: /home/someone", "looks like a key", "failed with KeyError"):
        assert fault in faults
    assert "no cell has an output" in form.faults_of(nbformat.v4.new_notebook(cells=[]), "n")[0]
