"""Small files of the further kinds that people have documents in, and nasty ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

from data_helpers import write_docx, write_pdf

from optimsyn.recipe.recipe import Documents, Source

SENTENCE = "The basin fills with the tide, and twice a day it empties."


def documents(
    path: Path, *, on_error: str = "stop", limits: dict[str, float] | None = None, **source: object
) -> Documents:
    fields = {"path": str(path), **source}
    return Documents.model_validate({"source": fields, "on_error": on_error, "limits": limits or {}})


def folder_source(path: Path) -> Source:
    return Source(path=str(path))


def write_epub(path: Path, text: str) -> None:
    container = "urn:oasis:names:tc:opendocument:xmlns:container"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("mimetype", "application/epub+zip")
        file.writestr(
            "META-INF/container.xml",
            f'<?xml version="1.0"?><container xmlns="{container}" version="1.0"><rootfiles><rootfile '
            'full-path="O/c.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        )
        file.writestr(
            "O/c.opf",
            '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata '
            'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Mills</dc:title></metadata><manifest><item id="a" '
            'href="a.xhtml" media-type="application/xhtml+xml"/></manifest><spine><itemref idref="a"/></spine>'
            "</package>",
        )
        page = f'<html xmlns="http://www.w3.org/1999/xhtml"><body><h1>The wheel</h1><p>{text}</p></body></html>'
        file.writestr("O/a.xhtml", page if text else "<html><body></body></html>")


def write_xlsx(path: Path, rows: list[list[object]]) -> None:
    from openpyxl import Workbook

    book = Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


def write_pptx(path: Path, title: str, text: str) -> None:
    from pptx import Presentation

    slides = Presentation()
    slide = slides.slides.add_slide(slides.slide_layouts[1])
    slide.shapes.title.text = title
    slide.placeholders[1].text = text
    slides.save(str(path))


def write_odt(path: Path, title: str, text: str) -> None:
    from odfdo import Document, Header, Paragraph

    document = Document("text")
    document.body.clear()
    document.body.append(Header(1, title))
    document.body.append(Paragraph(text))
    document.save(str(path))


def write_rtf(path: Path, text: str) -> None:
    path.write_bytes(b"{\\rtf1\\ansi\\ansicpg1252{\\fonttbl{\\f0 Arial;}}\\f0 " + text.encode("ascii") + b"\\par}")


def write_eml(path: Path, text: str, *, attached: str | None = None) -> None:
    from email.message import EmailMessage

    letter = EmailMessage()
    letter["From"], letter["To"], letter["Subject"] = "miller@example.org", "owner@example.org", "Die Mühle"
    letter["Date"] = "Mon, 01 Jan 2024 00:00:00 +0000"
    letter.set_content(text)
    if attached is not None:
        letter.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename=attached)
    path.write_bytes(bytes(letter))


# Kind to writer of a good file that holds the sentence.
WRITERS: dict[str, Callable[[Path], None]] = {
    ".docx": lambda path: write_docx(path, [SENTENCE]),
    ".pdf": lambda path: write_pdf(path, [SENTENCE]),
    ".epub": lambda path: write_epub(path, SENTENCE),
    ".xlsx": lambda path: write_xlsx(path, [["year", "note"], [1742, SENTENCE]]),
    ".pptx": lambda path: write_pptx(path, "Mills", SENTENCE),
    ".odt": lambda path: write_odt(path, "Mills", SENTENCE),
    ".rtf": lambda path: write_rtf(path, SENTENCE),
    ".eml": lambda path: write_eml(path, SENTENCE),
    ".html": lambda path: path.write_text(f"<html><body><h1>Mills</h1><p>{SENTENCE}</p></body></html>") and None,
    ".md": lambda path: path.write_text(f"# Mills\n\n{SENTENCE}") and None,
    ".txt": lambda path: path.write_text(SENTENCE) and None,
}
PACKED = (".docx", ".epub", ".xlsx", ".pptx", ".odt")


def add_member(path: Path, name: str, data: bytes, times: int = 1) -> None:
    """One more member in an archive: `data` so many times, deflated."""
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        for _ in range(times):
            member.write(data)


def nested(levels: int, data: bytes = b"x" * 100) -> bytes:
    """A zip in a zip in a zip."""
    for level in range(levels):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"level{level}.zip" if level else "data.txt", data)
        data = packed.getvalue()
    return data
