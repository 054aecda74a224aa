"""Decoding text files in any encoding."""

from __future__ import annotations

import codecs
import re
from itertools import groupby

from optimsyn.base.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Bytes of encodings that look like valid UTF-8 because all bytes are below 128.
_SEVEN_BITS = re.compile(rb"[\0\x1b]")
# The encodings in use; a detector that tries a hundred takes a dash for a letter of an old Macintosh.
_COMMON = (
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "koi8-r", "koi8-u"),
    *("iso8859-2", "iso8859-5", "iso8859-7", "cp866", "cp874"),
    *("shift_jis", "cp932", "euc-jp", "gb18030", "big5", "euc_kr", "cp949"),
)
# A more common encoding, used if it reads the same bytes.
_PLAINER = {"cp932": "shift_jis", "cp949": "euc_kr", "gb2312": "gb18030", "gbk": "gb18030", "euc_jis_2004": "euc_jp"}
# Binary kinds of files, whatever their name.
_SIGNATURES = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a zip archive, as .docx, .xlsx and .epub files are"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (.doc, .xls, .ppt) or a locked one"),
    (b"{\\rtf", "an RTF file"),
    (b"\x1f\x8b", "data packed with gzip"),
    (b"BZh", "data packed with bzip2"),
    (b"\xfd7zXZ\0", "data packed with xz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x28\xb5\x2f\xfd", "data packed with zstd"),
    (b"\x89PNG\r\n", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"GIF8", "a picture (GIF)"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"PAR1", "a Parquet file"),
    (b"\x7fELF", "a program"),
)
_LOOKED_AT = 200_000
_FEW_BYTES = 2
_FEW_SHARE = 0.015
_SOME_SHARE = 0.15
_CODECS_THAT_ARE_NONE = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem")


def decode(data: bytes, where: str, encoding: str | None = None, *, settable: bool = False) -> str:
    """The text of a file's bytes: by its byte order mark, else UTF-8, else in `encoding`.

    Valid UTF-8 is read as such even with an `encoding`: in a folder only some files are old, and other text with
    letters beyond ASCII is practically never valid UTF-8 by chance.

    Args:
        data: The whole file.
        where: The file's name for messages.
        encoding: Of files that are not UTF-8, from the recipe.
        settable: The recipe can name an encoding for this file, so the message says how.

    Raises:
        DataError: The bytes are not text in these encodings; names the line and the likely encoding.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(name)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{where}: begins as {name.removesuffix('-sig').upper()} text, but byte {error.start} is none; "
                    "the file is torn or was patched together; save it again as UTF-8"
                ) from None
    kind = next((name for mark, name in _SIGNATURES if data.startswith(mark)), None)
    if kind is not None and not _plain(data):
        raise DataError(f"{where}: is not text but {kind}; give it the right name, or remove it")
    if encoding is not None and _SEVEN_BITS.search(data):
        return _in_given(data, where, encoding)
    wide = _wide(data)
    if wide is not None:
        called = wide.upper().removesuffix("-LE").removesuffix("-BE")
        raise DataError(f"{where}: is {called} text without a byte order mark; {conversion_advice(wide, settable)}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            return _in_given(data, where, encoding)
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"{where}:{line}: byte 0x{data[error.start]:02x} is not UTF-8 text"
        if is_binary(data):
            raise DataError(
                f"{problem}, and the file does not look like text at all; remove it or give it the right ending"
            ) from None
        raise DataError(f"{problem}; {conversion_advice(likely_encoding(data), settable)}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{where}:{line}: holds a NUL byte, so it is not text; remove the file or give it the right ending"
        )
    return text


def text_encoding(name: str) -> str:
    """Checks the name of an encoding and returns it.

    Raises:
        ValueError: Python knows no text encoding of that name.
    """
    try:
        known = codecs.lookup(name).name
        "a".encode(known)
    except (LookupError, UnicodeError, ValueError):
        known = "undefined"
    if known.replace("-", "_") in _CODECS_THAT_ARE_NONE:
        raise ValueError(f"there is no text encoding {name!r}; write one such as cp1252, cp1250, koi8-r, shift_jis")
    return name


def likely_encoding(data: bytes) -> str:
    """The most likely encoding of text that is not UTF-8, by a name that Python and iconv know."""
    data = data[:_LOOKED_AT]
    runs = [sum(1 for _ in run) for high, run in groupby(data, key=lambda byte: byte > 127) if high]
    # Single dashes, quotes and accents say nothing about the language; mostly it is English.
    alone = runs and sum(runs) < 2 * len(runs)
    if alone and (sum(runs) <= _FEW_BYTES or sum(runs) < _FEW_SHARE * len(data)) and _reads(data, "cp1252"):
        return "cp1252"
    from chardet import detect

    if not alone and sum(runs) < _SOME_SHARE * len(data):
        # A few words of another script; the English around them misleads the detector.
        foreign = b" ".join(word for word in data.split() if not word.isascii())
    else:
        foreign = data
    detected = detect(foreign, include_encodings=_COMMON, compat_names=False, empty_input_encoding="cp1252")["encoding"]
    detected = codecs.lookup(detected or "cp1252").name
    plainer = _PLAINER.get(detected, detected)
    return (plainer if _reads(data, plainer) else detected) if _reads(data, detected) else "cp1252"


def is_binary(data: bytes) -> bool:
    """Whether many control characters show that bytes are no text."""
    head = data[:_LOOKED_AT]
    controls = sum(head.count(bytes([byte])) for byte in (*range(9), *range(14, 27), *range(28, 32)))
    return controls > 0.02 * len(head)


def _in_given(data: bytes, where: str, encoding: str) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = data.count(b"\n", 0, start) + 1
        raise DataError(
            f"{where}:{line}: byte 0x{data[start]:02x} is neither UTF-8 nor {encoding} text, as is stated; "
            f"it looks like {likely_encoding(data)}; convert the file to UTF-8 or fix `encoding`"
        ) from None


def conversion_advice(encoding: str, settable: bool) -> str:
    """What to do with text in this encoding; `settable` when the recipe can name the encoding beside the file."""
    name = re.sub(r"^UTF-(16|32)-", r"UTF-\1", encoding.replace("_", "-").upper())
    converted = f"convert the file, e.g. iconv -f {name} -t UTF-8, or save it as UTF-8 in an editor"
    looks = f"it looks like {encoding}"
    return (
        f"{looks}; write `encoding: {encoding}` beside the source's `path`, or {converted}"
        if settable
        else (f"{looks}; {converted}")
    )


def _plain(data: bytes) -> bool:
    """True for text that only begins like another kind of file: `BZh` or `%PDF-` in an article."""
    if _SEVEN_BITS.search(data):
        return False
    return _reads(data[:_LOOKED_AT], "utf-8") and not data.startswith((b"%PDF-", b"{\\rtf"))


def _wide(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without its mark, of a text with some letters of ASCII: bytes of one place are often 0."""
    head = data[:4000]
    if len(head) < 4:
        return None
    for name, zeros, letters in (("utf-32-le", (2, 3), 0), ("utf-32-be", (0, 1), 3)):
        empty = sum(head[place::4].count(0) for place in zeros) >= len(head) // 4 * 1.8
        if empty and head[letters::4].count(0) < 0.02 * len(head) and _reads(data, name):
            return name
    for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros_there, others = head[offset::2].count(0), head[1 - offset :: 2].count(0)
        # Lines end in every script, and their end is a letter of ASCII.
        lines = head.count(b"\n\0" if offset else b"\0\n")
        some = zeros_there > 0.3 * len(head) / 2 or (lines > 1 and zeros_there > 0.05 * len(head) / 2)
        if some and others < 0.02 * len(head) and _reads(data, name):
            return name
    return None


def _reads(data: bytes, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        # The last character may be cut where only the beginning is looked at.
        decoder.decode(data, final=len(data) < _LOOKED_AT)
    except UnicodeError:
        return False
    return True
