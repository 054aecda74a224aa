"""A package outside of optimsyn, written from the example of its page, and notebook cells."""

from __future__ import annotations

import importlib
import linecache
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs_helpers import ROOT, blocks

Written = Callable[[str, str], None]
Installed = Callable[..., None]
Cell = Callable[[str], dict[str, Any]]


def example(kind: str) -> str:
    """The example of docs/extend/<kind>.md, of at most thirty lines."""
    code = blocks("python", ROOT / "docs" / "extend" / f"{kind}.md")[0].code
    assert len(code.splitlines()) <= 30
    return code


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    """Writes a module of the user's, as an editor would; again to edit it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names: set[str] = set()

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        names.add(name)
        sys.modules.pop(name, None)
        importlib.invalidate_caches()

    yield write
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Installs a package's entry points: its name, their group, and each one's name and object."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(package: str, group: str, **points: str) -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", "utf-8")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}", "utf-8")
        importlib.invalidate_caches()

    return install


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Runs a notebook cell as IPython does: in `__main__`, with its source in linecache."""
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)

    def run(source: str) -> dict[str, Any]:
        name = f"<cell {hash(source)}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), main.__dict__)
        return vars(main)

    return run
