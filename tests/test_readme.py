"""What the README shows is accepted by what it is about."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

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


def test_files_and_make_targets_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for name in re.findall(r"copy a recipe: (.*)", README)[0].split(", "):
        assert (ROOT / "recipes" / f"{name}.yaml").is_file(), name


def test_the_docs_show_the_present_results() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "into_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
