"""Converts PDF, office, e-book, web and mail files to text, by a library each; runs in the converter's child."""

from __future__ import annotations

import codecs
import copy
import io
import itertools
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from optimsyn.base.errors import DataError
from optimsyn.base.text_files import decode
from optimsyn.data.files.archives import Sizes, check_archive
from optimsyn.data.files.kinds import CONVERTED, PAGE_SUFFIXES, PICTURE_SUFFIXES
from optimsyn.data.files.page_pictures import picture_pages
from optimsyn.data.files.pdf_pages import pages_of
from optimsyn.recipe.sections.data import FileLimits

_BLANK_LINES = re.compile(r"\n{3,}")
_SLIDE_NUMBER = re.compile(r"^<!-- Slide number: \d+ -->\n", re.MULTILINE)
_UNKNOWN_LETTER = re.compile(r"\(cid:\d+\)")
_MANIFEST = "META-INF/manifest.xml"
_LETTER_HEAD = ("from", "subject", "date", "received")
_MB = 1_000_000
_WIDEST_SPAN = 1000


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        passed: Names of ignored parts (attachments of a mail).
        pages: The text of each page, where some are pictures of text.
        pictures: The numbers of these, from 1.
    """

    text: str
    passed: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    pictures: tuple[int, ...] = ()


def convert(path: Path, limits: FileLimits, encoding: str | None = None, *, ocr: bool = False) -> Content:
    """The content of a file; `ocr`: pages with glyphs of unknown characters count as pictures.

    Raises:
        DataError: It exceeds a limit, or is locked, damaged or of another kind than its name says; without its path.
    """
    suffix = path.suffix.lower()
    data = path.read_bytes()
    passed: list[str] = []
    if suffix in CONVERTED and CONVERTED[suffix].packed:
        check_archive(io.BytesIO(data), suffix, Sizes(limits, len(data)))
    if suffix in PICTURE_SUFFIXES:
        count = picture_pages(data, limits.pages)
        return Content("", pages=("",) * count, pictures=tuple(range(1, count + 1)))
    if suffix == ".pdf":
        pages, pictures = _pdf(data, limits.pages, ocr)
        text = tidy("\f".join(pages), limits)
        return Content(text, pages=pages if pictures else (), pictures=pictures)
    if suffix in PAGE_SUFFIXES:
        text = _page(data, encoding)
    elif suffix == ".eml":
        text, passed = _letter(data, encoding)
    else:
        readers: dict[str, Callable[[bytes], str]] = {
            ".docx": _word,
            ".pptx": lambda slides: _SLIDE_NUMBER.sub("", _markdown("Pptx", slides, ".pptx")),
            ".epub": _book,
            ".xlsx": _sheets,
            ".odt": _open_document,
            ".rtf": lambda rtf: _rich_text(rtf, encoding),
        }
        text = readers[suffix](data)
    return Content(tidy(text, limits), tuple(passed))


def tidy(text: str, limits: FileLimits) -> str:
    """Text with uniform line ends and few blank lines.

    Raises:
        DataError: It exceeds the limit.
    """
    if len(text) > limits.inflated_mb * _MB:
        raise DataError(
            f"gives {len(text) / _MB:,.0f} million characters of text, more than documents.limits.inflated_mb = "
            f"{limits.inflated_mb}; split it or raise that"
        )
    text = "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    # Join the surrogate pairs that RTF writes; half of one cannot be encoded.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _BLANK_LINES.sub("\n\n", text).strip("\n")


def _markdown(kind: str, data: bytes, suffix: str) -> str:
    from markitdown import StreamInfo, converters

    converter = getattr(converters, f"{kind}Converter")()
    return str(converter.convert(io.BytesIO(data), StreamInfo(extension=suffix)).markdown)


def _word(data: bytes) -> str:
    from markitdown import StreamInfo, converters

    class Pages(converters.HtmlConverter):
        def convert_string(self, html_content: str, **options: Any) -> Any:
            return super().convert_string(_with_plain_cells(html_content), **options)

    converter = converters.DocxConverter()
    converter._html_converter = Pages()
    return str(converter.convert(io.BytesIO(data), StreamInfo(extension=".docx")).markdown)


def _with_plain_cells(page: str) -> str:
    """HTML with cells over several rows repeated in each, and with bars escaped, because Markdown has no such cells."""
    lower = page.lower()
    if "<table" not in lower or ("rowspan" not in lower and "|" not in page):
        return page
    from bs4 import BeautifulSoup, Tag

    soup = BeautifulSoup(page, "html.parser")
    for table in soup.find_all("table"):
        # Column -> the cell that reaches down into it, and how many rows are left of it.
        reaching: dict[int, tuple[Tag, int]] = {}
        for row in table.find_all("tr"):
            if row.find_parent("table") is not table:
                continue
            column, below = 0, {}
            cells = row.find_all(("td", "th"), recursive=False)
            while cells or column in reaching:
                if column in reaching:
                    cell, left = reaching[column]
                    again = copy.copy(cell)
                    cells[0].insert_before(again) if cells else row.append(again)
                else:
                    cell = cells.pop(0)
                    left = _span(cell, "rowspan")
                    del cell["rowspan"]
                if left > 1:
                    below[column] = (cell, left - 1)
                column += _span(cell, "colspan")
            reaching = below
        for text in table.find_all(string=re.compile(r"\|")):
            if text.find_parent("table") is table:
                text.replace_with(text.replace("|", "\\|"))
    return str(soup)


def _span(cell: Any, name: str) -> int:
    value = str(cell.get(name, "1")).strip()
    return max(1, min(int(value), _WIDEST_SPAN)) if value.isdigit() else 1


def _pdf(data: bytes, most: int, ocr: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The text of each page, and the numbers of those that are pictures of text."""
    from pdfminer.pdfdocument import PDFDocument, PDFEncryptionError, PDFPasswordIncorrect
    from pdfminer.pdfpage import PDFPage
    from pdfminer.pdfparser import PDFParser

    if b"%PDF" not in data[:1024]:
        raise DataError("is not a PDF file; save it again or remove it")
    try:
        pages = PDFPage.create_pages(PDFDocument(PDFParser(io.BytesIO(data))))
        count = sum(1 for _ in itertools.islice(pages, most + 1))
    except (PDFPasswordIncorrect, PDFEncryptionError):
        raise DataError("is locked by a password; save it again without one") from None
    if count > most:
        raise DataError(f"has more than {most} pages, documents.limits.pages; split it, or raise that and .seconds")
    if count == 0:
        raise DataError("is a cut off or damaged PDF without any page; save it again or remove it")
    read = list(pages_of(data))
    if ocr:
        read = [(text, picture or _is_unknown(text)) for text, picture in read]
    elif _is_unknown("\f".join(text for text, _ in read)):
        raise DataError(
            "does not say which characters its glyphs are (a font without a character map); run OCR on it, with "
            "`documents.ocr: eng` or its language"
        )
    return tuple(text for text, _ in read), tuple(number for number, (_, picture) in enumerate(read, 1) if picture)


def _is_unknown(text: str) -> bool:
    """Whether too many glyphs have no known character."""
    unknown = len(_UNKNOWN_LETTER.findall(text))
    return unknown > 0.3 * len(_UNKNOWN_LETTER.sub("", text).replace(" ", "")) + 5


def _book(data: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if "META-INF/rights.xml" in archive.namelist():
            raise DataError("is protected by DRM; get a copy without it")
    text = _markdown("Epub", data, ".epub")
    # Metadata comes first; alone it is no document.
    return text if text.partition("\n\n")[2].strip() else ""


def _sheets(data: bytes) -> str:
    """Every sheet as a heading and a table, without trailing empty rows and columns; formulas as values."""
    from openpyxl import load_workbook

    parts: list[str] = []
    book = load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    for sheet in book.worksheets:
        # The stated size may be a million rows.
        sheet.reset_dimensions()
        rows = [_cells(row) for row in sheet.iter_rows(values_only=True)]
        rows = [row for row in rows if row]
        width = max(map(len, rows), default=0)
        lines = ["| " + " | ".join(row + [""] * (width - len(row))) + " |" for row in rows]
        if lines:
            parts.append("\n".join([f"## {sheet.title}", "", lines[0], "|" + " --- |" * width, *lines[1:]]))
    return "\n\n".join(parts)


def _cells(row: tuple[Any, ...]) -> list[str]:
    cells = ["" if cell is None else " ".join(str(cell).replace("|", "\\|").split()) for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _open_document(data: bytes) -> str:
    from odfdo import Document

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if _MANIFEST in archive.namelist() and b"encryption-data" in archive.read(_MANIFEST):
            raise DataError("is locked by a password; save it again without one")
    document = Document(io.BytesIO(data))
    if document.get_type() != "text":
        raise DataError(f"is not text but a {document.get_type()}; save it in the format of its kind")
    return str(document.to_markdown())


def _rich_text(data: bytes, encoding: str | None) -> str:
    from striprtf.striprtf import rtf_to_text

    if not data.lstrip()[:5].lower() == b"{\\rtf":
        raise DataError("is not an RTF file; save it again or remove it")
    if data.count(b"{") > data.count(b"}") + 1:
        raise DataError("is a damaged RTF file (groups are not closed); save it again or remove it")
    return str(rtf_to_text(data.decode("latin-1"), encoding=encoding or "cp1252", errors="replace"))


def _page(data: bytes, encoding: str | None) -> str:
    from bs4.dammit import EncodingDetector
    from markitdown.converters import HtmlConverter

    declared = EncodingDetector.find_declared_encoding(data, is_html=True)
    text = decode(data, "", encoding or _known(declared), settable=True)
    return str(HtmlConverter().convert_string(_with_plain_cells(text)).markdown)


def _known(encoding: str | None) -> str | None:
    """A declared encoding that Python knows; latin-1 means cp1252, as in browsers."""
    try:
        name = codecs.lookup(encoding or "utf-8").name
    except LookupError:
        return None
    return None if name == "utf-8" else {"iso8859-1": "cp1252", "ascii": "cp1252"}.get(name, name)


def _letter(data: bytes, encoding: str | None) -> tuple[str, list[str]]:
    """Subject, sender and date, then the plain body, else the HTML one; attachments are not read."""
    letter = message_from_bytes(data, policy=policy.default)
    if not isinstance(letter, EmailMessage) or not any(name in letter for name in _LETTER_HEAD):
        raise DataError("is not an e-mail: it has no sender, subject or date; save it again or remove it")
    body = letter.get_body(("plain", "html"))
    if body is None:
        text = ""
    else:
        content = body.get_payload(decode=True)
        raw = content if isinstance(content, bytes) else b""
        declared = _known(body.get_content_charset())
        if body.get_content_type() == "text/html":
            text = _page(raw, declared or encoding)
        else:
            text = decode(raw, "its body", declared or encoding, settable=True)
    head = [f"# {letter['subject']}"] if letter["subject"] else []
    head += [f"{name}: {letter[name]}" for name in ("From", "Date") if letter[name]]
    attached = [part.get_filename() or part.get_content_type() for part in letter.iter_attachments()]
    return ("\n\n".join(["\n".join(head), text]) if text.strip() else ""), attached
