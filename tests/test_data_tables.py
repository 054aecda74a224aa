"""Tables of PDF, Word and web files keep their columns, in reading order, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_helpers import write_docx
from document_helpers import documents
from pdf_helpers import Page, write_pages

from optimsyn.data.documents import read_documents

RAIN = [
    ["Station", "2021", "2022"],
    ["Aldersey", "812", "790"],
    ["Brackwell", "1,204", "1,311"],
    ["Corrie", "655", "702"],
]
TABLE = (
    "| Station | 2021 | 2022 |\n| --- | --- | --- |\n| Aldersey | 812 | 790 |\n| Brackwell | 1,204 | 1,311 |\n"
    "| Corrie | 655 | 702 |"
)
PROSE = [
    "The wheel of the upper mill turned on the water of the brook, and when the",
    "brook froze the miller took his grain to the tide mill, which worked on as",
    "long as the basin filled, twice a day, whatever the weather in the valley.",
]
LEFT = [f"Left line {number} tells of the old canal and its" for number in range(1, 9)]
RIGHT = [f"Right line {number} tells of the new railway and" for number in range(1, 9)]


def text_of(path: Path) -> str:
    read = read_documents(documents(path))
    assert read.problems == []
    return read.documents[0].text


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def page_of_table(*, ruled: bool, page: Page | None = None) -> Page:
    page = page or Page()
    page.lines(72, 720, PROSE)
    page.rows((80, 240, 400), 640, RAIN)
    if ruled:
        page.grid((72, 230, 390, 540), (654, 635, 619, 603, 587))
    page.lines(
        72, 560, ["Source: the stations' own books, which the county", "copied every spring until the last war."]
    )
    return page


@pytest.mark.parametrize("ruled", [True, False])
def test_a_table_between_paragraphs(tmp_path: Path, ruled: bool) -> None:
    text = text_of(write_pages(tmp_path / "rain.pdf", [page_of_table(ruled=ruled)]))
    assert TABLE in text
    assert in_order(text, PROSE[0], PROSE[-1], TABLE, "Source: the stations")
    assert text.count("Brackwell") == 1 and text.count("1,311") == 1


@pytest.mark.parametrize("ruled", [True, False])
@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_a_page_that_is_turned(tmp_path: Path, ruled: bool, rotate: int) -> None:
    # Drawn sideways, and put upright by the viewer or not: the text says which way is up.
    page = page_of_table(ruled=ruled, page=Page(rotate=rotate, sideways=True))
    text = text_of(write_pages(tmp_path / "rain.pdf", [page]))
    assert TABLE in text
    assert in_order(text, PROSE[0], PROSE[-1], TABLE, "Source: the stations")


def test_empty_cells_and_rows_that_wrap(tmp_path: Path) -> None:
    page = Page()
    rows = [["Item", "Spring", "Autumn"], ["Barley", "", "14"], ["Oats, sown after", "9", "11"], ["Rye", "3", ""]]
    page.rows((80, 240, 400), 640, rows)
    text = text_of(write_pages(tmp_path / "a.pdf", [page]))
    assert "| Barley |  | 14 |" in text and "| Rye | 3 |  |" in text
    page = Page()
    for x, y, cell in (
        (80, 640, "Item"), (240, 640, "Kept in"), (400, 640, "Days"),
        (80, 620, "Barley"), (240, 620, "the long barn"), (400, 620, "30"),
        (240, 608, "by the weir"),
        (80, 590, "Oats"), (240, 590, "the loft"), (400, 590, "12"),
    ):  # fmt: skip
        page.text(x, y, cell)
    text = text_of(write_pages(tmp_path / "b.pdf", [page]))
    assert "| Barley | the long barn by the weir | 30 |\n| Oats | the loft | 12 |" in text


def test_a_head_across_columns_does_not_hide_them(tmp_path: Path) -> None:
    page = Page()
    page.text(250, 660, "Rain in millimetres at the two gauges of the county")
    page.text(80, 660, "West")
    page.rows((80, 240, 400), 640, RAIN)
    text = text_of(write_pages(tmp_path / "a.pdf", [page]))
    assert TABLE in text and in_order(text, "Rain in millimetres", TABLE)


def test_bars_in_cells_are_escaped_and_merged_cells_keep_their_column(tmp_path: Path) -> None:
    page = Page()
    page.rows((80, 240, 400), 640, [["Rule", "A|B", "C"], ["both", "1", "2"]])
    page.grid((72, 230, 390, 540), (654, 635, 619))
    assert "| Rule | A\\|B | C |\n| --- | --- | --- |\n| both | 1 | 2 |" in text_of(
        write_pages(tmp_path / "a.pdf", [page])
    )


@pytest.mark.parametrize("size", [8, 10])
def test_two_columns_of_prose_are_read_one_after_the_other(tmp_path: Path, size: float) -> None:
    page = Page()
    page.text(180, 740, "On canals and railways", 16)
    page.lines(60, 700, LEFT, size)
    page.lines(320, 700, RIGHT, size)
    text = text_of(write_pages(tmp_path / "two.pdf", [page]))
    assert in_order(text, "On canals", *LEFT, *RIGHT)
    assert "|" not in text


def test_a_table_across_two_columns_splits_the_page(tmp_path: Path) -> None:
    page = Page()
    page.lines(60, 740, LEFT[:4])
    page.lines(320, 740, RIGHT[:4])
    page.rows((70, 240, 400), 640, RAIN)
    page.grid((60, 230, 390, 540), (654, 635, 619, 603, 587))
    page.lines(60, 560, LEFT[4:])
    page.lines(320, 560, RIGHT[4:])
    text = text_of(write_pages(tmp_path / "two.pdf", [page]))
    assert in_order(text, LEFT[0], LEFT[3], RIGHT[0], RIGHT[3], TABLE, LEFT[4], LEFT[7], RIGHT[4], RIGHT[7])


def test_a_table_inside_one_column_stays_in_it(tmp_path: Path) -> None:
    page = Page()
    page.lines(60, 740, LEFT[:4])
    page.rows((66, 150, 220), 660, RAIN)
    page.grid((60, 140, 210, 280), (674, 655, 639, 623, 607))
    page.lines(60, 580, LEFT[4:])
    page.lines(320, 740, [*RIGHT, *(f"More on the right, line {n}, about the bridge" for n in range(8))])
    text = text_of(write_pages(tmp_path / "two.pdf", [page]))
    assert in_order(text, LEFT[0], LEFT[3], TABLE, LEFT[4], LEFT[7])
    assert in_order(text, RIGHT[0], RIGHT[7], "More on the right, line 7")
    assert text.count("Corrie") == 1


@pytest.mark.parametrize(
    "lines",
    [
        ["1.  The miller takes the grain to the upper mill in the dry months,", "2.  The owner pays him for it."],
        ["Miss A. Miller        12 May 1870", "The Old Mill          at Brackwell", "Brackwell             by post"],
    ],
)
def test_lists_and_addresses_are_no_tables(tmp_path: Path, lines: list[str]) -> None:
    page = Page()
    for number, line in enumerate(lines):
        first, _, second = line.partition("  ")
        page.text(72, 700 - 14 * number, first)
        page.text(72 + (20 if first.endswith(".") else 200), 700 - 14 * number, second.strip())
    assert "|" not in text_of(write_pages(tmp_path / "a.pdf", [page]))


def test_a_frame_around_prose_is_no_table(tmp_path: Path) -> None:
    page = Page()
    page.lines(72, 700, PROSE * 4)
    page.grid((60, 552), (720, 540))
    text = text_of(write_pages(tmp_path / "a.pdf", [page]))
    assert "|" not in text and text.count(PROSE[0]) == 4


def test_pages_follow_each_other(tmp_path: Path) -> None:
    first, second = page_of_table(ruled=False), Page()
    second.lines(72, 700, ["The second page has a line of its own."])
    text = text_of(write_pages(tmp_path / "a.pdf", [first, second]))
    assert in_order(text, PROSE[0], TABLE, "The second page has a line of its own.")


HTML = """<html><body><h1>Rain</h1><p>Two stations.</p><table>
<tr><th rowspan="2">Station</th><th colspan="2">Rain in mm</th></tr><tr><th>2021</th><th>2022</th></tr>
<tr><td>Aldersey</td><td>812</td><td>790</td></tr><tr><td rowspan="2">Brackwell</td><td>1,204</td><td>1|311</td></tr>
<tr><td>7<br>8</td><td><p>9</p><p>10</p></td></tr></table><p>After.</p></body></html>"""


def rows_of(text: str) -> list[list[str]]:
    lines = [line.strip("|").replace("\\|", "¦") for line in text.splitlines() if line.startswith("|")]
    return [[" ".join(cell.split()) for cell in line.split("|")] for line in lines]


def test_a_web_page_with_cells_over_rows_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "rain.html"
    path.write_text(HTML, encoding="utf-8")
    text = text_of(path)
    rows = [row for row in rows_of(text) if set("".join(row)) - set("-")]
    assert rows == [
        ["Station", "Rain in mm", ""],
        ["Station", "2021", "2022"],
        ["Aldersey", "812", "790"],
        ["Brackwell", "1,204", "1¦311"],
        ["Brackwell", "7 8", "9 10"],
    ]
    assert in_order(text, "Two stations.", "Aldersey", "After.")


def test_a_word_file_with_merged_cells(tmp_path: Path) -> None:
    def cell(text: str, more: str = "") -> str:
        return f"<w:tc><w:tcPr>{more}</w:tcPr><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:tc>"

    start, goes_on, wide = '<w:vMerge w:val="restart"/>', "<w:vMerge/>", '<w:gridSpan w:val="2"/>'
    rows = (
        f"<w:tr>{cell('Station')}{cell('2021')}{cell('2022')}</w:tr>"
        f"<w:tr>{cell('Aldersey', start)}{cell('812')}{cell('790')}</w:tr>"
        f"<w:tr>{cell('', goes_on)}{cell('655')}{cell('702')}</w:tr>"
        f"<w:tr>{cell('Corrie')}{cell('none kept', wide)}</w:tr>"
    )
    path = tmp_path / "rain.docx"
    write_docx(path, ["Before.</w:t></w:r></w:p><w:tbl>" + rows + "</w:tbl><w:p><w:r><w:t>After."])
    text = text_of(path)
    assert [row for row in rows_of(text) if set("".join(row)) - set("-")] == [
        ["Station", "2021", "2022"],
        ["Aldersey", "812", "790"],
        ["Aldersey", "655", "702"],
        ["Corrie", "none kept", ""],
    ]
    assert in_order(text, "Before.", "Station", "After.")
