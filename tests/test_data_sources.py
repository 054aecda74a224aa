"""Rows and documents out of files of every kind, tidy and messy."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import load_documents, text_of, write_docx, write_lines, write_pdf

from optimsyn.base.errors import DataError
from optimsyn.data.documents import read_documents
from optimsyn.data.files.rows import read_rows, sampled
from optimsyn.recipe.recipe import Documents, Source

TEXT = text_of(60)
OTHER = text_of(60, 50)


def documents(path: Path, **values: Any) -> Documents:
    return Documents(source=Source(path=str(path), **values))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "semicolon.csv", "tsv", "parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, kind: str) -> None:
    rows = [{"id": "a", "text": TEXT, "title": "One"}, {"id": "b", "text": OTHER + ' "quoted", twice', "title": "Two"}]
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        write_lines(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = {"csv": ",", "semicolon.csv": ";", "tsv": "\t"}[kind]
        cells = [[r[c].replace('"', '""') for c in ("id", "text", "title")] for r in rows]
        lines = [mark.join(("id", "text", "title")), *(mark.join(f'"{cell}"' for cell in line) for line in cells)]
        path.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n\r\n,,\r\n".replace(",", mark)).encode())
    found = load_documents(documents(path), 0)
    assert [(d.id, d.text, d.title) for d in found] == [(r["id"], r["text"], r["title"]) for r in rows]


def test_byte_order_mark_blank_lines_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = [json.dumps({"text": "First line.\r\nSecond line.\rThird."}), "", "   ", json.dumps({"text": OTHER})]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = load_documents(documents(path), 0)
    assert [d.id for d in found] == ["d:1", "d:4"]
    assert found[0].text == "First line.\nSecond line.\nThird."


def test_unicode_line_separators_stay_inside_a_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"text": "one\u2028two\u0085three"}])
    assert load_documents(documents(path), 0)[0].text == "one\u2028two\u0085three"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "fine"}\n{"text": "caf\xe9"}\n', r"d\.jsonl:2: byte 0xe9 is not UTF-8 .*iconv"),
        ('{"text": "x"}'.encode("utf-16") + b"x", "begins as UTF-16 text, but byte"),
        ('{"text": "Zwölf Köpfe"}'.encode("utf-16-le"), "UTF-16 text without a byte order mark.*encoding: utf-16-le"),
        (b'{"text": "fine"}\n{"text": \n', r"d\.jsonl:2: not valid JSON"),
        (b'["text"]\n', r"d\.jsonl:1: a row must be a JSON object, this is a list"),
        (b'[{"text": \n"x"}]\n', r"one JSON list; rename it to \.json"),
        (b'{"text": "fine"}\n{"text": "torn', r"d\.jsonl:2: not valid JSON .*fix or remove this line"),
        (b'{"text": "a"}\n{"x": ' + b"[" * 99_999 + b"]" * 99_999 + b"}\n", r"d\.jsonl:2: .*nested too deeply"),
        (b'{"text": "a"}\n{"x": ' + b"9" * 5000 + b"}\n", r"d\.jsonl:2: not valid JSON .*digits"),
        (b"", "there are no rows"),
        (b'{"text": "  "}\n{"text": "some words"}\n', r"d\.jsonl:1: document `text` is empty"),
        (b'{"text": 5}\n{"text": "some words"}\n', r"d\.jsonl:1: document `text` is a number"),
        (b'{"text": "Some  Words"}\n{"text": "some words"}\n', r"d\.jsonl:2: the same text as .*d\.jsonl:1"),
        (b'{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n', r"d\.jsonl:2: id '1' is taken by .*d\.jsonl:1"),
        (b'{"content": "a"}\n{"content": "b"}\n', r"columns: \{text: content\}"),
        (b'{"text": "cut \\ud83d emoji"}\n{"text": "b"}\n', r"d\.jsonl:1: .*surrogate"),
        (b'{"text": ["cut \\ud83d"]}\n{"text": "b"}\n', r"d\.jsonl:1: .*`text` holds half of a surrogate"),
        (b'{"text": "a", "title": "\\ud83d"}\n{"text": "b"}\n', r"d\.jsonl:1: .*`title` holds half of a surrogate"),
        (b'{"text": "a", "id": "\\ud83d"}\n{"text": "b"}\n', r"d\.jsonl:1: .*`id` holds half of a surrogate"),
    ],
)
def test_faults_are_named_with_file_row_and_cure(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_documents(documents(path), 0)


def test_all_faults_are_named_at_once_and_counted_beyond_twenty(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"text": "good"}, *({"text": ""} for _ in range(30))])
    with pytest.raises(DataError) as caught:
        load_documents(documents(path), 0)
    assert str(caught.value).count("is empty") == 20
    assert "and 10 more" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,a,b\n", r"d\.csv:2: 3 cells under 2 headers"),
        ('id,text\n1,"open\n', r"d\.csv:\d: not valid CSV"),
        ("id,id\n1,2\n", "names id twice"),
        ("text\n\0\n", "NUL"),
    ],
)
def test_broken_csv_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_documents(documents(tmp_path / "d.csv"), 0)


@pytest.mark.parametrize(
    "lines",
    [
        ['"id, number";text', '7;"{}"'],
        ['"a, b, and c";id;text', '1;7;"{}"'],
        ["sep=;", "id;text", '7;"{}"'],
        ["sep=,", "id,text", '7,"{}"'],
        ["id|text", '7|"{}"'],
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_separator_of_a_csv_is_found(tmp_path: Path, lines: list[str], end: str) -> None:
    (tmp_path / "d.csv").write_bytes((end.join(lines).format(TEXT) + end).encode())
    rows = read_rows(Source(path=str(tmp_path / "d.csv")))
    assert [row.values["text"] for row in rows] == [TEXT]
    assert "7" in rows[0].values.values()


def test_what_cannot_be_read_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"

    def fault(table: pa.Table) -> str:
        pq.write_table(table, path)
        with pytest.raises(DataError) as caught:
            load_documents(documents(path), 0)
        return str(caught.value)

    latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9 " + TEXT.encode()]).buffers())
    assert "column `text` holds a value that cannot be read" in fault(pa.table({"text": latin}))
    far = pa.array([2**62], pa.timestamp("us"))
    assert "column `when` holds a value" in fault(pa.table({"text": [TEXT], "when": far}))
    twice = pa.Table.from_arrays([pa.array([TEXT]), pa.array(["x"])], names=["text", "text"])
    assert "more than one column `text`; rename or drop" in fault(twice)


def test_a_csv_cell_may_hold_a_whole_book(tmp_path: Path) -> None:
    book = text_of(40_000)
    (tmp_path / "d.csv").write_text(f'text\n"{book}"\n')
    assert load_documents(documents(tmp_path / "d.csv"), 0)[0].text == book


def test_missing_file_suggests_the_near_one(tmp_path: Path) -> None:
    write_lines(tmp_path / "documents.jsonl", [{"text": TEXT}])
    with pytest.raises(DataError, match=r"Did you mean .*documents\.jsonl"):
        load_documents(documents(tmp_path / "document.jsonl"), 0)
    (tmp_path / "d.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cannot read \.xlsx as rows; .* export a sheet as \.csv"):
        read_rows(Source(path=str(tmp_path / "d.xlsx")))
    (tmp_path / "d.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load_documents(documents(tmp_path / "d.parquet"), 0)
    with pytest.raises(DataError, match="did you mean embedded:quickstart"):
        load_documents(Documents(source=Source(path="embedded:quikstart")), 0)


def test_columns_reach_into_nested_values_and_take_literals(tmp_path: Path) -> None:
    nested = {
        "key": 7,
        "body": {"parts": ["One.", "Two."]},
        "table": {"rows": [["", "2019"], ["Sales", "4"]]},
        "t": float("nan"),
    }
    path = write_lines(tmp_path / "d.jsonl", [nested])
    columns = {"id": "key", "text": "body.parts,table.rows", "license": "=MIT", "title": "t"}
    found = load_documents(documents(path, columns=columns), 0)[0]
    assert found.id == "7"
    assert found.text == "One.\n\nTwo.\n\n|  | 2019 |\n| Sales | 4 |"
    assert (found.license, found.title, found.group) == ("MIT", "", "7")
    with pytest.raises(DataError, match=r"columns\.text: there is no column `bodi`; did you mean `body`"):
        load_documents(documents(path, columns={"text": "bodi"}), 0)


def test_where_keeps_matching_rows_and_says_what_there_is(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "n": i % 2, "use": i < 3, "lang": {"code": "en"}} for i in range(6)]
    path = write_lines(tmp_path / "d.jsonl", rows)
    assert len(read_rows(Source(path=str(path), where={"n": "1", "use": "true", "lang.code": "en"}))) == 1
    with pytest.raises(DataError, match=r"no row has n = '2'; values there: \{'n': \['0', '1'\]\}"):
        read_rows(Source(path=str(path), where={"n": "2"}))
    with pytest.raises(DataError, match=r"where\.langs"):
        read_rows(Source(path=str(path), where={"langs": "en"}))


def test_limit_is_a_seeded_sample_in_order(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"id": str(i), "text": f"text {i}"} for i in range(50)])
    first = [int(d.id) for d in load_documents(documents(path, limit=10), 1)]
    assert first == [int(d.id) for d in load_documents(documents(path, limit=10), 1)]
    assert first != [int(d.id) for d in load_documents(documents(path, limit=10), 2)]
    assert first == sorted(first)
    assert len(load_documents(documents(path, limit=10), 1, everything=True)) == 50
    assert sampled([1, 2], 5, 0) == [1, 2]


def test_folder_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.md").write_text("# Tidal mills\n\n" + TEXT)
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + OTHER.replace(". ", ".\r\n").encode())
    (tmp_path / "c.html").write_text(
        "<html><body><h1>Dams</h1><script>no()</script><p>A dam holds water.</p></body></html>"
    )
    write_docx(tmp_path / "sub" / "d.docx", ["A sluice lets the water out.", "It is opened by hand."])
    write_pdf(tmp_path / "sub" / "e.pdf", ["The basin fills with the tide.", "Twice a day it empties."])
    (tmp_path / "f.doc").write_bytes(b"old")
    (tmp_path / ".hidden.md").write_text("no")
    found = read_documents(documents(tmp_path))
    assert found.problems == []
    by_id = {d.id: d for d in found.documents}
    assert list(by_id) == ["a.md", "b.txt", "c.html", "sub/d.docx", "sub/e.pdf"]
    assert by_id["a.md"].title == "Tidal mills"
    assert "\r" not in by_id["b.txt"].text
    assert by_id["c.html"].title == "Dams"
    assert "no()" not in by_id["c.html"].text
    assert "It is opened by hand." in by_id["sub/d.docx"].text
    assert "The basin fills with the tide." in by_id["sub/e.pdf"].text
    assert [(loss.id, loss.reason) for loss in found.losses] == [("f.doc", ".doc: save it as .docx")]


def test_faults_in_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Das Kölner Mühlrad steht still und niemand dreht es.".encode("latin-1"))
    (tmp_path / "b.md").write_text(" \n")
    (tmp_path / "c.docx").write_bytes(b"PK\x03\x04 torn in the middle")
    write_pdf(tmp_path / "torn.pdf", ["Some text."])
    (tmp_path / "torn.pdf").write_bytes((tmp_path / "torn.pdf").read_bytes()[:300])
    (tmp_path / "web.pdf").write_text("<html>Not found</html>")
    (tmp_path / "d.md").write_text(TEXT)
    (tmp_path / "e.md").write_text(TEXT.upper())
    write_pdf(tmp_path / "scan.pdf", [])
    problems = "\n".join(read_documents(documents(tmp_path)).problems)
    assert "a.txt:1: byte 0xf6 is not UTF-8" in problems
    assert "b.md: no text in it" in problems
    assert "c.docx: is not a complete .docx file" in problems
    assert "torn.pdf: cannot be converted" in problems
    assert "web.pdf: is not a PDF file" in problems
    assert "e.md: the same text as" in problems
    assert "scan.pdf: no text in it; a scan without text?" in problems


def test_an_archive_is_no_word_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("notes.txt", TEXT)
    (tmp_path / "b.xhtml").write_text(f"<html><body><p>{TEXT}</p></body></html>")
    found = read_documents(documents(tmp_path))
    assert [document.id for document in found.documents] == ["b.xhtml"]
    assert len(found.problems) == 1
    assert "a.docx: is an archive but no .docx file" in found.problems[0]


def test_a_file_name_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for name in (b"caf\xe9.md", b"caf\xe9.doc"):
        try:
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text(TEXT)
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
    found = read_documents(documents(tmp_path))
    assert found.documents == []
    assert [p.partition(": ")[2] for p in found.problems] == [
        "the file's name is not UTF-8 and cannot be an id; rename the file"
    ]
    assert [loss.id.encode() for loss in found.losses] == ["caf\ufffd.doc".encode()]


def test_a_folder_of_rows_points_at_the_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"text": TEXT}])
    with pytest.raises(DataError, match=r"Name the file itself: .*rows\.jsonl"):
        load_documents(documents(tmp_path), 0)


def test_quickstart_documents_come_with_the_package() -> None:
    assert len(load_documents(Documents(source=Source(path="embedded:quickstart")), 0)) >= 40
