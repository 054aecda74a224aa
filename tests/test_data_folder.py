"""A folder as people have it: every kind of file, faults that stop or are skipped, links, pipes, many files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from data_helpers import load_documents, recipe_of, text_of, write_docx, write_lines, write_pdf
from document_helpers import SENTENCE, WRITERS, documents, write_eml, write_epub, write_odt, write_pptx, write_rtf

from optimsyn.base.errors import DataError
from optimsyn.base.files import iter_json
from optimsyn.data.documents import read_documents
from optimsyn.data.files import kinds
from optimsyn.machine.preflight import validate
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.stages import prepare

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes as POSIX has them")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_is_read_alone_and_in_a_folder(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"the_mill{suffix}"
    WRITERS[suffix](file)
    alone = load_documents(documents(file), 0)
    assert [d.id for d in alone] == [file.name]
    assert SENTENCE in " ".join(alone[0].text.split())
    assert load_documents(documents(tmp_path), 0) == alone


def test_what_the_kinds_say(tmp_path: Path) -> None:
    WRITERS[".xlsx"](tmp_path / "a.xlsx")
    write_pptx(tmp_path / "a.pptx", "Dams", "A dam holds water.")
    write_odt(tmp_path / "a.odt", "Sluices", "A sluice lets it out.")
    write_rtf(tmp_path / "a.rtf", r"The caf\'e9 \endash  open \u-10179?\u-8704?.\par Next line")
    write_eml(tmp_path / "a.eml", "Das Rad steht still.", attached="plan.pdf")
    found = read_documents(documents(tmp_path))
    texts = {d.id: d.text for d in found.documents}
    assert texts["a.xlsx"] == f"## Sheet\n\n| year | note |\n| --- | --- |\n| 1742 | {SENTENCE} |"
    assert texts["a.pptx"] == "# Dams\nA dam holds water."
    assert texts["a.odt"] == "# Sluices\n\nA sluice lets it out."
    assert texts["a.rtf"] == "The café – open 😀.\nNext line"
    assert texts["a.eml"].startswith("# Die Mühle\nFrom: miller@example.org\nDate: Mon, 01 Jan 2024")
    assert texts["a.eml"].rstrip().endswith("Das Rad steht still.")
    assert [(loss.id, loss.reason) for loss in found.passed] == [("a.eml: plan.pdf", "an attachment")]


def test_what_is_passed_over_is_named_with_its_number_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.md").write_text(text_of(100))
    for name in ("one.xlsx", "two.xlsx", "three.rtf", "old.doc", "photo.png", "rows.csv", "odd.zzz", "none"):
        (texts / name).write_bytes(b"x")
    missing = ("openpyxl", "striprtf")
    real = kinds.importlib.util.find_spec
    monkeypatch.setattr(kinds.importlib.util, "find_spec", lambda name: None if name in missing else real(name))
    found = validate(recipe_of(tmp_path, documents={"source": str(texts)}), offline=True)
    notes = "\n".join(found.warnings)
    assert "2 passed over: one.xlsx, two.xlsx (.xlsx: read with the extra: pip install 'optimsyn[xlsx]')" in notes
    assert "1 passed over: three.rtf (.rtf: read with the extra: pip install 'optimsyn[rtf]')" in notes
    assert "old.doc (.doc: save it as .docx)" in notes
    assert "photo.png" in notes and "rows.csv" in notes
    assert (
        "1 passed over: none (no suffix: if it is text, rename it to .txt or .md, or name `text_suffixes: [''" in notes
    )
    assert (
        "1 passed over: odd.zzz (.zzz: if it is text, rename it to .txt or .md, or name `text_suffixes: ['.zzz'"
        in notes
    )
    with pytest.raises(DataError, match=r"one\.xlsx: .*pip install 'optimsyn\[xlsx\]'"):
        load_documents(documents(texts / "one.xlsx"), 0)
    with pytest.raises(DataError, match=r"photo\.png: .*a picture; run OCR"):
        load_documents(documents(texts / "photo.png"), 0)
    (texts / "a.md").unlink()
    with pytest.raises(DataError, match=r"Files there need an extra: pip install 'optimsyn\[rtf,xlsx\]'"):
        load_documents(documents(texts), 0)


def test_files_of_unknown_endings_are_text_where_the_recipe_says_so(tmp_path: Path) -> None:
    for number, name in enumerate(("README", "LICENSE", "server.LOG", "a.md", "odd.zzz")):
        (tmp_path / name).write_text(f"# a comment\n{text_of(40, 30 * number)}")
    assert [d.id for d in load_documents(documents(tmp_path), 0)] == ["a.md"]
    read = load_documents(documents(tmp_path, text_suffixes=["", ".log"]), 0)
    assert [d.id for d in read] == ["LICENSE", "README", "a.md", "server.LOG"]
    assert [d.title for d in read] == ["LICENSE", "README", "a comment", "server"]
    # A file that is named itself is meant; what its name does not say, its content does.
    for name in ("README", "odd.zzz"):
        assert [d.id for d in load_documents(documents(tmp_path / name), 0)] == [name]
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 9)
    with pytest.raises(DataError, match="binary:2: .*does not look like text at all"):
        load_documents(documents(tmp_path / "binary"), 0)
    (tmp_path / "a.md").unlink()
    with pytest.raises(DataError, match=r"holds no document file .* 3 × no suffix: if it is text, rename it"):
        load_documents(documents(tmp_path), 0)


@pytest.mark.parametrize("ending", ["log", ".", ".tar.gz"])
def test_an_ending_that_is_none_is_refused(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ValueError, match="is not an ending of a file's name"):
        documents(tmp_path, text_suffixes=[ending])


def test_what_the_recipe_does_not_say_leaves_its_fingerprint(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    assert changed(recipe, {"documents.source.text_suffixes": []}).fingerprint == recipe.fingerprint
    assert changed(recipe, {"documents.source.text_suffixes": [""]}).fingerprint != recipe.fingerprint


LEFT_BEHIND = (
    *("~$report.docx", ".~lock.report.odt#", ".#notes.md", ".notes.md.swp", "drawing.dwl"),
    *("notes.md~", "#notes.md#", "notes.md.bak", "notes.orig", "~WRL0001.tmp", "big.pdf.crdownload", "auto.asd"),
    *(".DS_Store", "._report.docx", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "Icon\r", ".directory"),
)


def test_what_programs_leave_behind_is_counted_and_no_fault(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "report.docx.md").write_text(text_of(60))
    (texts / "bak.txt").write_text(text_of(60, 50))
    for name in LEFT_BEHIND:
        (texts / name).write_bytes(b"\0\1")
    for name in ("__MACOSX", "@eaDir", "letters.old"):
        (texts / name).mkdir()
        (texts / name / "a.txt").write_text(text_of(60, 100))
    (texts / ".git").mkdir()
    found = read_documents(documents(texts))
    assert found.problems == []
    # A folder may be called anything.
    assert [d.id for d in found.documents] == ["bak.txt", "letters.old/a.txt", "report.docx.md"]
    reasons = {loss.id: loss.reason for loss in found.passed}
    assert len(reasons) == len(LEFT_BEHIND) + 3
    assert "hidden" in reasons.pop(".git")
    assert len(set(reasons.values())) == 1
    assert found.losses == []
    (line,) = (line for line in found.remarks if "locks, backups and the like" in line)
    assert line.startswith(f"documents: {len(LEFT_BEHIND) + 2} passed over: ")
    with pytest.raises(DataError, match="is a lock of an open file; name the file itself"):
        load_documents(documents(texts / "~$report.docx"), 0)


def faulty(folder: Path) -> int:
    """A folder with two good files and one of every fault; the number of faults."""
    folder.mkdir()
    (folder / "good.md").write_text(text_of(100))
    (folder / "fine.txt").write_text(text_of(100, 50))
    (folder / "old.txt").write_bytes(b"Pages 5\x9610 of the ledger.")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "empty.pdf").write_bytes(b"")
    write_pdf(folder / "scan.pdf", [])
    write_pdf(folder / "torn.pdf", ["Some text."])
    (folder / "torn.pdf").write_bytes((folder / "torn.pdf").read_bytes()[:300])
    write_docx(folder / "torn.docx", ["Some text."])
    (folder / "torn.docx").write_bytes((folder / "torn.docx").read_bytes()[:400])
    (folder / "locked.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    write_epub(folder / "blank.epub", "")
    (folder / "torn.rtf").write_bytes(b"{\\rtf1 {\\b The mill {\\i was")
    (folder / "web.pdf").write_text("<html>Not found</html>")
    (folder / "twin.md").write_text(text_of(100).upper())
    return 11


def test_stop_names_every_fault_with_its_cure(tmp_path: Path) -> None:
    count = faulty(tmp_path / "texts")
    problems = read_documents(documents(tmp_path / "texts")).problems
    assert len(problems) == count
    said = "\n".join(problems)
    for part in (
        "old.txt:1: byte 0x96 is not UTF-8 text; it looks like cp1252",
        "empty.txt: no text in it; fill it or remove it",
        "empty.pdf: no text in it; fill it",
        "scan.pdf: no text in it; a scan without text? run OCR",
        "torn.docx: is not a complete .docx file (cut off or damaged); save it again",
        "locked.docx: is locked by a password",
        "blank.epub: no text in it",
        "torn.rtf: is a damaged RTF file",
        "web.pdf: is not a PDF file",
        "twin.md: the same text as",
    ):
        assert part in said
    assert any("torn.pdf: " in problem and "save it again" in problem for problem in problems)
    with pytest.raises(DataError, match=r"documents\.on_error: skip"):
        load_documents(documents(tmp_path / "texts"), 0)


def test_skip_goes_on_and_counts_and_names_what_is_missing(tmp_path: Path) -> None:
    count = faulty(tmp_path / "texts")
    found = read_documents(documents(tmp_path / "texts", on_error="skip"))
    assert found.problems == []
    assert sorted(d.id for d in found.documents) == ["fine.txt", "good.md"]
    assert len(found.skipped) == count
    assert {loss.id: loss.detail for loss in found.skipped}["empty.txt"].endswith(
        "empty.txt: no text in it; fill it or remove it"
    )
    recipe = recipe_of(tmp_path, documents={"source": str(tmp_path / "texts"), "on_error": "skip"})
    checked = validate(recipe, offline=True, here=False)
    assert not [problem for problem in checked.problems if "documents" in problem]
    assert any(
        f"{count} of {count + 2} are skipped" in note and "old.txt:1: byte 0x96" in note for note in checked.warnings
    )


def test_a_run_where_everything_is_skipped_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x96")
    (tmp_path / "b.md").write_text(" ")
    with pytest.raises(DataError, match=r"(?s)all 2 documents would be skipped:.*a\.txt:1: byte 0x96.*b\.md: no text"):
        load_documents(documents(tmp_path, on_error="skip"), 0)


def test_torn_empty_and_repeated_rows_are_skipped_too(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"id": "a", "text": "One."}, {"id": "b", "text": " "}, {"text": "ONE."}])
    path.write_text(path.read_text() + '{"text": "torn\n[1]\n{"id": "a", "text": "Two."}\n')
    found = read_documents(documents(path, on_error="skip"))
    assert [d.id for d in found.documents] == ["a"]
    assert sorted(loss.reason for loss in found.skipped) == [
        "skipped: `text` is empty",
        "skipped: id is taken",
        "skipped: not valid JSON",
        "skipped: not valid JSON",
        "skipped: the text of another",
    ]
    with pytest.raises(DataError, match=r"d\.jsonl:4: not valid JSON"):
        load_documents(documents(path), 0)


def test_prepare_names_and_counts_what_was_skipped(recipe: Recipe, tmp_path: Path) -> None:
    count = faulty(tmp_path / "texts")
    wanted = {"documents.source": {"path": str(tmp_path / "texts")}, "documents.on_error": "skip"}
    run = Run.open(changed(recipe, wanted), tmp_path / "runs")
    result = prepare.run(run)
    assert result.skipped == count
    row = next(row for row in result.rows if row[0] == "documents skipped")
    assert row[1] == count
    assert "empty.txt (no text in it)" in row[2]
    lost = {row["id"]: row["detail"] for row in iter_json(run.path("prepare", "lost.jsonl"))}
    assert "run OCR" in lost["scan.pdf"]


@posix
def test_a_link_out_of_the_folder_is_refused_by_name_and_followed_when_asked(tmp_path: Path) -> None:
    texts, outside = tmp_path / "texts", tmp_path / "outside"
    texts.mkdir()
    outside.mkdir()
    (texts / "a.md").write_text(text_of(60))
    (outside / "secret.txt").write_text(text_of(60, 50))
    (outside / "more.txt").write_text(text_of(60, 90))
    (texts / "to_file.txt").symlink_to(outside / "secret.txt")
    (texts / "to_folder").symlink_to(outside)
    (texts / "up.txt").symlink_to("../outside/more.txt")
    found = read_documents(documents(texts))
    assert [d.id for d in found.documents] == ["a.md"]
    assert [problem.partition(":")[0].rpartition("/")[2] for problem in found.problems] == [
        "to_file.txt",
        "to_folder",
        "up.txt",
    ]
    assert all("is a link out of the folder, to " in p and "follow_links: true" in p for p in found.problems)
    skipped = read_documents(documents(texts, on_error="skip"))
    assert [d.id for d in skipped.documents] == ["a.md"]
    assert len(skipped.skipped) == 3
    followed = read_documents(documents(texts, follow_links=True))
    assert followed.problems == []
    assert {d.text for d in followed.documents} == {text_of(60), text_of(60, 50), text_of(60, 90)}


@posix
def test_links_inside_are_read_once_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".store").mkdir()
    (tmp_path / ".store" / "blob").write_text(text_of(60))
    (tmp_path / "sub" / "b.md").write_text(text_of(60, 50))
    (tmp_path / "kept.md").symlink_to(".store/blob")
    (tmp_path / "again.md").symlink_to("sub/b.md")
    (tmp_path / "sub" / "round").symlink_to("..")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "gone.md").symlink_to("nowhere.md")
    (tmp_path / "also").symlink_to("sub")
    found = read_documents(documents(tmp_path))
    assert [d.id for d in found.documents] == ["kept.md", "sub/b.md"]
    assert sorted(loss.id for loss in found.passed) == [".store", "again.md", "also", "sub/round"]
    assert ["gone.md" in found.problems[0], "itself" in found.problems[1]] == [True, True]
    assert len(found.problems) == 2
    assert all("is a link to nothing that can be opened" in problem for problem in found.problems)


@posix
def test_pipes_and_devices_never_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "a.md").write_text(text_of(60))
    found = read_documents(documents(tmp_path, follow_links=True))
    assert [d.id for d in found.documents] == ["a.md"]
    assert [(loss.id, "pipe" in loss.reason) for loss in found.passed] == [("pipe.txt", True), ("zero.txt", True)]
    os.mkfifo(tmp_path / "rows.jsonl")
    for name in ("pipe.txt", "rows.jsonl"):
        with pytest.raises(DataError, match=f"{name}: is not a regular file"):
            load_documents(documents(tmp_path / name), 0)


@posix
def test_what_may_not_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.md").write_text(text_of(60))
    (tmp_path / "b.md").write_text(text_of(60, 50))
    (tmp_path / "shut").mkdir()
    opened, scanned = Path.open, os.scandir

    # As root, who runs tests in containers, permissions forbid nothing.
    def open_but_b(self: Path, *args: str, **named: str) -> object:
        if self.name == "b.md":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **named)

    def scan_but_shut(path: str) -> object:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return scanned(path)

    monkeypatch.setattr(Path, "open", open_but_b)
    monkeypatch.setattr(os, "scandir", scan_but_shut)
    problems = "\n".join(read_documents(documents(tmp_path)).problems)
    assert "shut: the folder cannot be opened (Permission denied)" in problems
    assert "b.md: cannot be opened (Permission denied); fix its permissions" in problems


def test_ten_thousand_files_and_deep_folders(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(60):
        deep = deep / "f"
        deep.mkdir()
    (deep / "last.txt").write_text("The last one.")
    for number in range(10_000):
        (tmp_path / f"{number:05}.txt").write_text(f"Note {number}.")
    found = read_documents(documents(tmp_path))
    assert len(found.documents) == 10_001
    assert found.problems == []
    assert found.documents[0].id == "00000.txt"


def test_a_file_beyond_the_size_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(3_000_000)
    (tmp_path / "b.md").write_text(text_of(60))
    problems = read_documents(documents(tmp_path, file_mb=2)).problems
    assert len(problems) == 1
    assert "a.txt: has 3 MB, more than `file_mb: 2` of its source" in problems[0]


def test_a_small_parquet_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": ["x" * 1_000_000] * 50}), path)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"d\.parquet: has \d+ MB, more than `file_mb: 20`"):
        load_documents(documents(path, file_mb=20), 0)
