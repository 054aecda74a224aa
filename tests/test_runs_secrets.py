"""A key in the environment, in a parameter by mistake, and echoed by a failing server: in no file of the run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from optimsyn import Run
from optimsyn.base.errors import ParameterError, RecipeError, StageError
from optimsyn.execution.engine import execute
from optimsyn.execution.runner import run_stages
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.resources import notebook_path
from tests.llm_helpers import Answer, Service, refused
from tests.stages_helpers import answer, run_stage

# One that only the environment tells, and one that anybody would know by its shape.
KEY = "correct-horse-battery-staple"
SHAPED = "sk-proj-4f9a8b7c6d5e4f3a2b1c"


def _files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_key(
    recipe: Recipe, served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGES_TEST_KEY", KEY)
    run = Run.open(recipe, tmp_path / "runs")
    run_stage(run, "prepare")
    asked: list[str] = []

    def failing(number: int, request: dict[str, Any]) -> Answer:
        asked.append(served.keys[-1])
        if number < 4:
            return answer(number, request)
        return refused(400, f"Incorrect API key provided: {KEY} (or {SHAPED}). Find yours in your account.")

    served.answer = failing
    said = io.StringIO()
    with pytest.raises(StageError, match=r"\[redacted\]") as caught:
        run_stages(run, Console(file=said, width=200), until="warm_up")
    assert f"Bearer {KEY}" in asked, "the service was to get the key"
    record = run.manifest.stage("warm_up")
    assert record.failure is not None
    assert record.failure.kind == "ServiceError"
    assert "warm_up.run(run)" in record.failure.source
    assert (run.folder / "report.html").is_file()

    by_mistake: list[dict[str, Any]] = [
        {"generator": KEY},
        {"generator": SHAPED},
        {"changes": {"models.generator": {"name": "openai/x", "api_key": SHAPED}}},
        {"changes": {"models.generator.api_base": f"https://me:{KEY}@host/v1"}},
    ]
    output = run.folder / "notebooks" / "by_mistake.ipynb"
    for parameters in by_mistake:
        with pytest.raises(ParameterError) as refusal:
            execute(notebook_path("warm_up"), output, parameters)
        assert KEY not in str(refusal.value)
        assert SHAPED not in str(refusal.value)
        with pytest.raises(RecipeError):
            Run.start("quickstart", root=tmp_path / "runs", **parameters)

    shown = str(caught.value) + said.getvalue() + json.dumps(record.model_dump())
    for key in (KEY, SHAPED):
        assert key not in shown
        assert _files_with(tmp_path, key) == []
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.name]
    assert {"manifest.json", "recipe.yaml", "replies.sqlite", "report.html"} <= {p.name for p in run.folder.iterdir()}
