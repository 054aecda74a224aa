"""Turns the LaTeX of a Markdown page (`$…$`, `$$…$$`) into MathML, which browsers draw without any script."""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from latex2mathml.converter import convert

# Fenced blocks, then code spans: mathematics is looked for between them only.
_CODE = re.compile(r"^(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^(?P=fence)[ \t]*$|(?P<ticks>`+)[^`].*?(?P=ticks)", re.M | re.S)
_BLOCK = re.compile(r"^\$\$[ \t]*\n?(.+?)\n?[ \t]*\$\$[ \t]*$", re.M | re.S)
# A dollar before a space or after one, or before a digit (`US$20`), is a dollar.
_INLINE = re.compile(r"(?<![\\$\w])\$(?![\s$])([^$\n]*(?:\n(?!\n)[^$\n]*)*?)(?<!\s)\$(?![\d$])")
# Bars and hats keep their size, capital Greek stands upright: as TeX has it.
_AS_TEX = {
    "<mo>&#x02016;</mo>": '<mo stretchy="false">&#x02016;</mo>',
    "<mo>&#x0005E;</mo>": '<mo stretchy="false">&#x0005E;</mo>',
    "<mi>&#x00393;</mi>": '<mi mathvariant="normal">&#x00393;</mi>',
}
_TEXT = re.compile(r">([^<]+)<")


def with_mathml(markdown: str) -> str:
    """A page with its mathematics as MathML; code stays as it is."""
    return outside_code(markdown, lambda text: _INLINE.sub(_inline, _BLOCK.sub(_block, text)))


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Changes a page everywhere but in its code."""
    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def _block(match: re.Match[str]) -> str:
    # A block of raw HTML, which Markdown leaves alone.
    return f'\n<div class="math">{_mathml(match[1], "block")}</div>\n'


def _inline(match: re.Match[str]) -> str:
    # A span in front keeps Markdown from taking `math` for a block of its own.
    return f'<span class="math">{_mathml(match[1], "inline")}</span>'


def _mathml(latex: str, display: str) -> str:
    mathml = convert(latex.strip(), display=display).replace("\n", "")
    for before, after in _AS_TEX.items():
        mathml = mathml.replace(before, after)
    # Punctuation as entities: an asterisk, a bracket or a bar would mean something to Markdown.
    return _TEXT.sub(lambda text: f">{_entities(text[1])}<", mathml)


def _entities(text: str) -> str:
    parts = re.split(r"(&#?\w+;)", text)
    return "".join(
        part if index % 2 else "".join(f"&#{ord(c)};" if c in string.punctuation else c for c in part)
        for index, part in enumerate(parts)
    )
