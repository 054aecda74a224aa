"""Tests use the public names of optimsyn, as a user would."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("*.py"))
PRIVATE = re.compile(r"_[A-Za-z]\w*")
# Names that look private and belong to others: what Jupyter asks an object for, named tuples, the standard library, the
# methods of TRL's trainer that ours replaces, an attribute that transformers reads.
OF_OTHERS = {
    *("_repr_html_", "_repr_mimebundle_", "_replace", "_exit", "_is_stateful"),
    *("_generate_single_turn", "_get_per_token_logps_and_entropies"),
}


def private(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Private names that a file takes from elsewhere: imported, read of an object, or named to be replaced."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if (node.module or "").startswith("optimsyn")]
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names = [node.attr]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            names = [
                part
                for given in node.args[:2]
                if isinstance(given, ast.Constant) and isinstance(given.value, str)
                for part in given.value.split(".")
            ]
        for name in names:
            if PRIVATE.fullmatch(name) and name not in own | OF_OTHERS:
                yield node.lineno, name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_test_uses_public_names(file: Path) -> None:
    found = [f"{file.name}:{line}: {name}" for line, name in private(ast.parse(file.read_text(encoding="utf-8")))]
    assert found == [], "use a public name, or make it one"


def test_private_names_are_seen() -> None:
    text = (
        "from optimsyn.a import _b\nx._c()\npatch.setattr(x, '_d', 1)\npatch.setattr('optimsyn._e.f', 1)\n"
        "self._g\nx._repr_html_()\nfrom other import _h\nx.__dict__\n"
    )
    assert [name for _, name in sorted(private(ast.parse(text)))] == ["_b", "_c", "_d", "_e"]
