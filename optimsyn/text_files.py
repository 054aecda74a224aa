"""Text files as people save them."""

from __future__ import annotations

from optimsyn.errors import DataError


def decode(data: bytes, where: str) -> str:
    """UTF-8 text of a file's bytes, with or without byte order mark.

    Raises:
        DataError: The bytes are not UTF-8; names the line and, where it can be told, the likely encoding.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{where}: is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{where}:{line}: byte 0x{data[error.start]:02x} is not UTF-8 text; convert the file, e.g. "
            f"iconv -f {_likely_encoding(data)} -t UTF-8"
        ) from None


def _likely_encoding(data: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(data[:200_000]).best()
    return best.encoding.upper().replace("_", "-") if best is not None else "WINDOWS-1252"
