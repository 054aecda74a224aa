"""Parameters of a notebook: refused by name, type, value and range before anything starts, in well under a second."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from runs_helpers import tiny_recipe, write_notebook

from optimsyn.base.errors import ParameterError
from optimsyn.execution.parameters import (
    check_parameters,
    given_parameters,
    load_notebook,
    pair_of,
    read_parameters,
)
from optimsyn.runs import Run
from optimsyn.runs.resources import notebook_path

STAGE = """recipe: str = "quickstart"
size: str = "full"
generator: str = ""
changes: dict = {}
run_folder: str = ""
"""
KEY = "sk-proj-4f9a8b7c6d5e4f3a2b1c"


def _cell(source: str) -> dict[str, Any]:
    return {"cells": [{"metadata": {"tags": ["parameters"]}, "source": source}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recpie": "x"}, r"n.ipynb: no parameter 'recpie'; did you mean `recipe`"),
        ({"recipe": 3}, r"n.ipynb: parameter recipe is str, not 3"),
        ({"changes": "synthesis.pairs=3"}, r"parameter changes is dict, not"),
        ({"recipe": "quickstrt"}, r"parameter recipe: quickstrt: .*did you mean `quickstart`"),
        ({"recipe": "nowhere.yaml"}, r"parameter recipe: nowhere.yaml: there is no such recipe file"),
        ({"size": "tinny"}, r"parameter size: there is no size 'tinny'; did you mean `tiny`"),
        ({"changes": {"synthesis.pair": 3}}, r"parameter changes: synthesis.pair: .*did you mean `synthesis.pairs`"),
        ({"changes": {"synthesis.pairs": "x"}}, r"parameter changes:\s+synthesis.pairs: .*valid integer"),
        ({"changes": {"synthesis.pairs": 1}}, r"synthesis.pairs: .*greater than or equal to 2"),
        ({"generator": "opnai/gpt-5-mini"}, r"parameter generator: .*did you mean `openai/gpt-5-mini`"),
        ({"generator": "gpt 5"}, r"parameter generator: 'gpt 5' is not a model name"),
        ({"generator": "openai/gpt-5-mini"}, r"parameter generator: .*needs a key; set the environment variable"),
        ({"run_folder": "/nowhere"}, r"parameter run_folder: /nowhere is not a run folder"),
    ],
)
def test_what_does_not_fit_is_named(values: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ParameterError, match=message):
        check_parameters(_cell(STAGE), values, "n.ipynb")


def test_what_fits_is_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x" * 20)
    notebook = _cell(STAGE)
    check_parameters(notebook, {}, "n")
    check_parameters(notebook, {"size": "tiny", "changes": {"synthesis.pairs": 3}}, "n")
    for name in ("openai/gpt-5-mini", "mistralai/Mistral-7B", "meta-llama/Llama-3.2-1B", "Qwen/Qwen3-0.6B", "embedded"):
        check_parameters(notebook, {"generator": name}, "n")
    run = Run.open(tiny_recipe(), tmp_path)
    # With a run, the rest is ignored.
    check_parameters(notebook, {"run_folder": str(run.folder), "recipe": "nonsense"}, "n")
    # papermill adds these when it is asked to.
    check_parameters(notebook, {"PAPERMILL_INPUT_PATH": "a.ipynb"}, "n")


def test_the_keys_of_the_meant_recipe_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "x" * 20)
    notebook = _cell(STAGE)
    served = {"name": "openai/x", "api_base": "http://127.0.0.1:9", "api_key_env": "MINE"}
    assert check_parameters(notebook, {"changes": {"models.generator": served}}, "n") == ("MINE",)
    run = Run.open(tiny_recipe(models={"generator": served}), tmp_path)
    assert check_parameters(notebook, {"run_folder": str(run.folder)}, "n") == ("MINE",)
    assert check_parameters(_cell('text: str = ""'), {}, "n") == ()


def test_other_notebooks_are_checked_for_names_and_types() -> None:
    notebook = _cell('names: list = ["a"]\nsize: str = "large"\nshare: float | None = None')
    check_parameters(notebook, {"names": [], "size": "any", "share": 1}, "n")
    with pytest.raises(ParameterError, match="parameter names is list, not 'a'"):
        check_parameters(notebook, {"names": "a"}, "n")
    with pytest.raises(ParameterError, match="did you mean `share`"):
        check_parameters(notebook, {"shore": 1}, "n")


@pytest.mark.parametrize(
    "value",
    [
        KEY,
        "hf_AbCdEfGhIjKlMnOpQrSt",
        "ghp_0123456789abcdefghij",
        "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA-1234567890abcdefghijklmnopqrstu",
        "k9Xq2LmT7vRb4WcZ8NpY3sHd",
        "0f3a9c2e7b1d4f6a8c0e2b4d6f8a1c3e",
        "name of correct-horse-battery",
    ],
)
def test_a_key_is_refused_wherever_it_stands_and_never_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE_TOKEN", "correct-horse-battery")
    for values in (
        {"generator": value},
        {"recipe": value},
        {"changes": {"models.generator.name": value}},
        {"changes": {"checks.unsafe_words": ["a", value]}},
        {"changes": {value: 1}},
        {"run_folder": value},
        {value: "a"},
    ):
        with pytest.raises(ParameterError, match="api_key_env") as caught:
            check_parameters(_cell(STAGE), values, "n.ipynb")
        assert value not in str(caught.value)
        assert "correct-horse-battery" not in str(caught.value)


def test_values_from_the_command_line_are_read_by_type(tmp_path: Path) -> None:
    notebook = _cell('text: str = ""\ncount: int = 1\non: bool = False\nfields: dict = {}')
    file = tmp_path / "params.yaml"
    file.write_text("text: from the file\ncount: 5\n")
    pairs = [("text", "12"), ("on", "true"), ("fields", '{"a.b": 3}')]
    found = given_parameters(notebook, pairs, [file], "n")
    assert found == {"text": "12", "count": 5, "on": True, "fields": {"a.b": 3}}
    assert pair_of("text=a=b") == ("text", "a=b")
    assert pair_of("text=") == ("text", "")
    with pytest.raises(ParameterError, match="parameter text: has no value"):
        pair_of("text")
    file.write_text("- a list\n")
    with pytest.raises(ParameterError, match="a mapping of names"):
        given_parameters(notebook, [], [file], "n")
    for wrong in ("count: 2024-13-45\n", "count: 1\ncount: 2\n", "fields: &a {b: *a}\n"):
        file.write_text(wrong)
        with pytest.raises(ParameterError, match="not valid YAML"):
            given_parameters(notebook, [], [file], "n")
    with pytest.raises(ParameterError, match="count"):
        given_parameters(notebook, [("count", "2024-13-45")], [], "n")
    file.write_text("text: [\n")
    with pytest.raises(ParameterError, match="not valid YAML"):
        given_parameters(notebook, [], [file], "n")
    with pytest.raises(ParameterError, match="there is no such file"):
        given_parameters(notebook, [], [tmp_path / "nowhere.yaml"], "n")
    with pytest.raises(ParameterError, match="parameter count is int, not 'many'"):
        given_parameters(notebook, [("count", "many")], [], "n")


def test_only_notebooks_are_notebooks(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text("not JSON")
    (tmp_path / "b.ipynb").write_text("[]")
    for name in ("a.ipynb", "b.ipynb"):
        with pytest.raises(ParameterError, match=r"not a notebook"):
            load_notebook(tmp_path / name)
    with pytest.raises(ParameterError, match="there is no such notebook"):
        load_notebook(tmp_path / "c.ipynb")
    broken = nbformat.read(write_notebook(tmp_path / "d.ipynb", "1", parameters="a: str = ("), as_version=4)
    with pytest.raises(ParameterError, match="line 1 is not Python"):
        read_parameters(broken, "d.ipynb")


def test_execute_refuses_and_writes_nothing(tmp_path: Path) -> None:
    notebook, output = str(notebook_path("prepare")), tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "optimsyn", "execute", notebook, str(output)]
    # That it is quick follows from what it does not load, see the next test.
    refused = subprocess.run([*command, "-p", "recpie", "x"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "01_prepare.ipynb: no parameter 'recpie'; did you mean `recipe`?" in refused.stderr
    assert "Traceback" not in refused.stderr
    key = subprocess.run([*command, "-p", "generator", KEY], capture_output=True, text=True, check=False)
    assert key.returncode == 2
    assert KEY not in key.stdout + key.stderr
    assert not list(tmp_path.iterdir())


def test_the_check_loads_nothing_heavy() -> None:
    code = (
        "import sys, json, optimsyn.execution.parameters as p\n"
        f"notebook = p.load_notebook(p.Path({str(notebook_path('prepare'))!r}))\n"
        "p.check_parameters(notebook, {'size': 'tiny', 'changes': {'synthesis.pairs': 3}}, 'n')\n"
        "print(*sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}, timeout=600
    )
    heavy = {
        "torch",
        "transformers",
        "trl",
        "dspy",
        "litellm",
        "datasets",
        "pandas",
        "matplotlib",
        "papermill",
        "IPython",
    }
    assert not heavy & set(found.stdout.split())
