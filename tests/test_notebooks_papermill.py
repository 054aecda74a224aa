"""A stage notebook under plain papermill, as somebody runs it who knows nothing of our engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from notebook_helpers import ROOT

from optimsyn.runs import Run


@pytest.mark.slow
def test_plain_papermill_takes_a_file_of_parameters(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("recipe: quickstart\nsize: tiny\nchanges: {documents.passage_words: 100}\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "01_prepare.ipynb"), "out.ipynb"),
            *("-f", "params.yaml", "--no-progress-bar"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (tmp_path / "runs").iterdir()
    run = Run.load(folder)
    assert run.done("prepare")
    assert run.recipe.documents.passage_words == 100
    outputs = [output for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
