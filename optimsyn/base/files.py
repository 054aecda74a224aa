"""JSON lines on disk: whole files are written atomically, ledgers are appended to and survive a torn last line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from optimsyn.base.errors import DataError
from optimsyn.base.secrets.redaction import kept
from optimsyn.base.values import kind_of

RecordT = TypeVar("RecordT", bound=BaseModel)


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: a reader sees the old or the new content, also after a power cut.

    The values of secret variables are removed (`optimsyn.base.secrets.redaction.kept`).

    Raises:
        OSError: The file cannot be written, or is a folder; no partial file stays.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(kept(text))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON value, indented, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Writes one JSON object a line, atomically."""
    write_text(path, "".join(_line(row) + "\n" for row in rows))


def append_jsonl(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Appends rows durably; a torn last line of a killed writer is closed first, so that it cannot damage a new row.

    Secrets are removed as in `write_text`.
    """
    lines = [kept(_line(row)) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
            file.seek(0, os.SEEK_END)
            if torn:
                file.write(b"\n")
        file.write("".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _line(row: BaseModel | dict[str, Any]) -> str:
    return row.model_dump_json() if isinstance(row, BaseModel) else json.dumps(row, ensure_ascii=False)


def iter_json(path: Path, *, tolerate_torn: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Args:
        path: The file.
        tolerate_torn: Skip lines that are not JSON, in a ledger whose writer may have been killed.

    Raises:
        DataError: A line is not a JSON object; names file and line.
    """
    # A torn line can end inside a character.
    with path.open(encoding="utf-8", errors="replace" if tolerate_torn else "strict") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if tolerate_torn:
                    continue
                raise DataError(f"{path}:{number}: not valid JSON ({error.msg}); remove or fix the line") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: a row must be a JSON object, this is {kind_of(row)}")
            yield row


def read_jsonl(path: Path, record: type[RecordT]) -> list[RecordT]:
    """The rows of a file that optimsyn wrote, as records.

    Raises:
        DataError: The file is missing or a row does not fit; names file and row.
    """
    if not path.is_file():
        raise DataError(f"{path}: missing; the stage that writes it has not finished")
    rows = []
    for number, row in enumerate(iter_json(path), 1):
        try:
            rows.append(record.model_validate(row))
        except ValidationError as error:
            raise DataError(f"{path}: row {number}: {error.errors()[0]['msg']}") from error
    return rows
