"""What counts as the source of a part that a user brought."""

from __future__ import annotations

import functools
import linecache
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimsyn.base.errors import RecipeError
from optimsyn.base.source_identity import source_identity

FIELD = "checks.plugins"
CELL = """
import json
import beside_the_notebook

WORDS = {"cinema", "opera"}

def holds(text):
    return any(word in text for word in WORDS)

def check(pair, context):
    return beside_the_notebook.reason if holds(pair.question) else None

class Check:
    def __init__(self, word):
        self.word = word

    def __call__(self, pair, context):
        return self.word if holds(json.dumps(pair.question)) else None
"""

Cell = Callable[[str], dict[str, Any]]


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Runs a notebook cell as IPython does: in `__main__`, with its source in linecache."""
    (tmp_path / "beside_the_notebook.py").write_text('reason = "a word"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "beside_the_notebook", raising=False)
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)

    def run(source: str) -> dict[str, Any]:
        name = f"<cell {hash(source)}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), main.__dict__)
        return vars(main)

    return run


@pytest.mark.parametrize("make", [lambda here: here["check"], lambda here: here["Check"]("x")])
def test_a_cell_counts_with_what_it_uses(cell: Cell, make: Callable[[dict[str, Any]], Any]) -> None:
    def sources() -> dict[str, str]:
        return source_identity("__main__:check", make(here), FIELD)

    here = cell(CELL)
    before = sources()
    assert {"__main__:holds", "__main__:WORDS"} <= set(before)
    assert any("return" in text and "json" not in text for text in before.values())
    cell(CELL)
    assert sources() == before
    cell('x = 1\nWORDS = {"library"}\n')
    assert {name for name, text in sources().items() if text != before[name]} == {"__main__:WORDS"}
    cell("def holds(text):\n    return False\n")
    assert sources()["__main__:holds"] == "def holds(text):\n    return False\n"


def test_modules_beside_the_notebook_count(cell: Cell, tmp_path: Path) -> None:
    found = source_identity("__main__:check", cell(CELL)["check"], FIELD)
    assert found["beside_the_notebook"] == 'reason = "a word"\n'


def test_the_state_of_an_object_counts(cell: Cell) -> None:
    here = cell(CELL)
    found = [source_identity("__main__:mine", here["Check"](word), FIELD) for word in ("one", "two")]
    assert found[0] != found[1]


def test_a_registered_name_counts_by_the_module_of_its_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_here.py").write_text("def check(pair, context, word='x'):\n    return None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    part = functools.partial(__import__("mine_here").check, word="y")
    found = source_identity("no_x", part, FIELD)
    assert set(found) == {"mine_here", "its state"}
    # Nothing but its state tells it from another one.
    assert source_identity("no_x", functools.partial(part, word="z"), FIELD) != found


def test_a_part_that_was_typed_without_source_is_refused(cell: Cell) -> None:
    here = cell(CELL)
    exec("def typed(pair, context):\n    return None\n", here)
    with pytest.raises(RecipeError, match=r"checks.plugins: '__main__:typed': the source of typed is not known .*\.py"):
        source_identity("__main__:typed", here["typed"], FIELD)
