"""Custom readers: which files they read, where they run, and what they may return."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optimsyn.base.errors import DataError, RecipeError
from optimsyn.base.extensions import READERS, call_problem, importable_name, imported
from optimsyn.base.identity import digest_of
from optimsyn.base.source_identity import source_identity
from optimsyn.base.values import kind_of
from optimsyn.data.records import Document

_MB = 1_000_000
_WANTED = "a reader returns text, a Document or several Documents"


class Reader(Protocol):
    """Turns one file into documents: a function that gets the file's path.

    It returns the file's text, a `Document`, or any iterable of `Document`s (also a generator). For plain text the id
    is the file's path in its folder and the title its first heading or its name. Any exception counts as the file's
    fault: the message names the file and the reader, and `documents.on_error` decides whether the run continues.

    A reader runs in the converter's process, within `documents.limits` and without your keys, so that a broken file
    cannot end the run. One that needs the environment (the key of an API, a database) sets the attribute
    `read.isolated = False`. It then runs in the main process, without limits, and not before the run starts. So does a
    function of a notebook cell, which other processes cannot import.
    """

    def __call__(self, path: Path, /) -> str | Document | Iterable[Document]:
        """The file's text, or its documents."""
        ...


def _problem(part: object) -> str | None:
    if isinstance(part, type):
        return "it is a class; name a function, or an object that can be called with a file's path"
    if not callable(part):
        return "it cannot be called; a reader is a function that gets a file's path"
    return call_problem(part, "a file's path")


READERS.provide({}, _problem)


@dataclass(frozen=True)
class NamedReader:
    """A reader as a recipe names it.

    Attributes:
        pattern: The ending (`.tei`) or name (`index.db`) of the files that it reads.
        importable: `package.module:name` for the converter's process; None if it runs in this process.
    """

    pattern: str
    reference: str
    part: Reader
    importable: str | None

    @property
    def field(self) -> str:
        """The recipe field that names it."""
        return field_of(self.pattern)

    @property
    def folders(self) -> list[str]:
        """The folder of its module, which may be a notebook's working directory."""
        top = sys.modules.get(str(self.importable).partition(":")[0].partition(".")[0])
        file = getattr(top, "__file__", None)
        if file is None:
            return []
        place = Path(file).resolve().parent
        return [str(place.parent if hasattr(top, "__path__") else place)]

    def matches(self, name: str) -> bool:
        """Whether it reads a file of this name."""
        if self.pattern.startswith("."):
            return name.lower().endswith(self.pattern.lower())
        return name == self.pattern


def field_of(pattern: str) -> str:
    """The recipe field of one reader, for messages."""
    return f"documents.readers[{pattern!r}]"


def named_readers(readers: Mapping[str, str]) -> list[NamedReader]:
    """The readers of a recipe, longer endings first."""
    named = []
    for pattern, reference in sorted(readers.items(), key=lambda item: (item[0].startswith("."), -len(item[0]))):
        part: Reader = READERS.get(reference, field_of(pattern))
        named.append(NamedReader(pattern, reference, part, _importable(reference, part)))
    return named


def reader_for(path: Path, readers: Iterable[NamedReader]) -> NamedReader | None:
    """The first of these readers that reads a file of this name."""
    return next((reader for reader in readers if reader.matches(path.name)), None)


def reader_identity(readers: Mapping[str, str]) -> dict[str, str]:
    """Digests of the sources of a recipe's readers, by field, to notice an edited reader."""
    return {
        named.field: digest_of([named.reference, source_identity(named.reference, named.part, named.field)])
        for named in named_readers(readers)
    }


def _importable(reference: str, part: Reader) -> str | None:
    if not getattr(part, "isolated", True):
        return None
    # A registered one may not be importable in another process.
    name = reference if ":" in reference else importable_name(part)
    return None if name is None or name.startswith("__main__:") else name


def load(importable: str) -> Reader:
    """Imports a reader in the converter's process."""
    try:
        part: Any = imported(importable, "documents.readers")
    except RecipeError as error:
        raise DataError(f"cannot be read: {error}") from None
    reader: Reader = part
    return reader


def read_with(reader: Reader, called: str, path: Path, most_mb: int) -> str | list[Document]:
    """Reads a file with a reader.

    Raises:
        DataError: It fails, or returns no text; without the file's path.
    """
    try:
        content: Any = reader(path)
        if isinstance(content, Iterable) and not isinstance(content, str | Document | Mapping | bytes):
            content = _within(content, called, most_mb)
    except (DataError, MemoryError, RecursionError):
        raise
    except (Exception, SystemExit) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(
            f"the reader {called} fails on it ({problem}); mend the reader, or the file, or remove it"
        ) from error
    if isinstance(content, Document):
        content = [content]
    if not isinstance(content, str | list):
        raise DataError(f"the reader {called} gives {kind_of(content)}; {_WANTED}")
    if isinstance(content, str):
        _check_size(len(content), called, most_mb)
        # Half of a surrogate pair cannot be encoded.
        return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return content


def _within(documents_in: Iterable[Any], called: str, most_mb: int) -> list[Document]:
    documents: list[Document] = []
    size = 0
    for place, document in enumerate(documents_in, 1):
        if not isinstance(document, Document):
            raise DataError(f"the reader {called} gives {kind_of(document)} in place {place}; {_WANTED}")
        size += len(document.text)
        _check_size(size, called, most_mb)
        documents.append(document)
    return documents


def _check_size(characters: int, called: str, most_mb: int) -> None:
    if characters > most_mb * _MB:
        raise DataError(
            f"the reader {called} gives {characters / _MB:,.0f} million characters of text, more than "
            f"documents.limits.inflated_mb = {most_mb}; split the file or raise that"
        )
