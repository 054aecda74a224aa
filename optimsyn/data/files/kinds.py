"""The kinds of document files, and advice for other kinds."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of file that is converted.

    Attributes:
        module: The module that it needs; None if optimsyn always installs it.
        extra: The extra of optimsyn that installs it.
        packed: It is a zip archive inside.
    """

    module: str | None = None
    extra: str | None = None
    packed: bool = False


TEXT_SUFFIXES = frozenset({".md", ".markdown", ".txt", ".text", ".rst"})
PAGE_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
CONVERTED: dict[str, Kind] = {
    ".pdf": Kind(),
    ".docx": Kind(packed=True),
    ".epub": Kind(packed=True),
    ".eml": Kind(),
    ".xlsx": Kind("openpyxl", "xlsx", packed=True),
    ".pptx": Kind("pptx", "pptx", packed=True),
    ".odt": Kind("odfdo", "odt", packed=True),
    ".rtf": Kind("striprtf", "rtf"),
}
# Read where the recipe has `documents.ocr`.
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
DOCUMENT_SUFFIXES = TEXT_SUFFIXES | PAGE_SUFFIXES | CONVERTED.keys()
# The readable kinds, for messages.
LISTED = ".md .txt .rst .html .pdf .docx .epub .eml, and with extras .xlsx .pptx .odt .rtf"
_CURES = {
    **dict.fromkeys((".doc", ".dot", ".wpd", ".pages", ".wps"), "save it as .docx"),
    **dict.fromkeys((".xls", ".xlsm", ".xlsb", ".ods", ".numbers"), "save it as .xlsx"),
    **dict.fromkeys((".ppt", ".pps", ".ppsx", ".odp", ".key"), "save it as .pptx"),
    **dict.fromkeys((".mobi", ".azw", ".azw3", ".fb2"), "convert it to .epub"),
    **dict.fromkeys((".djvu", ".djv", ".ps", ".xps"), "convert it to .pdf"),
    **dict.fromkeys((".msg", ".mbox", ".pst"), "save its messages as .eml"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"), "unpack it"),
    **dict.fromkeys(PICTURE_SUFFIXES, "a picture; run OCR where it is text, with `documents.ocr: eng` or its language"),
    **dict.fromkeys((".gif", ".webp", ".bmp", ".heic", ".svg"), "a picture; where it is text, save it as .png for OCR"),
    **dict.fromkeys(
        (".mp3", ".wav", ".m4a", ".ogg", ".flac", ".mp4", ".mov", ".avi", ".mkv", ".webm"),
        "a recording; transcribe it into .txt",
    ),
    **dict.fromkeys((".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv"), "rows; name the file itself as source"),
}


def missing_extra(suffix: str) -> str | None:
    """The extra to install before files of this kind can be read; None where nothing is missing."""
    kind = CONVERTED.get(suffix)
    if kind is None or kind.module is None or importlib.util.find_spec(kind.module) is not None:
        return None
    return kind.extra


def is_unknown(suffix: str) -> bool:
    """Whether the ending is unknown, so that the file may be text."""
    return suffix not in DOCUMENT_SUFFIXES and suffix not in _CURES


def cure(suffix: str) -> str:
    """What to do about a file that is no document, in a few words; the suffix is in lower case."""
    extra = missing_extra(suffix)
    if extra is not None:
        return f"read with the extra: pip install 'optimsyn[{extra}]'"
    if suffix in _CURES:
        return _CURES[suffix]
    return (
        f"if it is text, rename it to .txt or .md, or name `text_suffixes: ['{suffix}']` of the source; else save it "
        "as .pdf or .docx"
    )
