"""The analyst's notebook as a file: which cells it wrote, which a person has changed, and what they say."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimsyn.base.errors import DataError
from optimsyn.base.secrets.redaction import redact_tree, secret_values
from optimsyn.base.suggestions import file_beside
from optimsyn.llm.reading.plain_text import storable

_MARK = "optimsyn"
_SETUP = "setup"
_CALL = "call"
_WHY = "why"
_REFUSED = "refused"
_END = "end"
_CURE = "`optimsyn agent GOAL` writes one, and names it in its last line"
# Escape sequences of terminals, in tracebacks.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What Markdown reads as more than text: a picture alone would ask a server when the notebook is opened.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$<>&])")


class AnalystNotebook:
    """A notebook whose every action is a cell.

    Args:
        path: Its file.
        notebook: Its content.
    """

    def __init__(self, path: Path, notebook: Any) -> None:
        self.path = path
        self.nb = notebook

    @classmethod
    def create(cls, path: Path, title: str, setup: str) -> AnalystNotebook:
        """A new notebook with the cell that opens the workbench; it is not saved yet.

        Args:
            path: Its file.
            title: What it says at the beginning, as Markdown.
            setup: Source of the first code cell.
        """
        from nbformat.v4 import new_notebook

        notebook = new_notebook()
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        made = cls(path, notebook)
        made._add(_markdown(title), _WHY)
        made._add(_code(setup), _SETUP)
        return made

    @classmethod
    def load(cls, path: Path) -> AnalystNotebook:
        """A notebook that an analyst has written.

        Raises:
            DataError: It is none.
        """
        facts_in(path)
        import nbformat

        try:
            notebook = nbformat.read(path, as_version=4)
        except (ValueError, nbformat.ValidationError) as error:
            raise DataError(f"{path}: cannot be read as a notebook ({error}); {_CURE}") from None
        return cls(path, notebook)

    @property
    def setup(self) -> int | None:
        """The place of the cell that opens the workbench: the one written for it, else the first that does."""
        return _setup_in(self.nb.cells)

    def facts(self) -> dict[str, Any]:
        """What the analyst keeps about its work: goal, recipe, model."""
        kept: dict[str, Any] = self.nb.metadata.setdefault(_MARK, {})
        return kept

    def say(self, text: str) -> None:
        """Adds words of the analyst."""
        self._add(_markdown(text), _WHY)

    def call(self, source: str, why: str) -> int:
        """Adds a call with the sentence why; returns the place of its cell."""
        self.say(why)
        return self._add(_code(source), _CALL)

    def refuse(self, asked: str, problem: str) -> None:
        """Adds a step that was not done, with the reason."""
        index = self._add(_markdown(f"Not done: {plain(asked)}: {plain(problem)}"), _REFUSED)
        self._mark(index).update({"asked": asked, "problem": problem})

    def end(self, text: str) -> None:
        """Adds the last words."""
        self._add(_markdown(text), _END)

    def end_call(self, source: str) -> int:
        """Adds a call that belongs to the last words."""
        return self._add(_code(source), _END)

    def drop_end(self) -> None:
        """Removes the last words of earlier work, as it goes on."""
        self.nb.cells = [cell for cell in self.nb.cells if cell.metadata.get(_MARK, {}).get("kind") != _END]

    def set_setup(self, source: str) -> None:
        """Changes the cell that opens the workbench, when a person has agreed to it."""
        index = self.setup
        assert index is not None
        self.nb.cells[index].source = source
        self.nb.cells[index].metadata[_MARK] = {"kind": _SETUP, "written": _digest(source)}

    def news(self, index: int) -> bool:
        """Whether a person's cell is not the one that was run before; from now on it is."""
        mark, now = self._mark(index), _digest(self.nb.cells[index].source)
        if mark.get("seen") == now:
            return False
        self.nb.cells[index].metadata[_MARK] = {**mark, "seen": now}
        for later in range(index + 1, len(self.nb.cells)):
            if self.nb.cells[later].cell_type == "code":
                self.nb.cells[later].metadata[_MARK] = {**self._mark(later), "stale": True}
        return True

    def steps(self) -> list[tuple[str, str, str, bool]]:
        """All steps in order, each as what was done, what it returned, a note, and whether a person did it."""
        found: list[tuple[str, str, str, bool]] = []
        for index, cell in enumerate(self.nb.cells):
            mark = self._mark(index)
            if mark.get("kind") in (_SETUP, _END) or index == self.setup:
                continue
            if cell.cell_type == "code":
                hand = self.by_hand(index)
                note = "a person has written or changed this cell" if hand else ""
                if mark.get("stale") and not hand:
                    note = "ran before a person changed a cell above; do it again if it depends on that"
                found.append((str(cell.source), self.output(index) or "nothing", note, hand))
            elif mark.get("kind") == _REFUSED:
                found.append((str(mark.get("asked", "")), f"not done: {mark.get('problem', '')}", "", False))
            elif not mark and cell.cell_type == "markdown" and cell.source.strip():
                found.append(("the person writes", str(self._clean(cell.source)), "", True))
        return found

    def by_hand(self, index: int) -> bool:
        """Whether a person has written or changed the cell."""
        cell, mark = self.nb.cells[index], self._mark(index)
        return cell.cell_type == "code" and mark.get("written") != _digest(cell.source)

    def done(self, index: int) -> bool:
        """Whether the cell, as it is, has run to its end."""
        return self._mark(index).get("ran") == _digest(self.nb.cells[index].source)

    def ran(self, index: int, ended: bool) -> None:
        """Notes that a cell has run to its end, or that it begins."""
        cell = self.nb.cells[index]
        mark = dict(cell.metadata.get(_MARK, {}))
        mark["ran"] = _digest(cell.source) if ended else None
        cell.metadata[_MARK] = mark

    def error(self, index: int) -> str | None:
        """Name of the error that the cell ended with."""
        outputs = self.nb.cells[index].get("outputs", [])
        return next((str(output.ename) for output in outputs if output.output_type == "error"), None)

    def expect_error(self, index: int) -> None:
        """Lets `Run all` go on after a cell that was refused."""
        tags = self.nb.cells[index].metadata.setdefault("tags", [])
        if "raises-exception" not in tags:
            tags.append("raises-exception")

    def output(self, index: int) -> str:
        """What the outputs of a cell say, as text without secrets."""
        texts = []
        for output in self.nb.cells[index].get("outputs", []):
            if output.output_type == "stream":
                texts.append(_joined(output.text))
            elif output.output_type == "error":
                texts.append(f"{output.ename}: {output.evalue}")
            else:
                texts.append(_joined(output.data.get("text/plain", "")))
        said = _COLOURS.sub("", "\n".join(texts)).strip()
        return str(self._clean(storable(said)))

    def save(self) -> None:
        """Writes the file atomically, without secrets."""
        from optimsyn.execution.client import save_notebook

        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_notebook(self._clean(self.nb), str(self.path))

    def _add(self, cell: Any, kind: str) -> int:
        cell.metadata[_MARK] = {"kind": kind, "written": _digest(cell.source)}
        self.nb.cells.append(cell)
        return len(self.nb.cells) - 1

    def _mark(self, index: int) -> dict[str, Any]:
        mark: dict[str, Any] = self.nb.cells[index].metadata.get(_MARK, {})
        return mark

    @staticmethod
    def _clean(part: Any) -> Any:
        return redact_tree(part, secret_values())


def facts_in(path: Path) -> dict[str, Any]:
    """`AnalystNotebook.facts` of a file, read in a moment: loading `nbformat` takes seconds.

    Raises:
        DataError: There is no such file, or it is no notebook of an analyst.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the analyst's notebook in it")
    if not path.is_file():
        raise DataError(f"{path}: there is no such notebook; {_CURE}.{file_beside(path, '*.ipynb')}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as a notebook, which is JSON ({error}); {_CURE}") from None
    cells = raw.get("cells") if isinstance(raw, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise DataError(f"{path}: cannot be read as a notebook, since it has no list of cells; {_CURE}")
    if _setup_in(cells) is None:
        raise DataError(
            f"{path}: its first code cell, which opens the workbench, is missing, so it is no notebook of an "
            f"analyst; {_CURE}"
        )
    facts = raw.get("metadata", {}).get(_MARK, {})
    return facts if isinstance(facts, dict) else {}


def _setup_in(cells: Sequence[Mapping[str, Any]]) -> int | None:
    """The place of the cell that opens the workbench: the one written for it, else the first that does."""
    code = [index for index, cell in enumerate(cells) if cell.get("cell_type") == "code"]
    marked = [index for index in code if cells[index].get("metadata", {}).get(_MARK, {}).get("kind") == _SETUP]
    named = [index for index in code if "Workbench(" in _joined(cells[index].get("source", ""))]
    return next(iter([*marked, *named]), None)


def _markdown(text: str) -> Any:
    from nbformat.v4 import new_markdown_cell

    return new_markdown_cell(text)


def _code(source: str) -> Any:
    from nbformat.v4 import new_code_cell

    return new_code_cell(source)


def call_source(tool: str, arguments: Mapping[str, Any]) -> str:
    """The source of a call of the workbench; arguments are literals, so that they can do nothing."""
    written = ", ".join(f"{name}={literal(value)}" for name, value in arguments.items())
    return f"bench.{tool}({written})"


def literal(value: Any) -> str:
    """A JSON value as Python.

    Raises:
        ValueError: It is none.
    """
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{value} is no number of JSON")
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(str(key))}: {literal(each)}" for key, each in value.items()) + "}"
    raise ValueError(f"{type(value).__name__} is no type of JSON")


def plain(text: str, longest: int = 2000) -> str:
    """Words of a model for a Markdown cell: on one line, and as nothing but text."""
    line = " ".join(storable(text[: 4 * longest]).split())
    line = line[:longest] + (" …" if len(line) > longest else "")
    return _MARKDOWN.sub(r"\\\1", line)


def _joined(text: Any) -> str:
    return "".join(text) if isinstance(text, list) else str(text)


def _digest(source: str) -> str:
    return hashlib.sha256(source.strip().encode("utf-8", "replace")).hexdigest()[:16]
