"""PDF pages drawn operator by operator: text at places, rules, pictures."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

WIDTH, HEIGHT = 612, 792


@dataclass
class Page:
    """A page to draw on; y grows upwards from the lower left corner.

    Attributes:
        rotate: How a viewer turns it, in degrees clockwise.
        sideways: Draw everything turned by 90 degrees counter-clockwise.
    """

    rotate: int = 0
    sideways: bool = False
    parts: list[str] = field(default_factory=list)
    picture: tuple[int, int, bytes] | None = None

    def text(self, x: float, y: float, text: str, size: float = 10) -> None:
        escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        self.parts.append(f"BT /F1 {size} Tf {x:g} {y:g} Td ({escaped}) Tj ET")

    def lines(self, x: float, y: float, lines: Iterable[str], size: float = 10) -> None:
        for number, line in enumerate(lines):
            self.text(x, y - number * size * 1.2, line, size)

    def rows(self, xs: Sequence[float], y: float, rows: Sequence[Sequence[str]], step: float = 16) -> None:
        for number, row in enumerate(rows):
            for x, cell in zip(xs, row, strict=True):
                if cell:
                    self.text(x, y - number * step, cell)

    def grid(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        for x in xs:
            self.parts.append(f"{x:g} {min(ys):g} m {x:g} {max(ys):g} l S")
        for y in ys:
            self.parts.append(f"{min(xs):g} {y:g} m {max(xs):g} {y:g} l S")

    @property
    def stream(self) -> str:
        turned = f"0 1 -1 0 {HEIGHT if self.rotate in (90, 270) else WIDTH:g} 0 cm\n" if self.sideways else ""
        drawn = f"q {WIDTH} 0 0 {HEIGHT} 0 0 cm /I1 Do Q\n" if self.picture else ""
        return turned + drawn + "\n".join(self.parts)


def write_pages(path: Path, pages: Sequence[Page]) -> Path:
    """Writes a PDF of these pages."""
    objects: list[bytes] = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    kids = []
    for page in pages:
        stream = page.stream.encode("cp1252")
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        content, pictures = len(objects), ""
        if page.picture is not None:
            width, height, grey = page.picture
            packed = zlib.compress(grey)
            head = (
                f"<< /Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceGray "
                f"/BitsPerComponent 8 /Filter /FlateDecode /Length {len(packed)} >>\nstream\n"
            )
            objects.append(head.encode() + packed + b"\nendstream")
            pictures = f"/XObject << /I1 {len(objects)} 0 R >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {WIDTH} {HEIGHT}] /Rotate {page.rotate} /Contents "
            f"{content} 0 R /Resources << /Font << /F1 3 0 R >> {pictures} >> >>".encode()
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    content_bytes, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(content_bytes))
        content_bytes += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(content_bytes)
    content_bytes += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    content_bytes += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    content_bytes += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    path.write_bytes(content_bytes)
    return path
