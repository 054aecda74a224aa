"""Which words of an answer teach: each token coloured by its share of the pair's influence.

Readable without colour: a straight line under what helps, a wavy one under what hurts, thicker for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from optimsyn.base.counting import plural
from optimsyn.base.terminal.table import decimals_for, fixed, number
from optimsyn.influence.attribution.records import PairShares, TokenPiece
from optimsyn.report.rendering import render

# Blue and vermilion of Okabe and Ito: distinct for colour-blind readers, on light and dark backgrounds.
_HELPS, _HURTS = "0,114,178", "213,94,0"
_STRONGEST = 0.55
# Shares below this fraction of the strongest have no colour.
_PLAIN = 0.04
_NAMED = 3
# Smallest fraction of the influence at which momentum's part is shown; less is rounding.
_REMAINDER = 0.01


class Cell(NamedTuple):
    """One piece as displayed."""

    text: str
    style: str
    title: str


class HeatRow(NamedTuple):
    """One pair as displayed: its cells, and the pieces with most and least influence."""

    shares: PairShares
    cells: tuple[Cell, ...]
    helps: tuple[tuple[str, str], ...]
    hurts: tuple[tuple[str, str], ...]
    remainder: str


class Heatmap:
    """Pairs with their answers coloured by the influence of each token; displayed in notebooks and terminals.

    Args:
        pairs: From `optimsyn.influence.attribution.pairs.pair_shares` or a run's `synthesize/token_shares.json`.
            They share one scale, so that pale pairs are those that teach little.
        title: Title.

    Example:
        >>> Heatmap(pair_shares(scorer, target, pairs))                              # doctest: +SKIP
    """

    def __init__(self, pairs: Sequence[PairShares], title: str = "") -> None:
        self.pairs = tuple(pairs)
        self.title = title
        shares = [abs(piece.share) for pair in self.pairs for piece in pair.pieces]
        self.strongest = max(shares, default=0.0)
        self.decimals = decimals_for(shares)

    @property
    def rows(self) -> list[HeatRow]:
        """The pairs, ready to be drawn."""
        return [self._row(pair) for pair in self.pairs]

    @property
    def legend(self) -> list[Cell]:
        """Cells from hurts most to helps most, with their values."""
        shares = [step * self.strongest for step in (-1.0, -0.5, 0.0, 0.5, 1.0)]
        return [Cell(number(share, 2, sign=bool(share)), self._style(share), "") for share in shares]

    def _row(self, pair: PairShares) -> HeatRow:
        cells = []
        for piece in pair.pieces:
            title = fixed(piece.share, self.decimals, sign=True)
            if pair.influence:
                title += f", {piece.share / pair.influence:.0%} of the pair's influence".replace("-", "−")
            if len(piece.shares) > 1:
                title += f", {plural(len(piece.shares), 'token')}"
            cells.append(Cell("⏎ end" if piece.end else piece.text, self._style(piece.share), title))
        least = _PLAIN * self.strongest
        ordered = sorted(pair.pieces, key=lambda piece: -piece.share)
        significant = abs(pair.remainder) > _REMAINDER * abs(pair.influence)
        return HeatRow(
            shares=pair,
            cells=tuple(cells),
            helps=tuple(self._named(piece) for piece in ordered if piece.share > least)[:_NAMED],
            hurts=tuple(self._named(piece) for piece in reversed(ordered) if piece.share < -least)[:_NAMED],
            remainder=fixed(pair.remainder, self.decimals, sign=True) if significant else "",
        )

    def _named(self, piece: TokenPiece) -> tuple[str, str]:
        text = piece.text.strip()
        name = "end of the answer" if piece.end else f"“{text}”" if text else "a blank"
        return name, fixed(piece.share, self.decimals, sign=True)

    def _part(self, share: float) -> float:
        return abs(share) / self.strongest if self.strongest else 0.0

    def _style(self, share: float) -> str:
        part = self._part(share)
        if part < _PLAIN:
            return ""
        color, line = (_HELPS, "solid") if share > 0 else (_HURTS, "wavy")
        thick = 1 + round(part * 2)
        return (
            f"background:rgba({color},{_STRONGEST * part:.2f});text-decoration:underline {line} "
            f"rgb({color}) {thick}px;text-underline-offset:3px"
        )

    def _repr_html_(self) -> str:
        return render("heatmap.html.j2", heatmap=self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, style="bold")
        for pair in self.pairs:
            line = Text(f"{number(pair.influence, sign=True):>9}  {pair.question} ")
            for piece in pair.pieces:
                part = self._part(piece.share)
                weight = "bold " if part > 0.5 else ""
                tone = "" if part < _PLAIN else f"{weight}blue underline" if piece.share > 0 else f"{weight}red"
                line.append("⏎" if piece.end else piece.text, style=tone)
            yield line
