"""Documents from one file or a folder of files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from optimsyn.base.errors import DataError
from optimsyn.base.text_files import decode
from optimsyn.data.files.converter import Converted, Converter
from optimsyn.data.files.file_tree import Fault, FileTree, find_files, printable, read_file, shown, size_of
from optimsyn.data.files.kinds import (
    CONVERTED,
    DOCUMENT_SUFFIXES,
    LISTED,
    PICTURE_SUFFIXES,
    TEXT_SUFFIXES,
    cure,
    is_unknown,
    missing_extra,
)
from optimsyn.data.files.leftovers import left_behind
from optimsyn.data.files.ocr import Ocr
from optimsyn.data.files.readers import NamedReader, named_readers, reader_for
from optimsyn.data.files.rows import ROW_SUFFIXES
from optimsyn.data.losses import Loss
from optimsyn.data.records import Document
from optimsyn.data.text import encodable
from optimsyn.recipe.recipe import Documents, Source

# In other text a line that begins with # may be a comment.
_WITH_HEADINGS = DOCUMENT_SUFFIXES - {".txt"}
_KINDS_NAMED = 3
_OCR = "`documents.ocr: eng` or its language"
_HEADING = re.compile(r"^#{1,3}\s+(.+?)\s*#*$", re.MULTILINE)


@dataclass
class FolderContents:
    """The content of a folder.

    Attributes:
        documents: Each with its path, for messages.
        passed: Ignored files: no documents, or of a kind whose extra is not installed.
    """

    documents: list[tuple[str, Document]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    passed: list[Loss] = field(default_factory=list)


def document_files(place: Path, config: Documents) -> tuple[list[Path], FileTree]:
    """The files that are documents, in a fixed order, and the whole tree; a single file is a folder of one."""
    tree = find_files(place, follow_links=config.source.follow_links) if place.is_dir() else FileTree([place])
    suffixes = DOCUMENT_SUFFIXES | _text_endings(place, config.source)
    suffixes |= PICTURE_SUFFIXES if config.ocr is not None else frozenset()
    readers = named_readers(config.readers)
    wanted = [
        path
        for path in tree.files
        if reader_for(path, readers) is not None
        or (path.suffix.lower() in suffixes and not missing_extra(path.suffix.lower()))
    ]
    if not place.is_dir() and left_behind(place.name):
        wanted = []
    return wanted, tree


def _text_endings(place: Path, source: Source) -> frozenset[str]:
    """Endings of files that are read as text; for a file that the recipe names, also an unknown one."""
    ending = place.suffix.lower()
    alone = not place.is_dir() and is_unknown(ending)
    return TEXT_SUFFIXES.union(source.text_suffixes, (ending,) if alone else ())


def is_converted(path: Path, readers: Iterable[NamedReader] = ()) -> bool:
    """True for kinds whose conversion takes time, and for files of custom readers."""
    return path.suffix.lower() in CONVERTED.keys() | PICTURE_SUFFIXES or reader_for(path, readers) is not None


def read_folder(place: Path, config: Documents, *, convert: bool = True) -> FolderContents:
    """The documents below a folder, or of a single file.

    The id is the path relative to the folder; the title the first heading or the file's name.
    """
    ocr = Ocr.of(config)
    files, tree = document_files(place, config)
    readers = named_readers(config.readers)
    root = place if place.is_dir() else place.parent
    endings = _text_endings(place, config.source)
    contents = FolderContents(faults=list(tree.faults), passed=list(tree.passed))
    unread = sorted(set(tree.files) - set(files))
    if not files and not contents.faults:
        raise DataError(_nothing(place, unread, config.readers))
    for path in unread:
        reason = _not_read(path.suffix.lower())
        contents.passed.append(Loss(id=shown(path.relative_to(root)), stage="documents", reason=reason))
    with closing(Converter(config.limits, config.source.encoding, ocr)) as converter:
        for path in files:
            name = path.relative_to(root).as_posix()
            if not encodable(str(path)):
                message = f"{shown(path)}: the file's name is not UTF-8 and cannot be an id; rename the file"
                contents.faults.append(Fault(shown(Path(name)), message, "name is not UTF-8"))
            elif convert or not is_converted(path, readers):
                _Reading(config, converter, contents, endings, readers).read(path, name)
    return contents


def _not_read(suffix: str) -> str:
    """Why a file is ignored, and what to do about it."""
    return f"{suffix or 'no suffix'}: {cure(suffix)}"


def _nothing(place: Path, unread: list[Path], readers: Iterable[str]) -> str:
    if not place.is_dir():
        leftover = left_behind(place.name)
        return f"{shown(place)}: " + (
            f"is {leftover}; name the file itself" if leftover else _not_read(place.suffix.lower())
        )
    rows = [path for path in unread if path.suffix.lower() in ROW_SUFFIXES]
    hints = [f"Name the file itself: {shown(rows[0])}"] if rows else []
    extras = sorted({extra for path in unread if (extra := missing_extra(path.suffix.lower()))})
    hints += [f"Files there need an extra: pip install 'optimsyn[{','.join(extras)}]'"] if extras else []
    others = [path for path in unread if path not in rows and not missing_extra(path.suffix.lower())]
    counts = Counter(_not_read(path.suffix.lower()) for path in others).most_common(_KINDS_NAMED)
    hints += [f"{count} × {reason}." for reason, count in counts]
    listed = ", ".join([LISTED, *([f"and by documents.readers {' '.join(readers)}"] if readers else [])])
    return " ".join([f"{place}: holds no document file ({listed}).", *hints])


@dataclass
class _Reading:
    """Reads the files of one folder."""

    config: Documents
    converter: Converter
    found: FolderContents
    endings: frozenset[str]
    readers: list[NamedReader]

    def read(self, path: Path, name: str) -> None:
        """Adds a file's documents or its fault; `name` is its path in the folder."""
        contents = self.found
        try:
            content = self._content(path)
        except DataError as error:
            reason = "not UTF-8" if "UTF-" in str(error) else "cannot be read"
            contents.faults.append(Fault(name, str(error), reason))
            return
        contents.passed += [
            Loss(id=f"{name}: {printable(part)}", stage="documents", reason="an attachment") for part in content.passed
        ]
        if content.documents is not None:
            self._add(path, name, content.documents)
            return
        text = _uniform(content.text)
        if not text.strip():
            scan = path.suffix.lower() in {".pdf", *PICTURE_SUFFIXES} and path.stat().st_size > 0
            wanted = f"a scan without text? run OCR on it, with {_OCR}," if scan else "fill it"
            if scan and self.config.ocr is not None:
                wanted = f"OCR with documents.ocr = {self.config.ocr} reads none; scan it again, sharper and upright,"
            contents.faults.append(Fault(name, f"{shown(path)}: no text in it; {wanted} or remove it", "no text in it"))
            return
        if content.unread:
            unread = f"{name}: {page_list(content.unread)}"
            contents.passed.append(
                Loss(id=unread, stage="documents", reason=f"scanned, without a text layer: set {_OCR}")
            )
        headed = path.suffix.lower() in _WITH_HEADINGS or reader_for(path, self.readers) is not None
        heading = _HEADING.search(text[:2000]) if headed else None
        title = heading.group(1) if heading else path.stem.replace("_", " ")
        contents.documents.append((shown(path), Document(id=name, title=title, text=text, source=name, group=name)))

    def _add(self, path: Path, name: str, documents: Iterable[Document]) -> None:
        """Adds the documents of a custom reader, with defaults for empty fields."""
        count = 0
        for count, document in enumerate(documents, 1):
            where = f"{shown(path)}, document {count} ({printable(document.id)})"
            text = _uniform(document.text)
            if not text.strip() or not document.id.strip():
                lacks = "no text" if document.id.strip() else "no id"
                fault = f"{where}: has {lacks}; its reader has to give it one or leave it out"
                self.found.faults.append(Fault(f"{name}: {printable(document.id)}", fault, f"{lacks} in it"))
                continue
            filled = {
                "text": text,
                "title": document.title or document.id,
                "source": document.source or name,
                "group": document.group or document.id,
            }
            self.found.documents.append((where, document.model_copy(update=filled)))
        if not count:
            fault = f"{shown(path)}: its reader gives no document; mend one of them or remove the file"
            self.found.faults.append(Fault(name, fault, "no document in it"))

    def _content(self, path: Path) -> Converted:
        source = self.config.source
        reader = reader_for(path, self.readers)
        if reader is None and path.suffix.lower() in self.endings:
            return Converted(decode(read_file(path, source.file_mb), shown(path), source.encoding, settable=True))
        if size_of(path, source.file_mb) == 0 and reader is None:
            return Converted("")
        try:
            return self.converter.convert(path, reader)
        except DataError as error:
            problem = str(error)
            raise DataError(
                f"{shown(path)}{problem}" if problem.startswith(":") else f"{shown(path)}: {problem}"
            ) from None


def page_list(numbers: Iterable[int]) -> str:
    """Page numbers in words: `page 3`, `pages 1, 4-7`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    one = len(spans) == 1 and spans[0][0] == spans[0][1]
    listed = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)
    return f"page{'' if one else 's'} {listed}"


def _uniform(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n").replace("\0", "")
