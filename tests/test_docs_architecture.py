"""The picture and the tables of the architecture are those of the code."""

from __future__ import annotations

import re

from tests.docs_helpers import ROOT


def test_the_picture_is_drawn_from_the_imports_as_they_are() -> None:
    from architecture import PICTURE, picture

    assert PICTURE.read_text(encoding="utf-8") == picture(), "draw it again: python tools/architecture.py"


def test_the_page_and_the_map_name_every_room() -> None:
    from architecture import purposes, rooms, table

    folders = {path.parent.name for path in (ROOT / "optimsyn").glob("*/__init__.py")}
    assert set(rooms()) == folders | {"cli"}
    assert all(purposes().values())
    assert re.findall(r"^\| `(\w+)`", table(), re.MULTILINE) == rooms()
    plan = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("```\noptimsyn/\n")[2].partition("```")[0]
    drawn = re.findall(r"^  (\w+)(?:/|\.py)", plan, re.MULTILINE)
    # The map begins with the command line, and goes on from the lowest room to the highest.
    assert drawn == ["cli", *reversed(rooms()[1:])]
