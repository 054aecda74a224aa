"""Small data of the tests' own: questions, documents, minimal PDF and Word files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from optimsyn.data.documents import load_document_set
from optimsyn.data.files.rows import Row, sampled
from optimsyn.data.records import Document
from optimsyn.recipe.recipe import Documents, Recipe

SENTENCES = (
    "The tidal mill at the river mouth was built in 1742 by Dutch engineers. ",
    "Its wheel turned twice a day when the basin emptied through the sluice. ",
    "Flour from the mill fed the garrison and most of the harbour quarter. ",
    "A storm in 1810 broke the dam, and the owners could not pay for repairs. ",
)


def text_of(words: int, start: int = 0) -> str:
    """About so many words of plain sentences, numbered so that no two texts are equal."""
    parts: list[str] = []
    number, written = start, 0
    while written < words:
        parts.append(f"Note {number}. " + SENTENCES[number % len(SENTENCES)])
        written += len(parts[-1].split())
        number += 1
    return "".join(parts).strip()


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row(**values: Any) -> Row:
    return Row("questions.jsonl:1", "questions:1", values)


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    """A recipe of 12 documents and 24 questions in `folder`, with top-level sections replaced by `changes`."""
    documents = folder / "documents.jsonl"
    questions = folder / "questions.jsonl"
    if not documents.exists():
        write_lines(documents, [{"id": f"d{i}", "text": text_of(100, 100 * i)} for i in range(12)])
    if not questions.exists():
        rows = [
            {
                "id": f"q{i}",
                "question": f"What does note {i} of the ledger record?",
                "answer": f"entry {i}",
                "group": f"g{i}",
            }
            for i in range(60)
        ]
        write_lines(questions, rows)
    raw: dict[str, Any] = {
        "name": "mill",
        "documents": {"source": str(documents)},
        "questions": {"validation": str(questions)},
        "guiding_text": "Write criteria for one question that a mill engineer would ask about the passage.",
    }
    return Recipe.parse(raw | changes)


def write_docx(path: Path, paragraphs: list[str]) -> None:
    """The smallest Word file: one document part with plain paragraphs."""
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    kinds = "http://schemas.openxmlformats.org/package/2006/content-types"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(
            "[Content_Types].xml",
            f'<?xml version="1.0"?><Types xmlns="{kinds}">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        )
        file.writestr(
            "_rels/.rels",
            f'<?xml version="1.0"?><Relationships xmlns="{relations}">'
            f'<Relationship Id="r1" Type="{office}" Target="word/document.xml"/></Relationships>',
        )
        file.writestr(
            "word/document.xml",
            f'<?xml version="1.0"?><w:document xmlns:w="{word}"><w:body>{body}</w:body></w:document>',
        )


def write_pdf(path: Path, lines: list[str]) -> None:
    """A one-page PDF with these lines of text; without lines it is like a scan, a page that holds no text."""
    drawn = "".join(f"({line}) Tj 0 -16 Td " for line in lines)
    stream = f"BT /F1 12 Tf 72 720 Td {drawn}ET" if lines else "0 0 m 100 100 l S"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    content = "%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n"
    start = len(content)
    content += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
    content += "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    content += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    path.write_bytes(content.encode("latin-1"))


def load_documents(config: Documents, seed: int, *, everything: bool = False) -> list[Document]:
    """The documents of a recipe, as the stage prepare takes them; all of them for open-book questions."""
    loaded = load_document_set(config)
    return loaded.library if everything else sampled(loaded.documents, config.source.limit, seed)
