"""Turns the LaTeX of a Markdown page (`$…$`, `$$…$$`) into MathML, which browsers render without scripts."""

from __future__ import annotations

import re
import string
from collections.abc import Callable

from latex2mathml.converter import convert

# Fenced blocks and code spans, which hold no mathematics.
_CODE = re.compile(r"^(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^(?P=fence)[ \t]*$|(?P<ticks>`+)[^`].*?(?P=ticks)", re.M | re.S)
_BLOCK = re.compile(r"^\$\$[ \t]*\n?(.+?)\n?[ \t]*\$\$[ \t]*$", re.M | re.S)
# A dollar next to a space, or before a digit (`US$20`), is a currency sign.
_INLINE = re.compile(r"(?<![\\$\w])\$(?![\s$])([^$\n]*(?:\n(?!\n)[^$\n]*)*?)(?<!\s)\$(?![\d$])")
# As in TeX: bars and hats keep their size, capital Greek is upright.
_AS_TEX = {
    "<mo>&#x02016;</mo>": '<mo stretchy="false">&#x02016;</mo>',
    "<mo>&#x0005E;</mo>": '<mo stretchy="false">&#x0005E;</mo>',
    "<mi>&#x00393;</mi>": '<mi mathvariant="normal">&#x00393;</mi>',
}
_TEXT = re.compile(r">([^<]+)<")


def with_mathml(markdown: str) -> str:
    """A page with MathML; code is unchanged."""
    return outside_code(markdown, lambda text: _INLINE.sub(_inline, _BLOCK.sub(_block, text)))


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Applies a change to a page outside of its code."""
    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def _block(match: re.Match[str]) -> str:
    # A block of raw HTML, which Markdown does not change.
    return f'\n<div class="math">{_mathml(match[1], "block")}</div>\n'


def _inline(match: re.Match[str]) -> str:
    # A leading span keeps Markdown from treating `math` as a block.
    return f'<span class="math">{_mathml(match[1], "inline")}</span>'


def _mathml(latex: str, display: str) -> str:
    mathml = convert(latex.strip(), display=display).replace("\n", "")
    for before, after in _AS_TEX.items():
        mathml = mathml.replace(before, after)
    # Punctuation as entities, since Markdown interprets asterisks, brackets and bars.
    return _TEXT.sub(lambda text: f">{_entities(text[1])}<", mathml)


def _entities(text: str) -> str:
    parts = re.split(r"(&#?\w+;)", text)
    return "".join(
        part if index % 2 else "".join(f"&#{ord(c)};" if c in string.punctuation else c for c in part)
        for index, part in enumerate(parts)
    )
