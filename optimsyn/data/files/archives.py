"""Checks zip archives (.docx, .pptx, .xlsx, .epub, .odt) before they are unpacked."""

from __future__ import annotations

import lzma
import struct
import tempfile
import zipfile
import zlib
from typing import IO

from optimsyn.base.errors import DataError
from optimsyn.recipe.sections.data import FileLimits

_CHUNK = 1 << 16
_MB = 1_000_000
_RATIO_FROM = 10 * _MB
_ZIP = b"PK\x03\x04"
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_LOCKED = 0x1
_ENTRIES = 100_000
# The entry that shows the kind of archive.
_NEEDED = {
    ".docx": "[Content_Types].xml",
    ".pptx": "[Content_Types].xml",
    ".xlsx": "[Content_Types].xml",
    ".epub": "META-INF/container.xml",
    ".odt": "content.xml",
}


# Exceptions of zipfile for damaged files.
_PYTHON = (EOFError, OSError, ValueError, NotImplementedError, IndexError, KeyError, RuntimeError)


class _TornError(DataError):
    """The archive is not complete."""


class Sizes:
    """The use of the recipe's `documents.limits` by an archive and those inside it."""

    def __init__(self, limits: FileLimits, packed: int) -> None:
        self.limits, self.packed, self.inflated = limits, packed, 0

    def check(self, more: int) -> None:
        """Raises a DataError where `more` bytes would be too many."""
        size, most, ratio = self.inflated + more, self.limits.inflated_mb, self.limits.inflated_ratio
        if size > most * _MB:
            raise DataError(
                f"inflates to more than documents.limits.inflated_mb = {most}; if you trust the file, raise it"
            )
        if size > _RATIO_FROM and size > ratio * self.packed:
            raise DataError(
                f"inflates to more than {ratio} times its size, documents.limits.inflated_ratio, like a zip bomb; "
                "if you trust the file, raise it"
            )

    def add(self, more: int) -> None:
        """Counts unpacked bytes."""
        self.check(more)
        self.inflated += more


def check_archive(file: IO[bytes], suffix: str, sizes: Sizes) -> None:
    """Unpacks everything to count the bytes, and discards it.

    Raises:
        DataError: It is not a complete archive, is locked, or exceeds a limit.
    """
    head = file.read(len(_OLD_OFFICE))
    file.seek(0)
    if head == _OLD_OFFICE:
        raise DataError(f"is locked by a password, or of the old binary kind; save it again as {suffix} without one")
    names = _check(file, suffix, sizes, 0)
    if _NEEDED[suffix] not in names:
        raise DataError(f"is an archive but no {suffix} file (it has no {_NEEDED[suffix]}); save it again or remove it")


def _check(file: IO[bytes], suffix: str, sizes: Sizes, depth: int) -> set[str]:
    torn = _TornError(f"is not a complete {suffix} file (cut off or damaged); save it again or remove it")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > _ENTRIES:
                raise DataError(f"holds {len(entries):,} entries; no {suffix} file needs more than {_ENTRIES:,}")
            if any(entry.flag_bits & _LOCKED for entry in entries):
                raise DataError("is locked by a password; save it again without one")
            # Check the stated sizes at once, and count while unpacking, since they may be wrong.
            sizes.check(sum(entry.file_size for entry in entries))
            for entry in entries:
                _unpack(archive, entry, suffix, sizes, depth)
            return set(archive.namelist())
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, *_PYTHON) as error:
        raise torn from error


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, suffix: str, sizes: Sizes, depth: int) -> None:
    with archive.open(entry) as packed:
        chunk = packed.read(_CHUNK)
        if not chunk.startswith(_ZIP):
            while chunk:
                sizes.add(len(chunk))
                chunk = packed.read(_CHUNK)
            return
        if depth >= sizes.limits.nesting:
            raise DataError(
                f"holds archives within archives, {depth + 1} deep ({entry.filename[:80]!r}), more than "
                f"documents.limits.nesting = {sizes.limits.nesting}; if you trust the file, raise it"
            )
        with tempfile.SpooledTemporaryFile(max_size=10 * _MB) as inner:
            while chunk:
                sizes.add(len(chunk))
                inner.write(chunk)
                chunk = packed.read(_CHUNK)
            inner.seek(0)
            try:
                _check(inner, suffix, sizes, depth + 1)
            except _TornError:
                # A damaged embedded file is not read, so it does not matter.
                return
