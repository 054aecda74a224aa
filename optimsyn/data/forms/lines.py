"""What forms share whose answers have lines: text as written, its words alone, and checks that read both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from optimsyn.data.forms.cells import written
from optimsyn.data.forms.form import Looked, QuestionForm
from optimsyn.data.language.grounding import Source, Unit, strange_share
from optimsyn.data.language.segment import has_unspaced
from optimsyn.data.records import Pair, Question
from optimsyn.data.text import FUNCTION_WORDS, stem, words_of

_BLANK_EDGES = re.compile(r"\A(?:[^\S\n]*\n)+|\s+\Z")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_TABLE_RULE = re.compile(r"^[ \t|:=-]+$", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*(?:[-*+•]|\(?\d{1,3}[.)])[ \t]+", re.MULTILINE)
_COMMAND = re.compile(r"\\(?:begin|end)\{\w+\*?\}|\\[A-Za-z]+")
_MARKUP = re.compile(r"[\\{}$|#*_`~<>]+")
# Labels of our own prompts: a reply that goes on with the next pair.
_DEBRIS = re.compile(r"^\W{0,3}(?:Question|Passage|Rubric|Quote)\s*:", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n+")
# Words of an answer that the general checks of its beginning see.
_BEGINNING = 20
# As much of a script without spaces.
_LETTERS_OF_BEGINNING = 40


def block(text: str) -> str:
    """A text with its own line breaks and blanks, without blank lines around it."""
    return _BLANK_EDGES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def written_lines(value: Any) -> str:
    """A cell of a question file as a text with lines; "" for nothing."""
    return block(value) if isinstance(value, str) else written(value)


def flat(text: str) -> str:
    """The words of a text with markup (lists, tables, LaTeX, code), on one line."""
    for pattern in (_FENCE, _TABLE_RULE, _BULLET, _COMMAND, _MARKUP):
        text = pattern.sub(" ", text)
    return " ".join(text.split())


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text that hold a word."""
    return [part.strip() for part in _SENTENCE_END.split(text) if re.search(r"\w", part)]


def item_text(line: str) -> str:
    """A line without the mark of a list in front of it."""
    return _BULLET.sub("", line, count=1).strip()


def debris(text: str) -> str | None:
    """A label of the prompt at the start of a line, which no answer has; None without one."""
    match = _DEBRIS.search(text)
    return None if match is None else f"it holds {match.group().strip()!r}, a label of the prompt"


def ungrounded(
    what: str, text: str, context: Looked, *, share: float, also: str = "", figures: bool = True
) -> str | None:
    """Why a text does not rest on the passage, or None; words are compared as its language compares them.

    Args:
        what: Its name in the reason.
        text: With or without markup.
        context: Holds the passage.
        share: Of its content words that has to come from the passage or from `also`.
        also: Another text that its words may come from.
        figures: Whether each of its figures has to.
    """
    units = _units(flat(text), context, also)
    strange = [unit.text for unit in units if not unit.known]
    # The numbers of a numbered list are removed before; a lone digit may count steps.
    unknown = (word for word in strange if any(map(str.isdigit, word)) and len(word) > 1)
    if figures and (wrong := next(unknown, None)) is not None:
        return f"the passage does not give the figure {wrong} of the {what}"
    if units and len(strange) == len(units):
        return f"the {what} shares no word with the passage"
    if strange_share(units) > 1 - share:
        return f"the {what}'s {', '.join(strange[:3])} does not come from the passage"
    return None


def _units(text: str, context: Looked, also: str) -> list[Unit]:
    """What of a text has content of its own, and whether it comes from the passage or from another text."""
    if context.language != "en":
        source = context.source
        return (Source(f"{source.text}\n{also}", source.language) if also else source).content(text)
    known = context.source_words | set(map(stem, words_of(also)))
    content = (word for word in words_of(text) if word not in FUNCTION_WORDS)
    return [Unit(word, stem(word) in known, 1.0, word[0].isdigit()) for word in content]


class LinesForm(QuestionForm):
    """A form whose answers have lines. The general checks see the words of the answer on one line."""

    lines: ClassVar[bool] = True

    def spoken(self, pair: Pair) -> str:
        """The answer that the general checks read."""
        return self.answer(pair)

    def checked(self, pair: Pair, check: str) -> Pair | None:
        """Checks of the layout see the beginning of the answer; whether it is grounded is a check of the form."""
        whole = flat(self.spoken(pair))
        beginning = " ".join(whole.split()[:_BEGINNING])
        beginning = beginning[:_LETTERS_OF_BEGINNING] if has_unspaced(beginning) else beginning
        seen = {"grounded": pair.quote, "format": beginning, "length": beginning, "copied_passage": beginning}
        # The whole answer stays among the texts, which are searched for control tokens and unsafe words.
        details = {**pair.details, "whole_answer": pair.answer}
        return pair.model_copy(update={"answer": seen.get(check, whole), "details": details})


def text_of(item: Question | Pair, name: str) -> str:
    """A text from an item's details; "" if it has none of this name."""
    return str(item.details.get(name) or "")


def texts_of(values: Mapping[str, Any], field: str = "answer") -> str:
    """A cell of a row as a text with lines."""
    value = values.get(field)
    return written_lines(value[0] if isinstance(value, list | tuple) and len(value) == 1 else value)
