"""From a percent-format source and an executed notebook to the `.ipynb` that is committed.

It keeps the source's cells, reproducible outputs, and ids that survive edits. It removes whatever depends on the
machine or time: papermill's marks, execution counts, clocks, absolute paths, ports.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode
from PIL import Image

from optimsyn.base.secrets.redaction import redact_tree, secret_values

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# A markdown cell with this tag gets the measured line.
MEASURED = "measured"
_PORT = re.compile(r"(127\.0\.0\.1|localhost):\d{2,5}")
_OBJECT = re.compile(r"(?<= at )0x[0-9a-f]{6,}")
_ABSOLUTE = re.compile(r"(?<![\w:/.\-<])/(?:home|root|tmp|work|Users|usr|var|opt|mnt|srv|private)/[^\s\"'<>)\\]*")
# Patterns of common service keys; keys of this machine are matched by value.
_KEY = re.compile(r"\b(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|ghp_[A-Za-z0-9]{30,})")
# With one of these, the plain text output is redundant.
_RICH = ("text/html", "image/png", "text/markdown")


def source_cells(source: Path, measured: str = "") -> list[NotebookNode]:
    """The cells of a percent-format file, without ids and outputs.

    Args:
        source: The `.py` file.
        measured: The text of the cell tagged `measured`; empty leaves what the source says.
    """
    cells = []
    for cell in jupytext.read(source, fmt="py:percent").cells:
        tags = list(cell.metadata.get("tags", []))
        text = measured if MEASURED in tags and measured else cell.source
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        cells.append(make(text, metadata={"tags": tags} if tags else {}))
    return cells


def with_ids(cells: Sequence[NotebookNode], earlier: Sequence[NotebookNode]) -> list[NotebookNode]:
    """Reuses cell ids, so that an edit changes one line and an insertion no other cell.

    Cells with equal text are matched first. Between two such, edited cells are matched by likeness, in order. What is
    new gets an id from its own text.

    Args:
        cells: Of the source, in order; changed in place.
        earlier: Of the notebook as it was generated before.
    """
    ids: dict[int, str] = {}
    matcher = difflib.SequenceMatcher(None, [_key(c) for c in earlier], [_key(c) for c in cells], autojunk=False)
    for operation, a, a_end, b, b_end in matcher.get_opcodes():
        if operation == "equal":
            ids |= {b + offset: earlier[a + offset].id for offset in range(b_end - b)}
        elif operation == "replace":
            ids |= _alike(earlier, cells, range(a, a_end), range(b, b_end))
    used = set(ids.values())
    for place, cell in enumerate(cells):
        if place not in ids:
            ids[place] = _new_id(cell, used)
            used.add(ids[place])
        cell["id"] = ids[place]
    return list(cells)


def _key(cell: NotebookNode) -> tuple[str, str]:
    # The measured line changes without an edit.
    return cell.cell_type, MEASURED if MEASURED in cell.metadata.get("tags", []) else cell.source


def _alike(earlier: Sequence[NotebookNode], cells: Sequence[NotebookNode], old: range, new: range) -> dict[int, str]:
    """Ids for edited cells, most similar pairs first and without crossings."""
    likeness = sorted(
        (
            (-difflib.SequenceMatcher(None, earlier[a].source, cells[b].source, autojunk=False).ratio(), a, b)
            for a in old
            for b in new
            if earlier[a].cell_type == cells[b].cell_type
        ),
    )
    pairs: list[tuple[int, int]] = []
    for ratio, a, b in likeness:
        if -ratio >= 0.5 and all((a - x) * (b - y) > 0 for x, y in pairs):
            pairs.append((a, b))
    return {b: earlier[a].id for a, b in pairs}


def _new_id(cell: NotebookNode, used: set[str]) -> str:
    heading = re.search(r"^#+\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
    slug = re.sub(r"[^a-z0-9]+", "-", heading[1].lower()).strip("-")[:40] if heading else ""
    digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()
    stem = slug or f"{cell.cell_type}-{digest[:8]}"
    number = 2
    name = stem
    while name in used:
        name, number = f"{stem}-{number}", number + 1
    return name


def build(
    cells: Sequence[NotebookNode], executed: NotebookNode | None, *, root: Path, keep: Sequence[NotebookNode] = ()
) -> NotebookNode:
    """The notebook to commit.

    Args:
        cells: Of the source, with ids.
        executed: The same notebook after execution; None takes the outputs from `keep`.
        root: The checkout; paths below it become relative to it.
        keep: Cells whose outputs are taken over, by id, where nothing was executed.

    Raises:
        ValueError: The executed notebook is not one of these cells.
    """
    notebook = nbformat.v4.new_notebook(
        cells=list(cells), metadata={"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    )
    if executed is not None:
        ran = [cell for cell in executed.cells if cell.cell_type == "code" and not _injected(cell)]
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if [cell.source for cell in ran] != [cell.source for cell in code]:
            raise ValueError("the executed notebook has other code cells than the source")
        for cell, done in zip(code, ran, strict=True):
            cell.outputs = scrubbed(done.outputs, root)
    else:
        outputs = {cell.id: cell.outputs for cell in keep if cell.cell_type == "code"}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = outputs.get(cell.id, [])
    nbformat.validate(notebook)
    return notebook


def _injected(cell: NotebookNode) -> bool:
    """Whether papermill added the cell: parameters, or the mark above a failed cell."""
    tags = cell.metadata.get("tags", [])
    return "injected-parameters" in tags or "papermill-error-cell-tag" in tags


def scrubbed(outputs: Sequence[Any], root: Path) -> list[NotebookNode]:
    """Outputs reduced to what every run of the cell gives."""
    cells: list[NotebookNode] = []
    secrets = secret_values()
    for output in outputs:
        if output.get("metadata", {}).get("optimsyn", {}).get("transient"):
            continue
        clean = nbformat.from_dict(_relative(redact_tree(output, secrets), root))
        if "execution_count" in clean:
            clean["execution_count"] = None
        data = clean.get("data", {})
        if any(kind in data for kind in _RICH):
            data.pop("text/plain", None)
        # A stream is split wherever the kernel flushed.
        last = cells[-1] if cells else None
        if last is not None and clean["output_type"] == last["output_type"] == "stream" and clean.name == last.name:
            last["text"] += clean["text"]
        else:
            cells.append(clean)
    return cells


def _relative(value: Any, root: Path) -> Any:
    """Makes paths in the checkout relative, replaces the home folder by `~`, removes port numbers."""
    if isinstance(value, str):
        value = value.replace(f"{root}/", "").replace(str(root), ".")
        home = str(Path.home())
        if len(home) > 1:
            value = re.sub(rf"(?<![\w/]){re.escape(home)}(?=/)", "~", value)
        return _OBJECT.sub("0x…", _PORT.sub(r"\1:PORT", value))
    if isinstance(value, dict):
        binary = {kind for kind in value if str(kind).startswith("image/") and isinstance(value[kind], str)}
        return {key: item if key in binary else _relative(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, root) for item in value]
    return value


def faults_of(notebook: NotebookNode, name: str) -> list[str]:
    """What must not be in a committed notebook: missing outputs, errors, warnings, leaks."""
    faults = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not any(cell.outputs for cell in code):
        faults.append(f"{name}: no cell has an output; run `make notebooks`")
    for number, cell in enumerate(code, 1):
        where = f"{name}, code cell {number}"
        for output in cell.outputs:
            if output.output_type == "error":
                faults.append(f"{where}: it failed with {output.ename}: {output.evalue}")
            if output.output_type == "stream" and output.name == "stderr":
                faults.append(f"{where}: something wrote to standard error: {output.text.strip()[:200]}")
            if output.get("metadata", {}).get("optimsyn", {}).get("transient"):
                faults.append(f"{where}: a transient output was kept")
            if not _is_whole(output.get("data", {}).get("image/png", "")):
                faults.append(f"{where}: its picture is damaged")
        if set(cell.metadata) - {"tags"}:
            faults.append(f"{where}: metadata {sorted(set(cell.metadata) - {'tags'})}")
        if cell.execution_count is not None:
            faults.append(f"{where}: an execution count")
    for text in texts(notebook):
        if match := _ABSOLUTE.search(text):
            faults.append(f"{name}: an absolute path: {match[0][:80]}")
        if _KEY.search(text) or any(secret in text for secret in secret_values()):
            faults.append(f"{name}: something that looks like a key")
        if re.search(r"\b\w*Warning\b: |^WARNING\b", text, re.MULTILINE):
            faults.append(f"{name}: a warning: {text.strip()[:120]}")
    return faults


def _is_whole(picture: str) -> bool:
    """Whether a PNG in base64 can be read to its end; also without a picture."""
    try:
        if picture:
            Image.open(BytesIO(base64.b64decode(picture, validate=False))).load()
    except (ValueError, OSError):
        return False
    return True


def texts(notebook: NotebookNode) -> list[str]:
    """All texts of a notebook: sources, and outputs except pictures."""
    parts = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts.append(str(output.get("text", "")))
            parts += [str(item) for kind, item in output.get("data", {}).items() if not kind.startswith("image/")]
    return parts


def same_cells(notebook: NotebookNode) -> list[tuple[str, str, str, list[str]]]:
    """What must match between source and notebook: kind, id, text and tags of each cell."""
    return [(cell.cell_type, cell.id, cell.source, list(cell.metadata.get("tags", []))) for cell in notebook.cells]
