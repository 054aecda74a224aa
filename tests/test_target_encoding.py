"""Which encoding a file that is not UTF-8 is in: what the hint says, and that following it reads the text."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from data_helpers import load_documents, text_of
from document_helpers import documents, folder_source

from optimsyn.base.errors import DataError, RecipeError
from optimsyn.base.text_files import conversion_advice, decode, likely_encoding
from optimsyn.data.documents import read_documents
from optimsyn.data.files.rows import read_rows
from optimsyn.recipe.recipe import Source

RUSSIAN = (
    "Приливная мельница в устье реки была построена в 1742 году голландскими инженерами. Её колесо поворачивалось "
    "дважды в день, когда бассейн опорожнялся через шлюз. Владельцы не смогли заплатить за ремонт."
)
GREEK = (
    "Ο παλιρροϊκός μύλος στις εκβολές του ποταμού χτίστηκε το 1742 από Ολλανδούς μηχανικούς. Ο τροχός του γύριζε δύο "
    "φορές την ημέρα, όταν η δεξαμενή άδειαζε από το θυρόφραγμα. Άλλοι δεν μπόρεσαν να πληρώσουν."
)
JAPANESE = (
    "河口の潮力水車は1742年にオランダの技師によって建てられた。貯水池の水が水門から流れ出るとき、水車は一日に二度回った。"
    "嵐で堤防が壊れ、所有者は修理の費用を払うことができなかった。"
)
TEXTS = {
    (
        "cp1252",
        "German",
    ): "Die Mühle an der Flussmündung wurde 1742 von holländischen Ingenieuren gebaut. Ihr Rad drehte "
    "sich zweimal täglich, wenn sich das Becken durch die Schleuse leerte. Größere Schäden gab es 1810.",
    (
        "cp1252",
        "French",
    ): "Le moulin à marée fut construit en 1742 par des ingénieurs néerlandais. Sa roue tournait deux "
    "fois par jour, lorsque le bassin se vidait par l’écluse. Une tempête brisa la digue, où ils étaient endettés.",
    (
        "cp1252",
        "Spanish",
    ): "El molino de marea fue construido en 1742 por ingenieros holandeses. Su rueda giraba dos veces "
    "al día, cuando el depósito se vaciaba por la compuerta. ¿Quién pagó la reparación del año siguiente?",
    (
        "cp1252",
        "Swedish",
    ): "Tidvattenkvarnen vid flodmynningen byggdes 1742 av holländska ingenjörer. Hjulet snurrade två "
    "gånger om dagen när bassängen tömdes genom slussen. Ägarna hade inte råd att betala för lagningen på våren.",
    (
        "cp1250",
        "Polish",
    ): "Młyn pływowy u ujścia rzeki został zbudowany w 1742 roku przez holenderskich inżynierów. Jego "
    "koło obracało się dwa razy dziennie, gdy zbiornik opróżniał się przez śluzę. Właściciele nie mogli zapłacić.",
    ("cp1250", "Czech"): "Přílivový mlýn u ústí řeky postavili v roce 1742 nizozemští inženýři. Jeho kolo se otáčelo "
    "dvakrát denně, když se nádrž vyprazdňovala stavidlem. Majitelé nemohli zaplatit opravy, a mlýn zůstal opuštěný.",
    (
        "cp1250",
        "Hungarian",
    ): "A folyó torkolatánál álló árapálymalmot 1742-ben holland mérnökök építették. Kereke naponta "
    "kétszer fordult meg, amikor a medence a zsilipen át kiürült, és később az őrlőkövek is eltűntek.",
    ("cp1251", "Russian"): RUSSIAN,
    ("koi8-r", "Russian"): RUSSIAN,
    ("cp1253", "Greek"): GREEK,
    ("iso8859-7", "Greek"): GREEK,
    ("cp1254", "Turkish"): "Nehrin ağzındaki gelgit değirmeni 1742 yılında Hollandalı mühendisler tarafından yapıldı. "
    "Çarkı, havuz savaktan boşaldığında günde iki kez dönerdi. Sahipleri onarım için ödeme yapamadı, şimdi müzedir.",
    ("shift_jis", "Japanese"): JAPANESE,
    ("euc_jp", "Japanese"): JAPANESE,
    (
        "gb18030",
        "Chinese",
    ): "河口的潮汐磨坊由荷兰工程师于1742年建造。每当水池的水从闸门排出时，水轮每天转动两次。磨坊的面粉供应"
    "驻军和港口区的大部分居民。一场风暴摧毁了大坝，业主无力支付修理费用。",
    (
        "big5",
        "Chinese",
    ): "河口的潮汐磨坊由荷蘭工程師於1742年建造。每當水池的水從閘門排出時，水輪每天轉動兩次。磨坊的麵粉供應駐軍"
    "和港口區的大部分居民。一場風暴摧毀了大壩，業主無力支付修理費用。",
    (
        "euc_kr",
        "Korean",
    ): "강 하구의 조력 방앗간은 1742년 네덜란드 기술자들이 지었다. 저수지의 물이 수문으로 빠져나갈 때 물레방아는 "
    "하루에 두 번 돌았다. 폭풍이 둑을 무너뜨렸고 주인들은 수리비를 낼 수 없었다.",
}


@pytest.mark.parametrize(("encoding", "language"), TEXTS, ids=lambda value: value)
@pytest.mark.parametrize("share", [1, 0.5])
def test_the_hint_reads_the_text(encoding: str, language: str, share: float) -> None:
    text = TEXTS[encoding, language][: int(len(TEXTS[encoding, language]) * share)]
    assert text.encode(encoding).decode(likely_encoding(text.encode(encoding))) == text


@pytest.mark.parametrize("byte", [b for b in range(0x80, 0x100) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)])
def test_a_single_odd_byte_in_english_is_cp1252(byte: int) -> None:
    odd = bytes([byte])
    for data in (b"pages 5" + odd + b"10", b"The mill " + odd + b" built in 1742.", text_of(300).encode() + odd + b"."):
        assert likely_encoding(data) == "cp1252"


def test_english_with_quotes_and_accents_is_cp1252() -> None:
    words = "The miller’s “naïve” café – 5 °C, ± 3 µm – cost 400 € in Zürich".split()
    for end in range(3, len(words)):
        assert likely_encoding((" ".join(words[:end]) + " and " + text_of(40)).encode("cp1252")) == "cp1252"


def test_a_few_cyrillic_words_in_english_are_cyrillic() -> None:
    data = (text_of(400) + " " + "мельница построена голландскими инженерами" + ".").encode("cp1251")
    assert likely_encoding(data) == "cp1251"


@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_that_says_what_it_is_is_read(name: str) -> None:
    text = "Größe – 河口 😀\n"
    data = text.encode(name)
    assert decode(data, "x") == text
    if name == "utf-16":
        assert decode(codecs.BOM_UTF16_BE + text.encode("utf-16-be"), "x") == text


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark_is_told(name: str) -> None:
    with pytest.raises(DataError, match=f"x: is UTF-16 text without a byte order mark; .*{name}"):
        decode(text_of(30).encode(name), "x")
    assert decode(text_of(30).encode(name), "x", name) == text_of(30)


@pytest.mark.parametrize("name", ["utf-32-le", "utf-32-be"])
def test_utf32_without_its_mark_is_told(name: str) -> None:
    with pytest.raises(DataError, match=f"x: is UTF-32 text without a byte order mark; .*{name}"):
        decode(text_of(30).encode(name), "x")


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", [JAPANESE, RUSSIAN])
def test_utf16_of_other_scripts_without_its_mark_is_told(name: str, text: str) -> None:
    data = "\n".join([text[:40], text[40:80], text[80:], ""]).encode(name)
    with pytest.raises(DataError, match=f"x: is UTF-16 text without a byte order mark; .*{name}"):
        decode(data, "x")


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "CP1252", "SHIFT-JIS", "KOI8-R"])
def test_the_command_that_is_named_exists(encoding: str) -> None:
    import shutil
    import subprocess

    if shutil.which("iconv") is None:
        pytest.skip("no iconv here")
    command = ["iconv", "-f", encoding, "-t", "UTF-8"]
    python_name = encoding.replace("LE", "-le").replace("BE", "-be") if encoding.startswith("UTF") else encoding
    done = subprocess.run(command, input="mill\n".encode(python_name), capture_output=True, check=True)
    assert done.stdout == b"mill\n"
    assert f"iconv -f {encoding} -t UTF-8" in conversion_advice(python_name.lower(), settable=False)


@pytest.mark.parametrize(
    "begin", [b"%PDF-1.7\n", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\x1f\x8b\x08", b"SQLite format 3\0"]
)
@pytest.mark.parametrize("encoding", [None, "cp1252"])
def test_a_file_of_another_kind_is_named(begin: bytes, encoding: str | None) -> None:
    with pytest.raises(DataError, match="x: is not text but .*; give it the right name, or remove it"):
        decode(begin + bytes(range(256)) * 4, "x", encoding)


def test_an_article_that_begins_like_another_kind_is_read() -> None:
    for text in ("BZh is how bzip2 files begin.", "GIF89a is a version.", "PAR1 was a line of golf."):
        assert decode(text.encode(), "x") == text


def test_the_error_names_line_encoding_field_and_command(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"First line.\nPages 5\x9610 of the ledger.\n")
    (tmp_path / "b.txt").write_text(text_of(40))
    with pytest.raises(DataError) as caught:
        load_documents(documents(tmp_path), 0)
    said = str(caught.value)
    assert "a.txt:2: byte 0x96 is not UTF-8 text; it looks like cp1252; write `encoding: cp1252`" in said
    assert "iconv -f CP1252 -t UTF-8" in said
    assert "documents.on_error: skip" in said


def test_the_field_reads_old_files_and_leaves_utf8_ones_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"Pages 5\x9610 of the ledger.")
    (tmp_path / "b.txt").write_text("Die Mühle – still.", encoding="utf-8")
    (tmp_path / "c.html").write_bytes(b"<p>Pages 6\x9611</p>")
    found = load_documents(documents(tmp_path, encoding="cp1252"), 0)
    assert [d.text for d in found] == ["Pages 5–10 of the ledger.", "Die Mühle – still.", "Pages 6–11"]
    (tmp_path / "d.txt").write_bytes(b"\x81 mill")
    problems = read_documents(documents(tmp_path, encoding="cp1252")).problems
    assert len(problems) == 1
    assert "d.txt:1: byte 0x81 is neither UTF-8 nor cp1252 text" in problems[0]


def test_seven_bit_encodings_that_pass_for_utf8_are_read_when_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(JAPANESE.encode("iso2022_jp"))
    assert load_documents(documents(tmp_path, encoding="iso2022_jp"), 0)[0].text == JAPANESE


@pytest.mark.parametrize("name", ["latin-nine", "rot13", "base64", "unicode_escape", "undefined", "idna", ""])
def test_what_is_no_text_encoding_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="there is no text encoding"):
        Source(path="x", encoding=name)


def test_a_web_page_is_read_as_it_declares(tmp_path: Path) -> None:
    page = "<html><head><meta charset='{}'></head><body><p>{}</p></body></html>"
    (tmp_path / "a.html").write_bytes(page.format("iso-8859-1", "“Café” – open").encode("cp1252"))
    (tmp_path / "b.html").write_bytes(page.format("koi8-r", RUSSIAN).encode("koi8-r"))
    (tmp_path / "c.html").write_bytes(page.format("nonsense-9", GREEK).encode("utf-8"))
    assert [d.text for d in load_documents(documents(tmp_path), 0)] == ["“Café” – open", RUSSIAN, GREEK]


def test_a_binary_file_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)
    (tmp_path / "b.txt").write_bytes(b"\x89" + bytes(range(256)) * 4)
    problems = read_documents(documents(tmp_path)).problems
    assert len(problems) == 2
    assert "a.txt: is not text but a picture (PNG)" in problems[0]
    assert "b.txt:1: byte 0x89 is not UTF-8 text, and the file does not look like text" in problems[1]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_rows_of_questions_have_the_same_hint_and_field(tmp_path: Path, suffix: str) -> None:
    content = {
        ".jsonl": '{"question": "Which café?"}',
        ".json": '[{"question": "Which café?"}]',
        ".csv": "id,question\n1,Which café?\n",
    }[suffix]
    path = tmp_path / f"q{suffix}"
    path.write_bytes(content.encode("cp1252"))
    with pytest.raises(DataError, match=r"write `encoding: cp1252` beside the source's `path`"):
        read_rows(folder_source(path))
    assert read_rows(Source(path=str(path), encoding="cp1252"))[0].values["question"] == "Which café?"
    path.write_bytes(codecs.BOM_UTF16_LE + content.encode("utf-16-le"))
    assert read_rows(folder_source(path))[0].values["question"] == "Which café?"


def test_a_nul_byte_is_no_text() -> None:
    with pytest.raises(DataError, match=r"notes.txt:2: holds a NUL byte"):
        decode(b"one\ntwo\0three", "notes.txt")
