"""Rows of fixed size on disk: memory-mapped shards, an index of ids and a manifest. Independent of models.

    manifest.json         what the rows are; see `Rows.create`
    index.jsonl           one line per row: {"id", "row", "text", "subtask"}
    rows-00000.bin …      `rows_per_shard` records each, the last one fewer

A row counts once its line is in the index. Records are written and flushed to disk before their lines are appended; a
writer that is killed in between leaves records without a line, and the next writer overwrites them.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from optimsyn.base.errors import DataError, ModelError
from optimsyn.base.files import append_jsonl, iter_json, write_json

MANIFEST = "manifest.json"
VERSION = 2
"""Version of the files' layout and of a record's content."""


class Rows:
    """The rows of one folder.

    In memory it keeps some 200 bytes per row (id, position and a digest of the text); records stay on disk.

    Attributes:
        ids: Id -> row, in the order of rows.
        subtasks: Row -> subtask, for rows that have one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)
        self.ids: dict[str, int] = {}
        self.subtasks: dict[int, str] = {}
        self._texts = array("Q")
        self._index = folder / "index.jsonl"
        self._per_shard = int(self.manifest["rows_per_shard"])
        checkpoints = len(self.manifest["checkpoints"])
        self.record = record_type(checkpoints, int(self.manifest["width"]), str(self.manifest["dtype"]))
        self._read_index()

    @staticmethod
    def create(folder: Path, manifest: dict[str, Any]) -> None:
        """Creates an empty store.

        The manifest must name `checkpoints` (a list), `width` (values per checkpoint), `dtype` (of the values) and
        `rows_per_shard`.
        """
        write_json(folder / MANIFEST, manifest)
        _sync_folder(folder)

    def text_of(self, row: int) -> int:
        """The 64-bit digest of a row's text."""
        return self._texts[row]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Locks the store against other writers and reads what they wrote."""
        try:
            with FileLock(self.folder / "writer.lock", timeout=0):
                self._read_index()
                yield
        except Timeout as error:
            raise ModelError(
                f"{self.folder}: another process is adding to this store; wait until it is done"
            ) from error

    def append(self, ids: Sequence[str], texts: Sequence[int], subtasks: Sequence[str], records: Any) -> None:
        """Adds rows, all of them durably or none. Only inside `writing`."""
        first = len(self._texts)
        self._write(first, records)
        lines = [
            {"id": name, "row": first + i, "text": f"{text:016x}", "subtask": subtask}
            for i, (name, text, subtask) in enumerate(zip(ids, texts, subtasks, strict=True))
        ]
        append_jsonl(self._index, lines)
        for line in lines:
            self._note(line)

    def read(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A copy of these records, in this order; the files are mapped only while reading."""
        records = np.empty(len(rows), dtype=self.record)
        shards = rows // self._per_shard
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            local = rows[here] - shard * self._per_shard
            mapped = np.memmap(self._shard(shard), dtype=self.record, mode="r", shape=(int(local.max()) + 1,))
            records[here] = mapped[local]
        return records

    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file())

    def _shard(self, number: int) -> Path:
        return self.folder / f"rows-{number:05d}.bin"

    def _write(self, first: int, records: Any) -> None:
        done = 0
        while done < len(records):
            shard, place = divmod(first + done, self._per_shard)
            part = records[done : done + self._per_shard - place]
            file = self._shard(shard)
            fresh = not file.exists()
            with file.open("wb" if fresh else "r+b") as opened:
                opened.seek(place * self.record.itemsize)
                opened.write(np.ascontiguousarray(part).data)
                opened.flush()
                os.fsync(opened.fileno())
            if fresh:
                _sync_folder(self.folder)
            done += len(part)

    def _read_index(self) -> None:
        self.ids.clear()
        self.subtasks.clear()
        del self._texts[:]
        if not self._index.is_file():
            return
        # Only the end of the last append can be torn or missing; a row without a line does not count.
        for line in iter_json(self._index, tolerate_torn=True):
            try:
                self._note(line)
            except (KeyError, ValueError, TypeError) as error:
                raise ModelError(f"{self._index}: holds a line that it did not write ({line}); {_AGAIN}") from error
        for shard in range(-(-len(self._texts) // self._per_shard)):
            rows = min(self._per_shard, len(self._texts) - shard * self._per_shard)
            file = self._shard(shard)
            size = file.stat().st_size if file.is_file() else 0
            if size < rows * self.record.itemsize:
                raise ModelError(f"{file}: {size} bytes, too short for the {rows} rows that the index names; {_AGAIN}")

    def _note(self, line: dict[str, Any]) -> None:
        name, row, text = str(line["id"]), int(line["row"]), int(line["text"], 16)
        if name in self.ids or row < len(self._texts):
            raise ValueError("a duplicate id or row")
        self._texts.extend([0] * (row - len(self._texts)))
        self._texts.append(text)
        self.ids[name] = row
        if line["subtask"]:
            self.subtasks[row] = str(line["subtask"])


_AGAIN = "delete the folder and fill the store again"


def record_type(checkpoints: int, width: int, dtype: str) -> np.dtype[Any]:
    """One row: values times scale give the projected direction; all other fields are exact.

    Fields, C checkpoints: `label_tokens`; [C] each: `scale`, `direction_norm` ‖Γ‖, `gradient_norm` ‖g‖, `loss` in nats;
    `values` [C, width].
    """
    exact = [(name, "<f8", (checkpoints,)) for name in ("scale", "direction_norm", "gradient_norm", "loss")]
    kinds = {"float16": "<f2", "float32": "<f4"}
    if dtype not in kinds:
        raise DataError(f"a store's dtype is float16 or float32, not {dtype!r}")
    return np.dtype([("label_tokens", "<i8"), *exact, ("values", kinds[dtype], (checkpoints, width))])


def differences(wanted: dict[str, Any], stored: dict[str, Any], fields: Sequence[str]) -> list[str]:
    """A phrase for each field in which two manifests differ."""
    return [
        f"{field} (there: {_short(stored.get(field))}, here: {_short(wanted.get(field))})"
        for field in fields
        if stored.get(field) != wanted.get(field)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "…"


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        raise ModelError(f"{folder}: holds no gradient store ({MANIFEST} is missing); fill one first")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: not readable as a store's manifest ({error}); {_AGAIN}") from error
    if version != VERSION:
        raise ModelError(f"{file}: layout version {version}, this optimsyn writes {VERSION}; {_AGAIN}")
    assert isinstance(manifest, dict)
    return manifest


def _sync_folder(folder: Path) -> None:
    """Makes new names in a folder durable, where the system supports it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
