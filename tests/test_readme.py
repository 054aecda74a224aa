"""What the README shows is accepted by what it is about."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from optimsyn.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_recipe_is_valid() -> None:
    (block,) = _blocks("yaml")
    recipe = Recipe.parse(yaml.safe_load(block))
    assert recipe.models.generator.provider == "litellm"
    assert recipe.models.target.provider == "local"


def test_the_python_names_exist() -> None:
    blocks = _blocks("python")
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")
        for module, names in re.findall(r"^from ([\w.]+) import (.*)", block, re.MULTILINE):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
            if module == "optimsyn":
                assert set(names.split(", ")) <= set(importlib.import_module(module).__all__)


@pytest.mark.slow
def test_the_python_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in _blocks("python"):
        exec(block, names)
    assert len(names["scores"].total) == len(names["pairs"]) == 3
    assert list((tmp_path / "store").iterdir())


def test_files_and_make_targets_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(r"\w+", re.findall(r"copy a recipe: ((?:.*,\n +# )*.*)", README)[0]):
        assert (ROOT / "recipes" / f"{name}.yaml").is_file(), name


PAGES = ("README.md", "docs/index.md")


def _code(text: str) -> list[str]:
    """Lines of code without comments and the recipe's guiding text, which are translated."""
    text = re.sub(r"(guiding_text: >-\n)(?:  .*\n)+", r"\1", text)
    lines = "".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)).splitlines()
    code = [" ".join(re.sub(r"(?:^|\s)#.*", "", line).split()) for line in lines]
    return [line for line in code if line]


def _prose(text: str) -> str:
    return re.sub(r"\]\([^)]*\)", "]", text)


@pytest.mark.parametrize("name", PAGES)
def test_the_korean_page_has_the_commands_figures_and_links_of_the_english_one(name: str) -> None:
    english = (ROOT / name).read_text(encoding="utf-8")
    korean = (ROOT / name.replace(".md", ".ko.md")).read_text(encoding="utf-8")
    assert _code(korean) == _code(english)
    figures = [
        sorted(re.findall(r"\d+(?:[.,]\d+)*", _prose(text).replace("November", "11"))) for text in (english, korean)
    ]
    assert figures[1] == figures[0]
    own = {Path(name).name, Path(name).name.replace(".md", ".ko.md"), "docs/index.md", "docs/index.ko.md"}
    links = [{link for link in re.findall(r"\]\(([^)]+)\)", text) if link not in own} for text in (english, korean)]
    assert links[1] == links[0]
    assert english.count("\n## ") == korean.count("\n## ")
    # Each names the other.
    assert f"]({Path(name).name.replace('.md', '.ko.md')})" in english and f"]({Path(name).name})" in korean
    inline = [
        sorted(set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", t, flags=re.S)))) for t in (english, korean)
    ]
    assert inline[1] == inline[0], "files, fields and names in code"


def test_the_korean_recipe_is_valid() -> None:
    korean = (ROOT / "README.ko.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", korean, re.DOTALL)
    assert Recipe.parse(yaml.safe_load(block)).guiding_text.startswith("전문의가")


def test_the_forecast_of_the_readme_is_that_of_the_recipe() -> None:
    recipe = (ROOT / "recipes" / "medicine.yaml").read_text(encoding="utf-8")
    costs = re.findall(r"^# Costs +([\d.]+ to [\d.]+) dollars", recipe, re.MULTILINE)
    pairs = yaml.safe_load(recipe)["synthesis"]["pairs"]
    for name in PAGES:
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert f"{costs[0]} US dollars" in text and f"{pairs} pairs a variant" in text, name


def test_the_docs_show_the_present_results() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "into_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
