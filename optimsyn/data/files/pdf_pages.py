"""The text of a PDF's pages in reading order, with their tables as Markdown; runs in the converter's child.

pdfminer's layout analysis puts running text in order; what stands in a table is taken out before it and put back as one
block. Tables are those that rules enclose (pdfplumber), and lines of short cells with gaps at the same places.
"""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# Gaps and widths are in ems, the height of a line.
_GAP = 1.2
_WIDEST_CELL = 12
_LINE_SPACING = 3.0
_LEAST_ROWS = 3
# Longer cells, in words, are boxes of prose.
_PROSE = 40
_FILLED = 0.5
# Words of a stamp or page number on a scan, the share of the page that the picture covers, and curves of drawn letters.
_STAMP = 8
_COVERED = 0.7
_DRAWN_LETTERS = 30
_WIDE = 0.55
_PARTIAL_NUMBER = re.compile(r"^[ \t]*(\.\d+)[ \t]*\n\s*(?=\S)", re.MULTILINE)


@dataclass(frozen=True)
class _Box:
    """A rectangle, in pdfplumber's coordinates: y grows downwards."""

    x0: float
    top: float
    x1: float
    bottom: float

    def holds(self, x: float, y: float) -> bool:
        return self.x0 <= x <= self.x1 and self.top <= y <= self.bottom

    def overlaps_across(self, other: _Box) -> bool:
        return min(self.x1, other.x1) > max(self.x0, other.x0)

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


@dataclass(frozen=True)
class _Block:
    """A piece of text with its place; a table or a paragraph."""

    box: _Box
    text: str


def pages_of(data: bytes) -> Iterator[tuple[str, bool]]:
    """The text of each page, with line ends, and whether the page is a picture of text, as a scanner makes it."""
    import pdfplumber
    from pdfplumber.utils.exceptions import PdfminerException

    with pdfplumber.open(io.BytesIO(data)) as pdf:
        for page in pdf.pages:
            try:
                upright = _upright(page)
                text = _text_of(upright)
            except PdfminerException as error:
                # It hides that memory was spent.
                raise error.args[0] from None
            yield _PARTIAL_NUMBER.sub(r"\1 ", text), _is_picture(upright, text)
            upright.close()
            page.close()


def _is_picture(page: Any, text: str) -> bool:
    """Whether a page has a picture, or letters drawn as curves, and no text but a stamp or number over a large one."""
    if not text.strip():
        return bool(page.images) or len(page.curves) > _DRAWN_LETTERS
    covered = sum(
        max(min(image["x1"], page.width) - max(image["x0"], 0), 0)
        * max(min(image["bottom"], page.height) - max(image["top"], 0), 0)
        for image in page.images
    )
    return len(text.split()) <= _STAMP and covered >= _COVERED * page.width * page.height


def _upright(page: Any) -> Any:
    """The page turned so that most of its text is upright."""
    from pdfplumber.page import Page

    turns = [_turn(char["matrix"]) for char in page.chars]
    turn = statistics.mode(turns) if turns else 0
    if not turn:
        return page
    page.page_obj.rotate = (page.page_obj.rotate + turn) % 360
    page.page_obj.attrs["Rotate"] = page.page_obj.rotate
    return Page(page.pdf, page.page_obj, page.page_number)


def _turn(matrix: Sequence[float]) -> int:
    """By how many degrees clockwise a character has to be turned to be upright."""
    a, b = matrix[:2]
    if abs(b) > abs(a):
        return 90 if b > 0 else 270
    return 180 if a < 0 and matrix[3] < 0 else 0


def _text_of(page: Any) -> str:
    tables = _ruled(page)
    words = [word for word in page.extract_words() if word["upright"]]
    tables += _unruled([word for word in words if not _inside(tables, word)])
    placed = [(_box_of(page, char), char) for char in _characters(page.layout)]
    running = [(box, char) for box, char in placed if not any(_covers(table.box, box) for table in tables)]
    return "\n".join(f"{block.text.rstrip()}\n" for block in _arranged(page.layout, running, tables))


def _characters(layout: Any) -> list[Any]:
    """The characters of a page; those of embedded drawings only where the page itself has none."""
    from pdfminer.layout import LTChar, LTFigure

    own = [part for part in layout if isinstance(part, LTChar)]
    return own or [char for part in layout if isinstance(part, LTFigure) for char in _characters(part)]


def _box_of(page: Any, part: Any) -> _Box:
    """The place of a part of pdfminer's layout, whose y grows upwards from the corner of the page."""
    left, top = page.mediabox[:2]
    return _Box(left + part.x0, top + page.height - part.y1, left + part.x1, top + page.height - part.y0)


def _covers(table: _Box, box: _Box) -> bool:
    return table.holds((box.x0 + box.x1) / 2, box.middle)


def _inside(tables: Iterable[_Block], word: dict[str, Any]) -> bool:
    box = _Box(word["x0"], word["top"], word["x1"], word["bottom"])
    return any(_covers(table.box, box) for table in tables)


def _arranged(layout: Any, running: list[tuple[_Box, Any]], tables: list[_Block]) -> list[_Block]:
    """Paragraphs and tables in reading order; what is above a table across the page comes before it."""
    for table in sorted(tables, key=lambda table: table.box.top):
        if _is_across(table.box, [box for box, _ in running], [other.box for other in tables if other is not table]):
            others = [other for other in tables if other is not table]
            above = [item for item in running if item[0].middle < table.box.middle]
            below = [item for item in running if item[0].middle >= table.box.middle]
            return [
                *_arranged(layout, above, [other for other in others if other.box.middle < table.box.middle]),
                table,
                *_arranged(layout, below, [other for other in others if other.box.middle >= table.box.middle]),
            ]
    blocks = _paragraphs(layout, running)
    for table in sorted(tables, key=lambda table: table.box.top):
        beside = [(place, block.box) for place, block in enumerate(blocks) if block.box.overlaps_across(table.box)]
        above_it = [place + 1 for place, box in beside if box.middle <= table.box.middle]
        below_it = [place for place, box in beside if box.middle > table.box.middle]
        blocks.insert(max(above_it) if above_it else min(below_it, default=len(blocks)), table)
    return blocks


def _is_across(table: _Box, running: list[_Box], tables: list[_Box]) -> bool:
    """Whether a table takes most of the width of the text and has nothing beside it."""
    around = [*running, *tables]
    if any(table.top < box.middle < table.bottom for box in around):
        return False
    width = max([table.x1, *(box.x1 for box in around)]) - min([table.x0, *(box.x0 for box in around)])
    return table.x1 - table.x0 >= _WIDE * width


def _paragraphs(layout: Any, running: list[tuple[_Box, Any]]) -> list[_Block]:
    from pdfminer.layout import LAParams, LTPage, LTTextBox

    part = LTPage(layout.pageid, layout.bbox, layout.rotate)
    part.extend([char for _, char in running])
    places = {id(char): box for box, char in running}
    part.analyze(LAParams())
    blocks = []
    for box in part:
        if isinstance(box, LTTextBox):
            of_it = [places[id(char)] for line in box for char in line if id(char) in places]
            if of_it:
                blocks.append(_Block(_around(of_it), box.get_text()))
    return blocks


def _around(boxes: Sequence[_Box]) -> _Box:
    return _Box(
        min(box.x0 for box in boxes),
        min(box.top for box in boxes),
        max(box.x1 for box in boxes),
        max(box.bottom for box in boxes),
    )


def _ruled(page: Any) -> list[_Block]:
    """The tables whose cells are enclosed by rules or borders."""
    blocks: list[_Block] = []
    for table in sorted(page.find_tables(), key=lambda table: table.bbox[1]):
        rows = [[" ".join((cell or "").split()) for cell in row] for row in table.extract()]
        rows = [row for row in rows if any(row)]
        cells = [cell for row in rows for cell in row]
        filled = [cell for cell in cells if cell]
        used = [column for column in zip(*rows, strict=True) if any(column)]
        is_table = len(rows) > 1 and len(used) > 1 and len(filled) >= _FILLED * len(cells)
        if is_table and sum(len(cell.split()) for cell in filled) <= _PROSE * len(filled):
            box = _Box(*table.bbox)
            if not any(_covers(block.box, box) for block in blocks):
                blocks.append(_Block(box, markdown_table(list(zip(*used, strict=True)))))
    return blocks


@dataclass
class _Line:
    """The words of a line, joined where no gap is between them."""

    segments: list[tuple[_Box, str]] = field(default_factory=list)

    @property
    def box(self) -> _Box:
        return _around([box for box, _ in self.segments])

    @property
    def em(self) -> float:
        return statistics.median(box.bottom - box.top for box, _ in self.segments)


def _unruled(words: list[dict[str, Any]]) -> list[_Block]:
    """The tables without rules: lines one below the other whose short cells leave the same gaps free."""
    lines = _lines(words)
    blocks: list[_Block] = []
    start = 0
    while start < len(lines):
        end, columns = _aligned(lines, start)
        # A head across several columns would hide them; it stays a line above the table.
        while end - start > _LEAST_ROWS and len((after := _aligned(lines, start + 1))[1]) > len(columns):
            start, (end, columns) = start + 1, after
        rows = lines[start:end]
        if sum(len(line.segments) > 1 for line in rows) >= _LEAST_ROWS and _are_cells(rows, columns):
            text = markdown_table(_cells(rows, columns))
            blocks.append(_Block(_around([line.box for line in rows]), text))
            start = end
        else:
            start += 1
    return blocks


def _lines(words: list[dict[str, Any]]) -> list[_Line]:
    lines: list[list[dict[str, Any]]] = []
    for word in sorted(words, key=lambda word: (word["top"] + word["bottom"]) / 2):
        middle, half = (word["top"] + word["bottom"]) / 2, (word["bottom"] - word["top"]) / 2
        if lines and middle - (lines[-1][0]["top"] + lines[-1][0]["bottom"]) / 2 < half:
            lines[-1].append(word)
        else:
            lines.append([word])
    return [_segmented(sorted(line, key=lambda word: word["x0"])) for line in lines]


def _segmented(words: list[dict[str, Any]]) -> _Line:
    line = _Line()
    for word in words:
        box = _Box(word["x0"], word["top"], word["x1"], word["bottom"])
        if line.segments and box.x0 - line.segments[-1][0].x1 < _GAP * (box.bottom - box.top):
            before, text = line.segments.pop()
            line.segments.append((_around([before, box]), f"{text} {word['text']}"))
        else:
            line.segments.append((box, word["text"]))
    return line


def _aligned(lines: list[_Line], start: int) -> tuple[int, list[_Box]]:
    """The end of the lines from `start` on that share their gaps, and the columns between these."""
    columns = [box for box, _ in lines[start].segments]
    end, last = start + 1, start + 1
    if len(columns) < 2:
        return end, columns
    while end < len(lines):
        line = lines[end]
        if line.box.top - lines[end - 1].box.bottom > _LINE_SPACING * line.em:
            break
        joined = _joined([*columns, *(box for box, _ in line.segments)])
        if len(joined) < len(columns):
            break
        columns = joined
        end += 1
        # A line of one cell belongs to the table if the table goes on after it.
        if len(line.segments) > 1:
            last = end
    return last, _joined([box for line in lines[start:last] for box, _ in line.segments])


def _joined(boxes: Iterable[_Box]) -> list[_Box]:
    """The stretches of the page that the boxes cover, from left to right."""
    joined: list[_Box] = []
    for box in sorted(boxes, key=lambda box: box.x0):
        if joined and box.x0 <= joined[-1].x1:
            joined[-1] = _around([joined[-1], box])
        else:
            joined.append(box)
    return joined


def _are_cells(rows: list[_Line], columns: list[_Box]) -> bool:
    """Whether the columns are those of a table and not of running text: all but one are narrow."""
    widths: list[list[float]] = [[] for _ in columns]
    for line in rows:
        for box, _ in line.segments:
            widths[_column(box, columns)].append((box.x1 - box.x0) / line.em)
    narrow = [bool(column) and statistics.median(column) <= _WIDEST_CELL for column in widths]
    figures = [bool(re.search(r"\d", text)) for line in rows for box, text in line.segments if _column(box, columns)]
    # Of two columns, one of figures: two blocks of short lines, such as addresses, are no table.
    return sum(narrow) >= max(len(columns) - 1, 1) and (
        (len(columns) > 2 and sum(narrow) > 1) or statistics.fmean(figures or [0]) >= _FILLED
    )


def _column(box: _Box, columns: list[_Box]) -> int:
    return max(range(len(columns)), key=lambda place: min(box.x1, columns[place].x1) - max(box.x0, columns[place].x0))


def _cells(rows: list[_Line], columns: list[_Box]) -> list[list[str]]:
    """Rows of cells; a line with one cell that is not in the first column continues the cell above it."""
    cells: list[list[str]] = []
    for line in rows:
        row = [""] * len(columns)
        for box, text in line.segments:
            place = _column(box, columns)
            row[place] = f"{row[place]} {text}".strip()
        alone = [place for place, text in enumerate(row) if text]
        if cells and len(alone) == 1 and alone[0] > 0:
            cells[-1][alone[0]] = f"{cells[-1][alone[0]]} {row[alone[0]]}".strip()
        else:
            cells.append(row)
    return cells


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length as a Markdown table, the first one its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
