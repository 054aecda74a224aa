"""Scanned pages and pictures are read by tesseract, each page once, or named."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from data_helpers import recipe_of
from pdf_helpers import Page, write_pages
from PIL import Image, ImageDraw, ImageFont

from optimsyn.base.errors import DataError, RecipeError
from optimsyn.data.documents import read_documents
from optimsyn.data.files.folder import page_list
from optimsyn.data.files.formats import convert
from optimsyn.data.files.ocr import Ocr, Tesseract
from optimsyn.machine import doctor
from optimsyn.machine.preflight import validate
from optimsyn.recipe.recipe import Documents
from optimsyn.recipe.sections.data import FileLimits

real = pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program tesseract is not installed")
posix = pytest.mark.skipif(sys.platform == "win32", reason="the fake program is a script for a shell")
LINES = ["The harbour was dredged in 1887.", "Forty barges carried the mud away.", "A stone pier replaced the jetty."]


def documents(path: Path, **more: Any) -> Documents:
    return Documents.model_validate({"source": str(path), **more})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPTIMSYN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ocr"


def picture(lines: list[str], *, mode: str = "L", size: tuple[int, int] = (1275, 1650)) -> Image.Image:
    """A page at 150 dpi with these lines."""
    page = Image.new("L", size, 255)
    font = ImageFont.load_default(size=40)
    for number, line in enumerate(lines):
        ImageDraw.Draw(page).text((120, 150 + 70 * number), line, fill=0, font=font)
    return page.convert(mode)


def scan(path: Path, *pages: list[str]) -> Path:
    """A PDF whose pages are pictures."""
    drawn = [picture(lines) for lines in pages]
    drawn[0].save(path, format="PDF", resolution=150, save_all=True, append_images=drawn[1:])
    return path


def mixed(path: Path) -> Path:
    """Text, a scanned page, a blank one, and text."""
    first, scanned, blank, last = Page(), Page(), Page(), Page()
    first.lines(72, 700, ["The first page is typed and says that mills grind corn."])
    shade = picture(LINES)
    scanned.picture = (shade.width, shade.height, shade.tobytes())
    last.lines(72, 700, ["The last page is typed too and says that locks lift boats."])
    return write_pages(path, [first, scanned, blank, last])


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, reading: str, languages: str = "eng deu") -> Path:
    """A program of the name that answers as tesseract does; returns its log, a line for each page."""
    folder.mkdir(exist_ok=True)
    program, log = folder / "tesseract", folder / "log"
    program.write_text(
        f"""#!/bin/sh
case "$1" in
--version) echo "tesseract 5.9.${{VERSION:-1}}"; exit 0;;
--list-langs) echo 'List of available languages in "/data" (2):'; printf '%s\\n' {languages}; exit 0;;
esac
echo "$@ key=$PLANTED_KEY" >> {log}
{reading}
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return log


@real
def test_a_scan_is_read_in_order_and_only_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan(tmp_path / "scan.pdf", LINES[:2], LINES[2:])
    found = read_documents(documents(tmp_path / "scan.pdf", ocr="eng"))
    assert found.problems == []
    assert [line for line in found.documents[0].text.splitlines() if line] == LINES
    assert len(list(cache.rglob("*.txt"))) == 2

    def again(*_: object) -> str:
        raise AssertionError("a page is read twice")

    monkeypatch.setattr(Tesseract, "read", again)
    assert read_documents(documents(tmp_path / "scan.pdf", ocr=["eng"])).documents == found.documents


@real
@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "L"), ("a.png", "RGBA"), ("a.png", "P"), ("A.JPG", "RGB"), ("a.tiff", "1")]
)
def test_pictures_are_read(tmp_path: Path, name: str, mode: str) -> None:
    picture(LINES, mode=mode).save(tmp_path / name)
    found = read_documents(documents(tmp_path / name, ocr="eng"))
    assert [line for line in found.documents[0].text.splitlines() if line] == LINES


@real
def test_transparent_16_bit_turned_and_many_page_pictures_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    ink = picture(LINES)
    clear = Image.new("RGBA", ink.size, (0, 0, 0, 0))
    clear.putalpha(ink.point(lambda value: 255 - value))
    clear.save(folder / "clear.png")
    deep = ink.convert("I").point(lambda value: value * 257).convert("I;16")
    deep.save(folder / "deep.png")
    turned = ink.convert("RGB").rotate(90, expand=True)
    turned.save(folder / "turned.jpg", exif=_orientation(6))
    picture(LINES[:1]).save(folder / "many.tif", save_all=True, append_images=[picture(LINES[1:])])
    found = read_documents(documents(folder, ocr="eng", on_error="skip"))
    texts = [*(d.text for d in found.documents), *(loss.detail for loss in found.skipped)]
    # They hold the same text, so all but one are repeats.
    assert len(found.documents) == 1 and [line for line in texts[0].splitlines() if line] == LINES
    assert sum("the same text as" in text for text in texts) == 3, texts


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@real
def test_german_is_read_with_its_letters(tmp_path: Path) -> None:
    if "deu" not in Tesseract.on_this_machine().installed:
        pytest.skip("tesseract has no data for German")
    from matplotlib import font_manager

    page = Image.new("L", (1600, 300), 255)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 40)
    ImageDraw.Draw(page).text((80, 100), "Die Größe der Mühle überrascht die Bäcker.", fill=0, font=font)
    page.save(tmp_path / "a.png", dpi=(150, 150))
    found = read_documents(documents(tmp_path / "a.png", ocr="deu"))
    assert found.documents[0].text == "Die Größe der Mühle überrascht die Bäcker."


@real
def test_a_scanned_page_among_others_comes_in_its_place(tmp_path: Path) -> None:
    text = read_documents(documents(mixed(tmp_path / "mixed.pdf"), ocr="eng")).documents[0].text
    places = [text.index(part) for part in ("mills grind corn", *LINES, "locks lift boats")]
    assert places == sorted(places)


def test_without_ocr_scanned_pages_are_named_with_the_cure_and_blank_ones_are_not(tmp_path: Path) -> None:
    found = read_documents(documents(mixed(tmp_path / "mixed.pdf")))
    assert found.problems == []
    assert [loss.id for loss in found.passed] == ["mixed.pdf: page 2"]
    assert found.remarks == [
        "documents: 1 passed over: mixed.pdf: page 2 (scanned, without a text layer: set `documents.ocr: eng` or its "
        "language)"
    ]
    problem = read_documents(documents(scan(tmp_path / "scan.pdf", LINES))).problems[0]
    assert "scan.pdf: no text in it; a scan without text? run OCR on it, with `documents.ocr: eng`" in problem


def test_a_scan_with_a_stamp_is_a_scan_and_a_page_with_a_logo_is_none(tmp_path: Path) -> None:
    stamped = Page(picture=(2, 2, bytes(4)))
    stamped.text(500, 20, "Page 7")
    full = Page(picture=(2, 2, bytes(4)))
    full.lines(72, 700, ["A page with a background picture has text of its own to be read."])
    write_pages(tmp_path / "a.pdf", [stamped, full])
    assert convert(tmp_path / "a.pdf", FileLimits()).pictures == (1,)


def test_page_lists() -> None:
    assert page_list([3]) == "page 3"
    assert page_list([1, 4, 5, 6, 9]) == "pages 1, 4-6, 9"


@posix
def test_a_page_is_read_again_for_other_languages_another_version_or_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = fake(tmp_path / "bin", monkeypatch, "echo A text.")
    monkeypatch.setenv("PLANTED_KEY", "sk-planted")
    path = scan(tmp_path / "scan.pdf", LINES)

    def reads(ocr: str) -> int:
        before = len(log.read_text().splitlines()) if log.exists() else 0
        assert read_documents(documents(path, ocr=ocr)).documents[0].text == "A text."
        return len(log.read_text().splitlines()) - before

    assert [reads("eng"), reads("eng"), reads("deu+eng"), reads("eng+deu"), reads("deu+eng")] == [1, 0, 1, 1, 0]
    program = tmp_path / "bin" / "tesseract"
    program.write_text(program.read_text().replace("5.9", "6.0"))
    assert [reads("eng"), reads("eng")] == [1, 0]
    scan(path, LINES[:1])
    assert reads("eng") == 1
    assert "-l deu+eng" in log.read_text()
    assert "sk-planted" not in log.read_text()


@posix
@pytest.mark.parametrize(
    ("reading", "said"),
    [
        ("exec sleep 60", r"tesseract takes longer than documents\.limits\.seconds = 1; raise that"),
        ("echo 'Error: no memory' >&2; exit 3", r"fails with exit status 3 \(Error: no memory\); scan the page again"),
        ("kill -9 $$", r"fails with exit status -9 \(it says nothing\)"),
        (
            "echo \"Failed loading language 'deu'\" >&2; echo Half.",
            r"cannot load its data for deu; run `sudo \w+ .*deu`",
        ),
    ],
)
def test_a_failure_names_file_page_and_cure(
    reading: str, said: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", monkeypatch, reading)
    config = documents(mixed(tmp_path / "mixed.pdf"), ocr="eng+deu")
    of = Ocr.of
    # Only the program gets a short time, the converter keeps its own.
    seconds = 1 if "sleep" in reading else 300
    monkeypatch.setattr(Ocr, "of", lambda config: dataclasses.replace(of(config), seconds=seconds))
    monkeypatch.setattr("platform.system", lambda: "Linux")
    [problem] = read_documents(config).problems
    assert re.search(rf"mixed\.pdf: page 2: .*{said}", problem), problem
    assert not list(cache.rglob("*.txt"))


@posix
def test_a_missing_program_or_language_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.md").write_text("Mills grind corn. " * 20)
    fake(tmp_path / "bin", monkeypatch, "exit 1")
    wanted = {"source": str(texts), "ocr": "deu+kor+chi_sim"}
    problems = validate(recipe_of(tmp_path, documents=wanted), offline=True, here=False).problems
    [problem] = [problem for problem in problems if "ocr" in problem]
    assert problem.startswith(
        "documents.ocr: tesseract 5.9.1 has no data for kor, chi_sim (it has eng, deu); run `sudo"
    )
    assert "chi" in problem.partition("run `")[2]
    assert doctor.ocr_programs().detail == "tesseract 5.9.1 with eng, deu"
    (tmp_path / "bin" / "tesseract").write_text("#!/bin/sh\necho other\n")
    with pytest.raises(DataError, match=r"documents\.ocr: .*tesseract is not tesseract, or broken: it says 'other"):
        read_documents(documents(texts, ocr="deu"))
    monkeypatch.setenv("PATH", str(tmp_path))
    problems = validate(recipe_of(tmp_path, documents=wanted), offline=True, here=False).problems
    assert any(
        problem.startswith(
            "documents.ocr: the program tesseract is not installed; run `sudo apt install tesseract-ocr`"
        )
        for problem in problems
    )
    assert doctor.ocr_programs().status == "note"
    assert "not installed; run" in doctor.ocr_programs().detail
    # Without the field nothing needs it.
    assert Ocr.of(documents(texts)) is None


@posix
def test_what_gives_no_text_or_is_no_picture_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path / "bin", monkeypatch, "exit 0")
    texts = tmp_path / "texts"
    texts.mkdir()
    picture([]).save(texts / "blank.png")
    (texts / "web.jpg").write_text("<html>Not found</html>")
    picture(LINES).save(texts / "torn.png")
    (texts / "torn.png").write_bytes((texts / "torn.png").read_bytes()[:400])
    said = "\n".join(read_documents(documents(texts, ocr="eng")).problems)
    assert "blank.png: no text in it; OCR with documents.ocr = eng reads none" in said
    assert "web.jpg: is no picture that can be read" in said
    assert "torn.png: page 1: cannot be converted" in said


def test_languages_and_the_fingerprint(tmp_path: Path) -> None:
    assert Documents(source="a", ocr=["deu", "kor", "deu"]).ocr == "deu+kor"  # type: ignore[arg-type]
    assert Documents(source="a", ocr="chi_sim + script/Latin").ocr == "chi_sim+script/Latin"
    for wrong, cure in (
        ("en", "ocr: eng"),
        ("de-DE", "ocr: deu"),
        ("../x", "ocr"),
        ("-l", "ocr"),
        ("", "ocr"),
        (True, "ocr"),
        ([], "ocr"),
    ):
        with pytest.raises(RecipeError, match=cure):
            Documents(source="a", ocr=wrong)  # type: ignore[arg-type]
    plain = recipe_of(tmp_path, documents={"source": "a"})
    assert recipe_of(tmp_path, documents={"source": "a", "ocr": None}).fingerprint == plain.fingerprint
    assert recipe_of(tmp_path, documents={"source": "a", "ocr": "eng"}).fingerprint != plain.fingerprint
