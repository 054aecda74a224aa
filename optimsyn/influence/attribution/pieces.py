"""Cuts an answer at its token boundaries, into pieces that join to its exact text."""

from __future__ import annotations

from typing import Any

from optimsyn.data.records import Pair, Question, Sample
from optimsyn.target.encoding import Tokens, as_sample, fitted


def answer_pieces(tokenizer: Any, item: Sample | Pair | Question, max_length: int) -> list[tuple[str, int]]:
    """The text of an answer, cut at its label tokens.

    Pieces end where tokens end in the text, so blanks that a tokenizer drops go to the next piece, and tokens that
    share one letter of several bytes are one piece.

    Returns:
        For each piece its text and its number of tokens, in order. A last piece without text holds the tokens that
        mark the end, where the target learns them. Of a dialogue the first piece, an ellipsis, holds the earlier
        answers. Together these are the label tokens of `encode`.
    """
    tokens, _ = fitted(tokenizer, as_sample(item), max_length)
    pieces: list[tuple[str, int]] = []
    earlier = sum(place < tokens.first for place in tokens.learned)
    cut, waiting, ending = tokens.start, 0, 0
    for begin, end in _label_offsets(tokenizer, tokens):
        if begin >= tokens.stop:
            ending += 1
        elif end > cut:
            end = min(end, tokens.stop)
            pieces.append((tokens.text[cut:end], waiting + 1))
            cut, waiting = end, 0
        elif pieces and begin < cut:
            # A further token of the letter before.
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + 1)
        else:
            # A token without text: the first bytes of the letter that follows, or a mark in front of a word.
            waiting += 1
    text, count = pieces[-1]
    pieces[-1] = (text + tokens.text[cut : tokens.stop], count + waiting)
    pieces = [("… ", earlier), *pieces] if earlier else pieces
    return [*pieces, ("", ending)] if ending else pieces


def _label_offsets(tokenizer: Any, tokens: Tokens) -> list[tuple[int, int]]:
    """Begin and end of each label token in the text; the end marker lies behind the answer."""
    behind = (tokens.stop, tokens.stop)
    if tokens.offsets is None:
        return _decoded_offsets(tokenizer, tokens)
    # A marker that the tokenizer adds itself has no place in the text and says (0, 0).
    spans = [*tokens.offsets, *[(0, 0)] * (len(tokens.ids) - len(tokens.offsets))]
    return [
        behind if tuple(spans[place]) == (0, 0) else spans[place] for place in tokens.learned if place >= tokens.first
    ]


def _decoded_offsets(tokenizer: Any, tokens: Tokens) -> list[tuple[int, int]]:
    """The same for a tokenizer without offsets: the text is walked along with what ever more tokens decode to."""
    places = [place for place in range(tokens.start, tokens.stop) if not tokens.text[place].isspace()]
    labels = [tokens.ids[place] for place in tokens.learned if place >= tokens.first]
    offsets, cut = [], tokens.start
    for count, token in enumerate(labels, 1):
        if token in tokenizer.all_special_ids:
            offsets.append((tokens.stop, tokens.stop))
            continue
        # A letter whose bytes are not all there yet decodes to a replacement character.
        decoded = tokenizer.decode(labels[:count], skip_special_tokens=True).rstrip("\ufffd")
        letters = sum(not letter.isspace() for letter in decoded)
        end = max(cut, places[min(letters, len(places)) - 1] + 1) if letters and places else cut
        offsets.append((cut, end))
        cut = end
    return offsets
