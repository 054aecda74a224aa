"""Disk space that is reserved before anything is bought, so that a reply that was paid for can be written.

Replies go into an SQLite file, which needs fresh room for every write. When there is none left, requests are still
under way, and what they bring has been paid for. So a file of some megabytes whose blocks are already the run's own
lies beside the cache: replies that the cache cannot take are written over its zeros, one JSON line each. While it holds
any, no process of the run buys; the next one that opens the cache reads them back.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optimsyn.base.disk import free_bytes

# Some hundred replies with what was asked: several times what is under way at once in any sensible recipe.
RESERVE_BYTES = 8_000_000
# On a nearly full disk it is a quarter of what is left, and this at least.
LEAST_BYTES = 1_000_000
_PIECE = 1_000_000


class Reserve:
    """A file of zeros, written over from its start when nothing else can be written. Safe across processes.

    Args:
        path: The file.

    Attributes:
        ours: Something was bought with it at the back, so it is ours to give back; others only look at the replies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ours = False

    def waits(self) -> bool:
        """Whether it is there and nothing was written into it; asked before every request, so it is cheap."""
        try:
            with self.path.open("rb") as file:
                return file.read(1) == b"\0" and os.fstat(file.fileno()).st_size >= LEAST_BYTES
        except OSError:
            return False

    def prepare(self) -> None:
        """Takes the room, where that has not been done; what was written into it stays.

        Raises:
            OSError: There is not so much room.
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
        """Writes a line (without its end, and without zero bytes) durably; False when it cannot."""
        try:
            with self._locked() as descriptor:
                begin = len(_written(descriptor))
                if begin + len(line) + 1 > os.fstat(descriptor).st_size:
                    return False
                _write_all(descriptor, line + b"\n", begin)
                os.fsync(descriptor)
        except OSError:
            return False
        return True

    def lines(self) -> list[bytes]:
        """What was written and not taken out yet; a line that a kill tore is left out."""
        try:
            with self._locked() as descriptor:
                whole = _written(descriptor)
        except FileNotFoundError:
            return []
        return whole[: whole.rfind(b"\n") + 1].splitlines()

    @contextmanager
    def taken(self) -> Iterator[list[bytes]]:
        """What was written; when the block ends without an exception it is taken out. Others wait meanwhile."""
        try:
            with self._locked() as descriptor:
                whole = _written(descriptor)
                yield whole[: whole.rfind(b"\n") + 1].splitlines()
                # From the end, so that a kill in between leaves a beginning, which is read back once more.
                for begin in reversed(range(0, len(whole), _PIECE)):
                    _write_all(descriptor, bytes(min(_PIECE, len(whole) - begin)), begin)
                os.fsync(descriptor)
        except FileNotFoundError:
            yield []

    def release(self) -> None:
        """Gives the room back, but for what was written into it: what else has to be written down may need it."""
        if not self.ours:
            return
        try:
            with self._locked() as descriptor:
                written = len(_written(descriptor))
                if written:
                    os.ftruncate(descriptor, written)
                else:
                    self.path.unlink(missing_ok=True)
        except OSError:
            return

    @contextmanager
    def _locked(self, *, create: bool = False) -> Iterator[int]:
        """The open file, held against other processes."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Whoever held it may have removed it meanwhile.
                if os.fstat(descriptor).st_nlink:
                    yield descriptor
                    return
            finally:
                os.close(descriptor)


def _written(descriptor: int) -> bytes:
    """The bytes before the first zero."""
    written = bytearray()
    while piece := os.pread(descriptor, _PIECE, len(written)):
        text, zero, _ = piece.partition(b"\0")
        written += text
        if zero:
            break
    return bytes(written)


def _write_all(descriptor: int, content: bytes, begin: int) -> None:
    while content:
        done = os.pwrite(descriptor, content, begin)
        content, begin = content[done:], begin + done


def allocate(descriptor: int, begin: int, size: int) -> None:
    """Makes a file so long that later writes into it need no more room."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            os.fsync(descriptor)
            return
    for start in range(begin, size, _PIECE):
        _write_all(descriptor, bytes(min(_PIECE, size - start)), start)
    os.fsync(descriptor)
