"""The per-user folder for files that are made once from an installed package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optimsyn.base.disk import cache_dir
from optimsyn.base.environment import CACHE
from optimsyn.base.errors import ModelError


@contextmanager
def cache_folder(what: str) -> Iterator[Path]:
    """The folder, created, while a file is made in it.

    Args:
        what: The file, for messages.

    Raises:
        ModelError: The folder cannot be written.
    """
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise ModelError(
            f"{folder}: cannot keep {what} there ({error.strerror or error}); it needs 1.5 GB. "
            f"Free some space or set {CACHE} to another folder"
        ) from error


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keeps other processes from making the same file meanwhile."""
    import filelock

    with filelock.FileLock(target.with_name(target.name + ".lock")):
        yield
