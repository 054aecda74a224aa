"""One row of a question file, whatever its habits, as a typed question."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from optimsyn.base.errors import DataError
from optimsyn.base.values import kind_of
from optimsyn.data.documents import label_value, text_value
from optimsyn.data.excerpt import excerpt
from optimsyn.data.files.rows import Row
from optimsyn.data.records import Document, Question
from optimsyn.data.text import encodable, normalized

_T = TypeVar("_T")
_LETTER = re.compile(r"^\(?([A-Za-z])[).:]?$")
_WORDS_OF_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Library(BaseModel):
    """The documents that questions may be asked with, by id and by their text.

    Attributes:
        by_id: All documents.
        id_of_text: Id of the first document with this normalised text.
        complete: False when the documents could not be read yet; then any document_id is believed.
    """

    by_id: dict[str, Document]
    id_of_text: dict[str, str]
    complete: bool = True

    @classmethod
    def of(cls, documents: Sequence[Document] | None) -> Library:
        """The library of these documents; None: they could not be read yet."""
        by_text: dict[str, str] = {}
        for document in documents or ():
            by_text.setdefault(normalized(document.text), document.id)
        by_id = {document.id: document for document in documents or ()}
        return cls(by_id=by_id, id_of_text=by_text, complete=documents is not None)


class UnknownDocumentError(DataError):
    """An open-book question names a document that is not there.

    Attributes:
        document_id: The document.
    """

    def __init__(self, document_id: str) -> None:
        super().__init__(f"its document {document_id!r} is not among the documents")
        self.document_id = document_id


class _Faults:
    """What is wrong with one row, all of it: who fixes one fault should not meet the next one afterwards."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.unknown: UnknownDocumentError | None = None

    def part(self, read: Callable[[], _T]) -> _T | None:
        """What is read; None where that is a fault."""
        try:
            return read()
        except UnknownDocumentError as error:
            self.unknown = error
        except DataError as error:
            self.found.append(str(error))
        return None

    def raise_all(self) -> None:
        """Raises what was found; an unknown document counts only where nothing else is wrong."""
        if self.found:
            raise DataError("; and ".join(dict.fromkeys(self.found)))
        if self.unknown is not None:
            raise self.unknown


def question_of(row: Row, library: Library, *, open_book: bool | None, subtask: str | None) -> Question:
    """The question of one row.

    Fields of a row:
        question: Text.
        answer: The gold answer; for multiple choice the option's text, its letter, or (as a number) its index. Numbers
            are written out and true/false become yes/no.
        answers: Further accepted answers, as a list (in CSV as JSON), or as `{"text": [...]}` as in SQuAD.
        choices: Options, as a list (in CSV as JSON), or as `{"label": [...], "text": [...]}` as in ARC.
        answer_index, label: The gold option by index from 0, or by letter.
        context, document_id: The text that an open-book question is asked with, or the document that holds it.
        open_book, group, subtask, id: As their names say.

    Args:
        row: From `read_rows`.
        library: Where `document_id` is looked up.
        open_book: Overrides the row's own `open_book`.
        subtask: Column that names the subtask; None: `subtask`, else `all`.

    Raises:
        UnknownDocumentError: It is asked open book, and its document is not in the library.
        DataError: The row holds no usable question. The message says everything that is wrong, without the place.
    """
    values = row.values
    name = name_of(row)
    faults = _Faults()
    text = faults.part(lambda: _required_text(values, "question")) or ""
    gold = faults.part(lambda: _gold(values)) or _Gold([], None, None)
    context, document_id = faults.part(lambda: _context(values, library, open_book)) or (None, None)
    part = faults.part(lambda: _subtask(values, subtask)) or ""
    accepted, options, index = gold.accepted, gold.options, gold.place
    written = (name, text, *accepted, *(options or ()), context or "", document_id or "", part)
    if not all(map(encodable, (*written, label_value(values.get("group"))))):
        faults.found.append("holds half of a surrogate pair, which is not a character; fix or remove it")
    faults.raise_all()
    document = library.by_id.get(document_id or "")
    own_context = text_value(values.get("context"))
    group = (
        label_value(values.get("group"))
        or (document.group if document is not None else "")
        or (document_id or "")
        # Questions on the same text stay together although nobody gave the text an id.
        or (normalized(own_context)[:200] if own_context else "")
        or name
    )
    return Question(
        id=name,
        question=text,
        answer=accepted[0],
        answers=tuple(dict.fromkeys(accepted)),
        choices=tuple(options) if options is not None else None,
        answer_index=index,
        context=excerpt(context, text, accepted) if context is not None else None,
        document_id=document_id,
        group=group,
        subtask=part,
    )


def name_of(row: Row) -> str:
    """The id of a row's question, whether or not the rest of it can be used."""
    return label_value(row.values.get("id")) or row.key


class _Gold(NamedTuple):
    """The accepted answers, the options and which of them is gold; None and None for a free answer."""

    accepted: list[str]
    options: list[str] | None
    place: int | None


def _gold(values: Mapping[str, Any]) -> _Gold:
    faults = _Faults()
    accepted = faults.part(lambda: _accepted(values))
    choices = faults.part(lambda: _choices(values.get("choices")))
    faults.raise_all()
    assert accepted is not None
    assert choices is not None
    options, labels = choices
    if options is not None:
        index = _gold_index(values, options, labels, accepted)
        return _Gold([options[index]], options, index)
    if not accepted:
        raise DataError("has no answer; give it an `answer` or remove the row")
    return _Gold(accepted, None, None)


def _required_text(values: Mapping[str, Any], field: str) -> str:
    value = values.get(field)
    if value is None:
        raise DataError(
            f"has no `{field}`; columns there: {', '.join(sorted(values)) or 'none'} (map one with `columns: "
            f"{{{field}: their_column}}`)"
        )
    if not isinstance(value, str):
        raise DataError(f"`{field}` is {kind_of(value)}, it must be text")
    if not value.strip():
        raise DataError(f"`{field}` is empty")
    return value.strip()


def _subtask(values: Mapping[str, Any], column: str | None) -> str:
    if column is not None and column not in values:
        raise DataError(f"has no `{column}`, which questions.subtask names; columns there: {', '.join(sorted(values))}")
    return label_value(values.get(column or "subtask")) or "all"


def _written(value: Any) -> str:
    """A single answer or option as text; "" for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(value)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"an answer or option is {kind_of(value)}, it must be text")
    return value.strip()


def _list(value: Any, field: str) -> list[Any]:
    """A list cell; in CSV it is JSON, or what Python prints for a list."""
    if isinstance(value, str) and value.strip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                raise DataError(f'`{field}` is not valid JSON; write a list as ["first", "second"]') from None
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
    if not isinstance(value, list | tuple):
        raise DataError(f'`{field}` is {kind_of(value)}, it must be a list (in CSV: ["first", "second"])')
    return [item.get("text") if isinstance(item, dict) else item for item in value]


def _accepted(values: Mapping[str, Any]) -> list[str]:
    """All accepted answers, the gold one first; empty when there are none."""
    found: list[Any] = []
    for field in ("answer", "answers"):
        value = values.get(field)
        if isinstance(value, list | tuple | dict) or (field == "answers" and isinstance(value, str)):
            plain = isinstance(value, str) and not value.strip().startswith(("[", "{"))
            found += [value] if plain else _list(value, field)
        else:
            found.append(value)
    return [text for text in map(_written, found) if text]


def _choices(value: Any) -> tuple[list[str] | None, list[str]]:
    """The options and, where the row has them, their labels; `(None, [])` for a free answer."""
    if value is None or value in ("", [], ()):
        return None, []
    labels: list[str] = []
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError('`choices` is not valid JSON; write a list as ["first", "second"]') from None
    if isinstance(value, dict) and isinstance(value.get("label"), list):
        labels = [str(label).strip() for label in value["label"]]
    if isinstance(value, list) and value and all(isinstance(item, dict) and "label" in item for item in value):
        labels = [str(item["label"]).strip() for item in value]
    options = [_written(option) for option in _list(value, "choices")]
    if len(options) < 2:
        raise DataError(f'`choices` has {len(options)} option; a list such as ["first", "second"] is needed')
    if len(options) > len(ascii_uppercase):
        raise DataError(f"`choices` has {len(options)} options, more than the letters A to Z")
    if not all(options):
        raise DataError(f"option {ascii_uppercase[options.index('')]} of `choices` is empty")
    return options, labels if len(labels) == len(options) else []


def _gold_index(values: Mapping[str, Any], options: list[str], labels: list[str], accepted: list[str]) -> int:
    """Which option is gold, by `answer_index`, `label` or `answer`.

    Raises:
        DataError: None of them names an option, they disagree, or the gold option is listed twice.
    """
    found: dict[str, int] = {}
    if values.get("answer_index") is not None:
        index = str(values["answer_index"]).strip().removesuffix(".0")
        if not index.isdecimal() or int(index) >= len(options):
            given = values["answer_index"]
            raise DataError(f"answer_index {given!r} names none of its {len(options)} choices (counted from 0)")
        found["answer_index"] = int(index)
    if values.get("label") is not None:
        found["label"] = _option(values["label"], options, labels, "label")
    if values.get("answer") is not None and accepted:
        if not found:
            found["answer"] = _option(values["answer"], options, labels, "answer")
        elif normalized(accepted[0]) in map(normalized, options):
            found["answer"] = [normalized(option) for option in options].index(normalized(accepted[0]))
            # The same option listed twice: the index that was given decides which one is meant.
            if normalized(options[found["answer"]]) == normalized(options[next(iter(found.values()))]):
                found["answer"] = next(iter(found.values()))
    if not found:
        raise DataError("has choices but no answer; give `answer` (text or letter) or `answer_index` (from 0)")
    if len(set(found.values())) > 1:
        named = ", ".join(f"{field} names {options[index]!r}" for field, index in found.items())
        raise DataError(f"its gold answer is contradictory: {named}")
    gold = next(iter(found.values()))
    if [normalized(option) for option in options].count(normalized(options[gold])) > 1:
        raise DataError(f"its gold option {options[gold]!r} is listed twice among the choices")
    return gold


def _option(value: Any, options: list[str], labels: list[str], field: str) -> int:
    """The index of the option that an answer means: by its text, its label, its letter, or as a number."""
    text = _written(value[0] if isinstance(value, list | tuple) and len(value) == 1 else value)
    plain = [normalized(option) for option in options]
    if normalized(text) in plain:
        return plain.index(normalized(text))
    if text in labels:
        return labels.index(text)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options):
        return value
    letter = _LETTER.match(text)
    if letter and ascii_uppercase.index(letter.group(1).upper()) < len(options):
        return ascii_uppercase.index(letter.group(1).upper())
    cure = "; a number is taken as index only in `answer_index` (from 0)" if text.isdecimal() else ""
    raise DataError(f"{field} {text!r} is neither one of its {len(options)} choices nor their letter{cure}")


def _context(values: Mapping[str, Any], library: Library, open_book: bool | None) -> tuple[str | None, str | None]:
    """`(context, document_id)` of a row; the context is None when the question is asked closed book."""
    own = text_value(values.get("context"))
    own = own if own and own.strip() else None
    document_id = label_value(values.get("document_id")) or None
    if own is not None and document_id is None:
        document_id = library.id_of_text.get(normalized(own))
    wanted = open_book
    if wanted is None and values.get("open_book") is not None:
        wanted = _WORDS_OF_TRUTH.get(str(values["open_book"]).strip().lower())
        if wanted is None:
            raise DataError(f"open_book is {values['open_book']!r}, it must be true or false")
    given = values.get("context")
    if wanted is None and text_value(given) is None and given not in (None, [], {}):
        raise DataError(
            f"`context` is {kind_of(given)}, it must be text; map it with `columns: {{context: their.column}}`, or "
            "ask without it by `open_book: false`"
        )
    if wanted is None:
        wanted = own is not None
    if not wanted:
        return None, document_id
    if own is not None:
        return own, document_id
    if document_id is None:
        raise DataError("is asked open book but has neither `document_id` nor `context`")
    document = library.by_id.get(document_id)
    if document is None and not library.complete:
        return f"(text of document {document_id})", document_id
    if document is None:
        raise UnknownDocumentError(document_id)
    return document.text, document_id
