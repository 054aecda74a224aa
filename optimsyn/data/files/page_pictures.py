"""Draws scanned pages and pictures for OCR; runs in the converter's child."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from optimsyn.base.errors import DataError

DPI = 300
# An A2 page at 300 dpi; larger ones are drawn more coarsely.
_MOST_PIXELS = 40_000_000
_KINDS = ("PNG", "JPEG", "TIFF")


def picture_pages(data: bytes, most: int) -> int:
    """How many pages a picture file has.

    Raises:
        DataError: It is no picture of its kind, or has too many pages.
    """
    with _opened(io.BytesIO(data)) as picture:
        count = int(getattr(picture, "n_frames", 1))
    if count > most:
        raise DataError(f"has more than {most} pages, documents.limits.pages; split it, or raise that")
    return count


def draw(path: Path, page: int, into: Path) -> None:
    """Writes one page of a PDF or picture as PNG; pages count from 1."""
    if path.suffix.lower() != ".pdf":
        from PIL import ImageOps

        with _opened(path) as picture:
            picture.seek(page - 1)
            dpi = float(picture.info.get("dpi", (0, 0))[0])
            upright = ImageOps.exif_transpose(picture)
            # Without a resolution, or a senseless one of a camera or screen, tesseract estimates it.
            _save(_on_white(upright), into, dpi if dpi >= 100 else None)
        return
    import pypdfium2

    pdf = pypdfium2.PdfDocument(path)
    try:
        sheet = pdf[page - 1]
        scale = min(DPI / 72, math.sqrt(_MOST_PIXELS / max(sheet.get_width() * sheet.get_height(), 1)))
        _save(sheet.render(scale=scale, grayscale=True).to_pil(), into, scale * 72)
    finally:
        pdf.close()


def _opened(source: Any) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(source, formats=_KINDS)
    except UnidentifiedImageError:
        raise DataError("is no picture that can be read (PNG, JPEG, TIFF); save it again or remove it") from None
    except Image.DecompressionBombError:
        raise DataError("has too many pixels to be a scan of pages; split it or save it smaller") from None


def _on_white(picture: Any) -> Any:
    """The picture in shades of grey; what is transparent is paper."""
    from PIL import Image

    if picture.has_transparency_data:
        clear = picture.convert("RGBA")
        paper = Image.new("RGBA", clear.size, "white")
        paper.alpha_composite(clear)
        picture = paper
    # Pillow cuts off the bits beyond eight.
    if picture.mode.startswith("I"):
        return picture.convert("I").point(lambda value: value / 256).convert("L")
    return picture.convert("L")


def _save(picture: Any, into: Path, dpi: float | None) -> None:
    pixels = picture.width * picture.height
    if pixels > _MOST_PIXELS:
        smaller = math.sqrt(_MOST_PIXELS / pixels)
        picture = picture.resize((max(int(picture.width * smaller), 1), max(int(picture.height * smaller), 1)))
        dpi = dpi and dpi * smaller
    picture.save(into, format="PNG", compress_level=1, **({"dpi": (dpi, dpi)} if dpi else {}))
