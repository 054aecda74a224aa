"""Full, read-only or broken disks: how to recognise them, how much space is left, and the message."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from optimsyn.base.environment import CACHE, variable
from optimsyn.base.errors import DataError

# Retrying does not help: no space, no quota, a file too large for its limit, read-only, broken.
_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# Libraries that are not written in Python only give a text.
_WORDS = (
    "no space left on device",
    "(os error 28)",
    "disk quota exceeded",
    "(os error 122)",
    "read-only file system",
    "(os error 30)",
    "database or disk is full",
    "disk i/o error",
    "file write failed",
    # PyTorch, which hides the system's reason.
    "basic_ios::clear",
    "pytorchstreamwriter failed",
    "enforce fail at inline_container.cc",
)
_CURE = (
    "free space there (or move the run folder to another disk and name that with --root), then run the same command "
    "again: it continues, and nothing is bought twice"
)


def cache_dir() -> Path:
    """The per-user folder for files that are made once: `$OPTIMSYN_CACHE`, or the platform's usual cache folder."""
    chosen = variable(CACHE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("optimsyn", appauthor=False))


def free_bytes(path: Path) -> int | None:
    """Free bytes on the file system of a path that need not exist yet; None if unknown."""
    for place in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def size_text(size: int) -> str:
    """Bytes for people: `3.2 GB`, `41 MB`, `0 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def is_disk_trouble(error: BaseException) -> bool:
    """Whether an error or one of its causes says that a disk cannot be written."""
    return any(
        (isinstance(link, OSError) and link.errno in _NUMBERS) or any(word in str(link).lower() for word in _WORDS)
        for link in _chain(error)
    )


def cannot_write(path: Path, what: str, error: BaseException, *, more: str = "") -> DataError:
    """The error for a file that could not be written.

    Args:
        path: The file or folder.
        what: What could not be written, such as `a judgement`.
        error: The system's error.
        more: Further sentences, before what to do.
    """
    free = free_bytes(path)
    room = "" if free is None else f"; {size_text(free)} are free on its file system"
    more = f"{more} " if more else ""
    return DataError(f"{path}: cannot write {what} ({_said(error)}{room}). {more}What to do: {_CURE}")


def _said(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, sqlite3.Error) and "locked" in str(error):
        return f"{error}: another program has held it for over a minute; end that one"
    return " ".join(str(error).split())[:300] or type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
