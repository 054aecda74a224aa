"""The files below a folder; links that leave it, pipes and unreadable files are reported, not opened."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from optimsyn.base.errors import DataError
from optimsyn.data.files.leftovers import left_behind
from optimsyn.data.losses import Loss

LEFT_BEHIND = "locks, backups and the like, which programs leave behind; nothing to do"
HIDDEN = "hidden; one that is to be read needs a name without the dot"


@dataclass(frozen=True)
class Fault:
    """Something unreadable.

    Attributes:
        name: The document's id or file, for lists of skipped documents.
        message: The file, what is wrong, and what to do.
        reason: The same in a few words, to count faults by.
    """

    name: str
    message: str
    reason: str


@dataclass
class FileTree:
    """The files below a folder.

    Attributes:
        files: Regular files in a fixed order, without hidden ones.
        faults: Links and folders that cannot be used.
        passed: Ignored: pipes and devices, links to files that are read anyway, leftovers of programs, hidden files.
    """

    files: list[Path] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    passed: list[Loss] = field(default_factory=list)


def find_files(folder: Path, *, follow_links: bool = False) -> FileTree:
    """All files below a folder and its subfolders.

    A link to a file or folder inside is followed once; one that leaves the folder is a fault unless `follow_links`,
    since its target becomes a document that is sent to a service.
    """
    walk = _Walk(folder, follow_links)
    walk.folder(folder)
    while walk.links:
        walk.link(walk.links.pop(0))
    walk.tree.files.sort()
    walk.tree.faults.sort(key=lambda fault: fault.name)
    return walk.tree


def shown(path: Path) -> str:
    """A printable path: bytes that are no UTF-8 and control characters are replaced."""
    return printable(os.fsencode(path).decode(errors="replace"))


def printable(text: str) -> str:
    """A name without control characters, which a terminal may interpret, and without half surrogates."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def read_file(path: Path, limit_mb: int) -> bytes:
    """The bytes of a regular file."""
    size_of(path, limit_mb)
    return path.read_bytes()


def size_of(path: Path, limit_mb: int) -> int:
    """The size of a regular file that can be opened.

    Raises:
        DataError: It is a pipe or device (which may never end), cannot be read, or is larger than the limit.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise DataError(f"{shown(path)}: is not a regular file (but a pipe or device); copy its content into one")
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(
            f"{shown(path)}: cannot be opened ({error.strerror}); fix its permissions or remove it"
        ) from None
    check_size(path, about.st_size, limit_mb)
    return about.st_size


def check_size(path: Path, size: int, limit_mb: int) -> None:
    """Raises a DataError for a file larger than the recipe's limit."""
    if size > limit_mb * 1_000_000:
        raise DataError(
            f"{shown(path)}: has {size / 1e6:,.0f} MB, more than `file_mb: {limit_mb}` of its source; split it or "
            "raise the limit"
        )


class _Walk:
    def __init__(self, root: Path, follow_links: bool) -> None:
        self.root = root
        self.real_root = Path(os.path.realpath(root))
        self.follow = follow_links
        self.tree = FileTree()
        self.links: list[Path] = []
        self.seen: set[str] = set()

    def name(self, path: Path) -> str:
        return shown(path.relative_to(self.root))

    def folder(self, start: Path) -> None:
        """Walks a folder; links come later, when all real files are known."""
        todo = [start]
        while todo:
            folder = todo.pop()
            real = os.path.realpath(folder)
            if real in self.seen:
                continue
            self.seen.add(real)
            try:
                with os.scandir(folder) as scanned:
                    entries = sorted(scanned, key=lambda entry: entry.name)
            except OSError as error:
                message = f"{shown(folder)}: the folder cannot be opened ({error.strerror}); fix its permissions"
                self.tree.faults.append(Fault(self.name(folder), message, "cannot be opened"))
                continue
            for entry in entries:
                path = Path(folder, entry.name)
                if left_behind(entry.name, folder=entry.is_dir(follow_symlinks=False)):
                    self.passed(path, LEFT_BEHIND)
                elif entry.name.startswith("."):
                    self.passed(path, HIDDEN)
                elif entry.is_symlink():
                    self.links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    todo.append(path)
                elif entry.is_file(follow_symlinks=False):
                    self.file(path)
                else:
                    self.passed(path, "not a file but a pipe, socket or device")

    def file(self, path: Path) -> None:
        real = os.path.realpath(path)
        if real in self.seen:
            self.passed(path, "a link to what is read anyway")
            return
        self.seen.add(real)
        self.tree.files.append(path)

    def link(self, path: Path) -> None:
        try:
            target = Path(os.path.realpath(path, strict=True))
            mode = target.stat().st_mode
        except OSError as error:
            message = f"{shown(path)}: is a link to nothing that can be opened ({error.strerror}); fix or remove it"
            self.tree.faults.append(Fault(self.name(path), message, "broken link"))
            return
        if not self.follow and not target.is_relative_to(self.real_root):
            message = (
                f"{shown(path)}: is a link out of the folder, to {shown(target)}; remove it, or set "
                "`follow_links: true` of the source if that is to be read and sent to your models"
            )
            self.tree.faults.append(Fault(self.name(path), message, "link out of the folder"))
        elif str(target) in self.seen:
            self.passed(path, "a link to what is read anyway")
        elif stat.S_ISDIR(mode):
            if self.real_root.is_relative_to(target):
                self.passed(path, "a link to the folder that it lies in")
            else:
                self.folder(path)
        elif stat.S_ISREG(mode):
            self.file(path)
        else:
            self.passed(path, "not a file but a pipe, socket or device")

    def passed(self, path: Path, reason: str) -> None:
        self.tree.passed.append(Loss(id=self.name(path), stage="documents", reason=reason))
