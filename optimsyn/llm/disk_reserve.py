"""Disk space reserved before anything is bought, so that a paid reply can always be written.

Replies go into an SQLite file, which needs free space for every write. When the disk is full, requests under way have
already been paid for. So a preallocated file of some megabytes lies beside the cache: replies that the cache cannot
take overwrite its zeros, one JSON line each. While it holds any, no process of the run buys; the next process that
opens the cache reads them back.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optimsyn.base.disk import free_bytes

# Some hundred replies with their requests: several times what any sensible recipe has under way at once.
RESERVE_BYTES = 8_000_000
# On a nearly full disk the reserve is a quarter of the free space, but at least this.
LEAST_BYTES = 1_000_000
_CHUNK = 1_000_000


class Reserve:
    """A file of zeros, overwritten from its start when nothing else can be written. Safe across processes.

    Args:
        path: The file.

    Attributes:
        ours: This process bought something under its protection, so it may release it; others only read replies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ours = False

    def waits(self) -> bool:
        """Whether the file exists and is still empty; cheap, because it is checked before every request."""
        try:
            with self.path.open("rb") as file:
                return file.read(1) == b"\0" and os.fstat(file.fileno()).st_size >= LEAST_BYTES
        except OSError:
            return False

    def prepare(self) -> None:
        """Allocates the file unless that is done; lines already in it stay.

        Raises:
            OSError: The disk has too little space.
        """
        with self._locked(create=True) as descriptor:
            status = os.fstat(descriptor)
            if status.st_size >= LEAST_BYTES and status.st_blocks * 512 >= status.st_size:
                return
            free = free_bytes(self.path) or 0
            try:
                allocate(descriptor, status.st_size, max(LEAST_BYTES, min(RESERVE_BYTES, free // 4)))
            except OSError:
                if not os.pread(descriptor, 1, 0).strip(b"\0"):
                    self.path.unlink(missing_ok=True)
                raise

    def keep(self, line: bytes) -> bool:
        """Writes a line (without newline or zero bytes) durably; False when that fails."""
        try:
            with self._locked() as descriptor:
                begin = len(_content(descriptor))
                if begin + len(line) + 1 > os.fstat(descriptor).st_size:
                    return False
                _write_all(descriptor, line + b"\n", begin)
                os.fsync(descriptor)
        except OSError:
            return False
        return True

    def lines(self) -> list[bytes]:
        """The lines in the file; a line that a kill cut off is left out."""
        try:
            with self._locked() as descriptor:
                content = _content(descriptor)
        except FileNotFoundError:
            return []
        return content[: content.rfind(b"\n") + 1].splitlines()

    @contextmanager
    def taken(self) -> Iterator[list[bytes]]:
        """The lines in the file, which are removed when the block ends without an exception. Holds the lock."""
        try:
            with self._locked() as descriptor:
                content = _content(descriptor)
                yield content[: content.rfind(b"\n") + 1].splitlines()
                # From the end, so that after a kill the first lines remain and are read back once more.
                for begin in reversed(range(0, len(content), _CHUNK)):
                    _write_all(descriptor, bytes(min(_CHUNK, len(content) - begin)), begin)
                os.fsync(descriptor)
        except FileNotFoundError:
            yield []

    def release(self) -> None:
        """Frees the space except for the lines in it: other files of the run may need it."""
        if not self.ours:
            return
        try:
            with self._locked() as descriptor:
                length = len(_content(descriptor))
                if length:
                    os.ftruncate(descriptor, length)
                else:
                    self.path.unlink(missing_ok=True)
        except OSError:
            return

    @contextmanager
    def _locked(self, *, create: bool = False) -> Iterator[int]:
        """The open file, locked against other processes."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # The previous holder of the lock may have removed the file.
                if os.fstat(descriptor).st_nlink:
                    yield descriptor
                    return
            finally:
                os.close(descriptor)


def _content(descriptor: int) -> bytes:
    """The bytes before the first zero."""
    content = bytearray()
    while chunk := os.pread(descriptor, _CHUNK, len(content)):
        text, zero, _ = chunk.partition(b"\0")
        content += text
        if zero:
            break
    return bytes(content)


def _write_all(descriptor: int, content: bytes, begin: int) -> None:
    while content:
        done = os.pwrite(descriptor, content, begin)
        content, begin = content[done:], begin + done


def allocate(descriptor: int, begin: int, size: int) -> None:
    """Extends a file so that later writes into it need no more disk space."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            os.fsync(descriptor)
            return
    for start in range(begin, size, _CHUNK):
        _write_all(descriptor, bytes(min(_CHUNK, size - start)), start)
    os.fsync(descriptor)
