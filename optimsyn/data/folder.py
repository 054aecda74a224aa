"""A folder of Markdown, text, HTML, PDF and Word files as documents."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

from optimsyn.data.losses import Loss
from optimsyn.data.records import Document
from optimsyn.data.sources import ROW_SUFFIXES
from optimsyn.data.text import encodable
from optimsyn.errors import DataError
from optimsyn.text_files import decode

TEXT_SUFFIXES = frozenset({".md", ".markdown", ".txt", ".text", ".rst"})
PAGE_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
BINARY_SUFFIXES = frozenset({".pdf", ".docx"})
_HEADING = re.compile(r"^#{1,3}\s+(.+?)\s*#*$", re.MULTILINE)


def document_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files below a folder in a fixed order: those that are documents, and the others; hidden ones are left out."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "~$")) for part in path.relative_to(folder).parts)
    )
    wanted = TEXT_SUFFIXES | PAGE_SUFFIXES | BINARY_SUFFIXES
    return [p for p in files if p.suffix.lower() in wanted], [p for p in files if p.suffix.lower() not in wanted]


def read_folder(
    folder: Path, losses: list[Loss], problems: list[str], *, convert: bool = True
) -> list[tuple[str, Document]]:
    """The documents below a folder, each with its path for messages.

    The id is the path relative to the folder; the title the first heading or the file's name.

    Args:
        folder: Searched with all its subfolders.
        losses: Files that are no documents are added here.
        problems: Files that are empty, unreadable or not UTF-8 are added here.
        convert: Convert PDF and Word files; False skips them.
    """
    files, others = document_files(folder)
    if not files:
        rows = [p.name for p in others if p.suffix.lower() in ROW_SUFFIXES]
        hint = f" Name the file itself: {folder / rows[0]}" if rows else ""
        problems.append(f"{folder}: holds no .md, .txt, .html, .pdf or .docx file.{hint}")
    for path in others:
        cure = "save it as .docx" if path.suffix.lower() in {".doc", ".rtf", ".odt"} else "not a kind that is read"
        name = os.fsencode(path.relative_to(folder)).decode(errors="replace")
        losses.append(Loss(id=name, stage="documents", reason=f"{path.suffix}: {cure}"))
    documents = []
    converter: Any = None
    for path in files:
        binary = path.suffix.lower() in BINARY_SUFFIXES
        if not encodable(str(path)):
            shown = os.fsencode(path).decode(errors="replace")
            problems.append(f"{shown}: the file's name is not UTF-8 and cannot be an id; rename the file")
            continue
        if binary and not convert:
            continue
        try:
            if path.suffix.lower() in TEXT_SUFFIXES:
                text = decode(path.read_bytes(), str(path))
            else:
                converter = converter or _converter()
                text = _converted(converter, path)
        except DataError as error:
            problems.append(str(error))
            continue
        text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n\n").replace("\0", "")
        if not text.strip():
            cure = "a scan without text? run OCR on it" if path.suffix.lower() == ".pdf" else "fill it"
            problems.append(f"{path}: no text in it; {cure} or remove it")
            continue
        name = path.relative_to(folder).as_posix()
        heading = _HEADING.search(text[:2000]) if path.suffix.lower() != ".txt" else None
        title = heading.group(1) if heading else path.stem.replace("_", " ")
        documents.append((str(path), Document(id=name, title=title, text=text, source=name, group=name)))
    return documents


def _converter() -> Any:
    from markitdown import MarkItDown
    from markitdown.converters import DocxConverter, HtmlConverter, PdfConverter

    # No plugins: what is installed beside us must not change the text. And no other kinds: what fails as a Word file
    # would be tried as an archive, whose listing would pass for a document.
    converter = MarkItDown(enable_builtins=False, enable_plugins=False)
    for kind in (HtmlConverter, PdfConverter, DocxConverter):
        converter.register_converter(kind())
    return converter


def _converted(converter: Any, path: Path) -> str:
    import logging

    from markitdown import MarkItDownException

    # pdfminer warns about every odd font of every page.
    logging.getLogger("pdfminer").setLevel(logging.ERROR)
    if path.stat().st_size == 0:
        return ""
    # A broken Word file would come back as plain text: its compressed bytes.
    if path.suffix.lower() == ".docx" and not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is no whole .docx file (torn, or locked by a password); save it anew or remove it")
    if path.suffix.lower() == ".pdf" and b"%PDF" not in path.read_bytes()[:1024]:
        raise DataError(f"{path}: is no PDF file; save it anew or remove it")
    try:
        return str(converter.convert_local(path).text_content)
    except MarkItDownException as error:
        reason = " ".join(str(error).split())[-200:]
        raise DataError(f"{path}: cannot be converted ({reason}); save it anew or remove it") from error
