"""Documents cut into passages with exact character offsets (semchunk)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from optimsyn.base.counting import plural
from optimsyn.data.losses import Loss
from optimsyn.data.records import Document, Passage
from optimsyn.data.text import word_count
from optimsyn.recipe.recipe import Documents

_PUNCTUATION = str.maketrans("。．！？；，、：।॥۔؟؛،។၊။", "..!?;,,:...?;,.,.")


def split_passages(documents: Sequence[Document], config: Documents) -> tuple[list[Passage], list[Loss]]:
    """Cuts every document at paragraphs and sentences into passages of similar length.

    Args:
        documents: With unique ids.
        config: `passage_words` is the longest passage; passages shorter than `min_words` are lost.

    Returns:
        Passages in the order of the documents, with `text == document.text[char_start:char_end]` exactly, and one loss
        for each passage that was too short.
    """
    passages: list[Passage] = []
    losses: list[Loss] = []
    for document in documents:
        for number, (start, end) in enumerate(passage_spans(document.text, config.passage_words)):
            name = f"{document.id}#{number}"
            text = document.text[start:end]
            words = word_count(text)
            if words < config.min_words:
                reason = f"{plural(words, 'word')}, fewer than documents.min_words = {config.min_words}"
                losses.append(Loss(id=name, stage="passages", reason=reason))
                continue
            passages.append(
                Passage(
                    id=name,
                    document_id=document.id,
                    title=document.title,
                    text=text,
                    char_start=start,
                    char_end=end,
                    group=document.group or document.id,
                )
            )
    return passages, losses


def passage_spans(text: str, longest: int) -> list[tuple[int, int]]:
    """Character spans of at most `longest` words that cover the text, white space at their ends left out."""
    from semchunk.semchunk import chunk

    words = word_count(text)
    if words <= longest:
        return _joined(text, [(0, len(text))], longest)
    # Similar lengths: 170 words under a limit of 160 make two passages of 85, not 160 and a useless 10.
    count = -(-words // longest)
    size = min(longest, -(-words * 11 // (count * 10)))
    # With offsets=True the second part of the result is the list of (start, end).
    # semchunk cuts at the punctuation of Latin scripts; each sign stands for one of another, so the offsets stay.
    plain = text.translate(_PUNCTUATION)
    offsets = cast("list[tuple[int, int]]", chunk(plain, size, word_count, memoize=False, offsets=True)[1])
    return _joined(text, offsets, longest)


def _joined(text: str, spans: Iterable[tuple[int, int]], longest: int) -> list[tuple[int, int]]:
    """The spans without white space at their ends, neighbours joined while they fit."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        if start == end:
            continue
        if joined and word_count(text[joined[-1][0] : end]) <= longest:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
