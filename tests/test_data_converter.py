"""The converter's child: bombs, hangs, crashes and thousands of torn files are each one file's fault."""

from __future__ import annotations

import os
import random
import signal
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_helpers import load_documents, write_docx
from document_helpers import PACKED, SENTENCE, WRITERS, add_member, documents, nested

from optimsyn.base.errors import DataError
from optimsyn.data.documents import read_documents
from optimsyn.data.files.converter import Converter
from optimsyn.recipe.sections.data import FileLimits
from optimsyn.runs.manifest import process_lives


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    made = Converter(FileLimits(inflated_mb=20, seconds=60))
    yield made
    made.close()


def refused(converter: Converter, path: Path) -> str:
    with pytest.raises(DataError) as caught:
        converter.convert(path)
    return str(caught.value)


@pytest.mark.parametrize("suffix", PACKED)
def test_what_inflates_too_far_is_refused_by_the_field_to_raise(
    converter: Converter, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path)
    noise = random.Random(0).randbytes(1_000_000)
    add_member(path, "media/noise.bin", noise)
    assert SENTENCE in " ".join(converter.convert(path).text.split())
    add_member(path, "media/more.xml", noise, 21)
    assert "inflates to more than documents.limits.inflated_mb = 20" in refused(converter, path)
    WRITERS[suffix](path)
    add_member(path, "media/zeros.xml", bytes(1_000_000), 15)
    assert "times its size, documents.limits.inflated_ratio" in refused(converter, path)


def test_300_kb_that_inflate_to_300_mb_are_refused_before_they_are_converted(tmp_path: Path) -> None:
    write_docx(tmp_path / "a.docx", [SENTENCE])
    add_member(tmp_path / "a.docx", "word/media/a.xml", bytes(1_000_000), 300)
    assert (tmp_path / "a.docx").stat().st_size < 300_000
    problems = read_documents(documents(tmp_path)).problems
    assert len(problems) == 1
    assert "a.docx: inflates to more than documents.limits.inflated_mb = 200" in problems[0]


def test_sizes_that_lie_are_counted(converter: Converter, tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    write_docx(path, [SENTENCE])
    add_member(path, "word/media/a.xml", bytes(1_000_000), 30)
    # The size unpacked stands in the directory at the end, and before the data.
    stated, lied = (30_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little")
    assert stated in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(stated, lied))
    assert "is not a complete .docx file" in refused(converter, path)


def test_archives_in_archives(converter: Converter, tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    write_docx(path, [SENTENCE])
    add_member(path, "word/embeddings/table.xlsx", nested(2))
    assert converter.convert(path).text == SENTENCE
    add_member(path, "word/embeddings/deep.zip", nested(3))
    said = refused(converter, path)
    assert "archives within archives, 3 deep" in said
    assert "documents.limits.nesting = 2" in said
    limits = {"nesting": 3}
    assert len(load_documents(documents(path, limits=limits), 0)) == 1
    write_docx(path, [SENTENCE])
    add_member(path, "word/embeddings/inner.zip", nested(1, bytes(25_000_000)))
    assert "inflated_mb" in refused(converter, path)


def test_an_inner_archive_that_is_torn_does_not_matter(converter: Converter, tmp_path: Path) -> None:
    write_docx(tmp_path / "a.docx", [SENTENCE])
    add_member(tmp_path / "a.docx", "word/embeddings/torn.zip", nested(1)[:60])
    assert converter.convert(tmp_path / "a.docx").text == SENTENCE


def test_a_locked_archive_is_told(converter: Converter, tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    write_docx(path, [SENTENCE])
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(data)
    assert "is locked by a password" in refused(converter, path)


def pdf_of(objects: list[bytes], trailer: bytes = b"") -> bytes:
    """A PDF without a table of its objects, which readers then look for themselves."""
    body = b"".join(b"%d 0 obj\n%s\nendobj\n" % (number, one) for number, one in enumerate(objects, 1))
    return b"%PDF-1.4\n" + body + b"trailer << /Size 9 /Root 1 0 R " + trailer + b">>\n"


def test_pages_of_a_pdf_are_counted_before_it_is_read(tmp_path: Path) -> None:
    # A page counts only once, so each is an object of its own.
    kids = b" ".join(b"%d 0 R" % (3 + n) for n in range(30))
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] >>"
    tree = b"<< /Type /Pages /Kids [%s] /Count 30 >>" % kids
    (tmp_path / "a.pdf").write_bytes(pdf_of([b"<< /Type /Catalog /Pages 2 0 R >>", tree, *[page] * 30]))
    with pytest.raises(DataError, match=r"a\.pdf: has more than 20 pages, documents\.limits\.pages"):
        load_documents(documents(tmp_path / "a.pdf", limits={"pages": 20}), 0)
    with pytest.raises(DataError, match="run OCR on it"):
        load_documents(documents(tmp_path / "a.pdf", limits={"pages": 30}), 0)


def test_odd_pdfs_end(converter: Converter, tmp_path: Path) -> None:
    catalog = b"<< /Type /Catalog /Pages 2 0 R >>"
    (tmp_path / "round.pdf").write_bytes(pdf_of([catalog, b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 9 >>"]))
    assert "without any page" in refused(converter, tmp_path / "round.pdf")
    locked = b"<< /Filter /Standard /V 1 /R 2 /O (" + b"o" * 32 + b") /U (" + b"u" * 32 + b") /P -44 >>"
    objects = [catalog, b"<< /Type /Pages /Kids [] /Count 0 >>", locked]
    (tmp_path / "locked.pdf").write_bytes(pdf_of(objects, b"/Encrypt 3 0 R /ID [(a) (a)]"))
    assert "is locked by a password" in refused(converter, tmp_path / "locked.pdf")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_file_that_takes_too_long_is_ended_and_the_next_is_read(tmp_path: Path) -> None:
    write_docx(tmp_path / "a.docx", [SENTENCE])
    made = Converter(FileLimits(seconds=600))
    try:
        assert made.convert(tmp_path / "a.docx").text == SENTENCE
        first = made.process_id
        assert first is not None
        # It answers no more, as one that is busy for longer than the limit.
        os.kill(first, signal.SIGSTOP)
        made.limits = FileLimits(seconds=0.2)
        said = refused(made, tmp_path / "a.docx")
        assert "takes longer to convert than documents.limits.seconds = 0.2; split it or raise that" in said
        assert not process_lives(first)
        made.limits = FileLimits(seconds=600)
        assert made.convert(tmp_path / "a.docx").text == SENTENCE
        assert made.process_id != first
    finally:
        made.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce it")
def test_a_file_that_takes_too_much_memory_is_told(tmp_path: Path) -> None:
    stream = zlib.compress(b"BT /F1 12 Tf (x) Tj ET\n" * 8_000_000, 9)
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R >>"
    packed = b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream)
    tree = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of([b"<< /Type /Catalog /Pages 2 0 R >>", tree, page, packed]))
    limited = Converter(FileLimits(memory_mb=100, seconds=300))
    try:
        assert "takes more than documents.limits.memory_mb = 100" in refused(limited, path)
        write_docx(tmp_path / "b.docx", [SENTENCE])
        assert limited.convert(tmp_path / "b.docx").text == SENTENCE
    finally:
        limited.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_child_that_crashes_is_one_files_fault(converter: Converter, tmp_path: Path) -> None:
    write_docx(tmp_path / "a.docx", [SENTENCE])
    converter.convert(tmp_path / "a.docx")
    assert converter.process_id is not None
    os.kill(converter.process_id, signal.SIGSEGV)
    assert "ended the program that converts it (signal 11)" in refused(converter, tmp_path / "a.docx")
    assert converter.convert(tmp_path / "a.docx").text == SENTENCE


def test_the_child_sees_no_keys_and_leaves_with_its_parent(converter: Converter, tmp_path: Path) -> None:
    write_docx(tmp_path / "a.docx", [SENTENCE])
    os.environ["SOME_TEAM_PASS"] = "planted"
    try:
        made = Converter(FileLimits())
        made.convert(tmp_path / "a.docx")
        process = made.process_id
        assert process is not None
        if sys.platform == "linux":
            assert b"planted" not in Path(f"/proc/{process}/environ").read_bytes()
        made.close()
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    finally:
        del os.environ["SOME_TEAM_PASS"]


def test_entities_neither_grow_nor_read_files(converter: Converter, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("TOP SECRET")
    grown = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    kinds = {"bomb": (f'<!ENTITY a0 "lol">{grown}', "&a9;"), "file": (f'<!ENTITY f SYSTEM "{secret.as_uri()}">', "&f;")}
    for suffix, member in ((".docx", "word/document.xml"), (".odt", "content.xml"), (".epub", "O/c.opf")):
        for name, (entities, used) in kinds.items():
            plain, path = tmp_path / f"plain{suffix}", tmp_path / f"{name}{suffix}"
            WRITERS[suffix](plain)
            with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
                for entry in old.namelist():
                    data = old.read(entry).decode("utf-8", "surrogateescape")
                    if entry == member:
                        head, _, rest = data.partition("?>")
                        root = rest.lstrip()[1:].replace(">", " ", 1).split()[0]
                        marked = rest.replace(SENTENCE, used).replace("Mills", used)
                        data = f"{head}?><!DOCTYPE {root} [{entities}]>{marked.lstrip()}"
                    new.writestr(entry, data.encode("utf-8", "surrogateescape"))
            try:
                text = converter.convert(path).text
            except DataError:
                continue
            assert "TOP SECRET" not in text
            assert len(text) < 10_000


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITERS if suffix not in (".md", ".txt")])
def test_cut_and_changed_files_are_read_or_refused(converter: Converter, tmp_path: Path, suffix: str) -> None:
    good, path = tmp_path / f"good{suffix}", tmp_path / f"bad{suffix}"
    WRITERS[suffix](good)
    source, draw = good.read_bytes(), random.Random(suffix)
    for number in range(60):
        if suffix in PACKED and number % 2:
            _change_member(good, path, draw)
        else:
            path.write_bytes(_changed(source, draw))
        try:
            said = converter.convert(path).text
        except DataError as error:
            said = str(error)
        assert "ended the program" not in said
        assert "takes longer" not in said


def _changed(source: bytes, draw: random.Random) -> bytes:
    data, place = bytearray(source), draw.randrange(len(source))
    kind = draw.randrange(4)
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        return bytes(data[:place] + data[place : place + 300] * draw.choice([2, 50]) + data[place:])
    for _ in range(draw.choice([1, 3, 30])):
        data[draw.randrange(len(data))] = draw.randrange(256) if kind == 2 else ord(draw.choice('<>/"=&;0a'))
    return bytes(data)


def _change_member(good: Path, path: Path, draw: random.Random) -> None:
    """One member changed, with right sums, so that the fault reaches whoever reads it."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        victim = draw.choice([entry.filename for entry in old.infolist() if entry.file_size])
        for entry in old.namelist():
            data = old.read(entry)
            new.writestr(entry, _changed(data, draw) if entry == victim else data)
