"""Converts one row of a question file to a typed question."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from optimsyn.base.errors import DataError, RecipeError
from optimsyn.base.extensions import FORMS
from optimsyn.base.values import kind_of
from optimsyn.data.documents import label_value, text_value
from optimsyn.data.excerpt import excerpt
from optimsyn.data.files.rows import Row
from optimsyn.data.forms import Gold, QuestionForm, form_named, name_for_row, recorded
from optimsyn.data.forms.cells import AND, Faults
from optimsyn.data.records import Document, Question
from optimsyn.data.text import encodable, normalized

# What differs between the rows of one file whose header lacks a column.
_COLUMNS = re.compile(r"columns there: [^(]*")
_WORDS_OF_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Library(BaseModel):
    """The documents that questions may be asked with, by id and by their text.

    Attributes:
        id_of_text: Id of the first document with this normalised text.
        complete: False if the documents could not be read yet; then any document_id is accepted.
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
    """An open-book question names a document that is missing."""

    def __init__(self, document_id: str) -> None:
        super().__init__(f"its document {document_id!r} is not among the documents")
        self.document_id = document_id


def question_of(
    row: Row, library: Library, *, open_book: bool | None, subtask: str | None, form: str | None = None
) -> Question:
    """The question of one row; its form may read further fields.

    Fields of a row:
        question: Text.
        answer: The gold answer; for multiple choice the option's text, its letter, or (as a number) its index. Numbers
            are written out and true/false become yes/no.
        scale: `thousand`, `million`, `billion` or `percent`, for an answer that is a bare figure.
        spans: The items of an answer that has several, all of which count, as a list; or `answer` is that list and
            `answer_type` is `multi-span`, as in TAT-QA.
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
        form: Name of its form; None: multiple choice where it has `choices`, else free.

    Raises:
        RecipeError: There is no such form, or its `read_row` gives no `Gold`.
        UnknownDocumentError: It is asked open book, and its document is not in the library.
        DataError: The row has no usable question; the message has all faults, without the place.
    """
    values = row.values
    name = name_of(row)
    faults = Faults()
    kind = form or name_for_row(values)
    reader = form_named(kind)
    asked = None if reader.asks_in != "question" else faults.part(lambda: _required_text(values, "question"))
    gold = faults.part(lambda: _gold(kind, reader, values)) or Gold("")
    text = gold.question or asked or ""
    context, document_id = faults.part(lambda: _context(values, library, open_book)) or (None, None)
    part = faults.part(lambda: _subtask(values, subtask)) or ""
    accepted = gold.answers or (gold.answer,)
    details = json.dumps(gold.details, ensure_ascii=False)
    written = (name, text, *accepted, *(gold.choices or ()), details, context or "", document_id or "", part)
    if not all(map(encodable, (*written, label_value(values.get("group"))))):
        faults.found.append(DataError("holds half of a surrogate pair, which is not a character; fix or remove it"))
    # An unknown document counts only if nothing else is wrong.
    faults.found = [fault for fault in faults.found if not isinstance(fault, UnknownDocumentError)] or faults.found
    faults.raise_all()
    document = library.by_id.get(document_id or "")
    own_context = text_value(values.get("context"))
    group = (
        label_value(values.get("group"))
        or (document.group if document is not None else "")
        or (document_id or "")
        # Questions on the same text stay together, even if the text has no id.
        or (normalized(own_context)[:200] if own_context else "")
        or name
    )
    return Question(
        id=name,
        question=text,
        answer=gold.answer,
        answers=accepted,
        choices=gold.choices,
        answer_index=gold.answer_index,
        context=excerpt(context, text, accepted) if context is not None else None,
        document_id=document_id,
        group=group,
        subtask=part,
        form=recorded(kind),
        details=gold.details,
    )


def name_of(row: Row) -> str:
    """The id of a row's question, also of an unusable one."""
    return label_value(row.values.get("id")) or row.key


def _gold(kind: str, form: QuestionForm, values: Mapping[str, Any]) -> Gold:
    """The gold answer, read by the form; an exception in a custom form counts as a fault of the row."""
    try:
        gold: object = form.read_row(values)
        if isinstance(gold, Gold):
            json.dumps(gold.details)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"cannot be read by the form {kind!r} ({type(error).__name__}: {error})") from error
    if not isinstance(gold, Gold):
        raise RecipeError(f"{FORMS.field}: `read_row` of {kind} gave {gold!r:.200}; it returns a `Gold`")
    if form.asks_in != "question" and not gold.question:
        raise RecipeError(f"{FORMS.field}: `read_row` of {kind} gave a Gold without the `question` that it has to read")
    for name, texts in (("answer", [gold.answer]), ("answers", gold.answers), ("choices", gold.choices or ())):
        if not all(isinstance(text, str) for text in texts):
            given = getattr(gold, name)
            raise RecipeError(f"{FORMS.field}: `read_row` of {kind} gave a Gold whose {name} is {given!r}, not text")
    return gold


def told_once(faulty: Sequence[tuple[str, str]], total: int) -> list[str]:
    """The faults of rows as messages; what every row lacks, such as a column of the header, is told once.

    Args:
        faulty: Place and fault of each row that cannot be used.
        total: How many rows there are.
    """
    parts = [(where, fault.split(AND)) for where, fault in faulty]
    every: set[str] = set()
    if len(faulty) == total > 1:
        every = set.intersection(*({_COLUMNS.sub("", part) for part in of_row} for _, of_row in parts))
    messages = []
    for number, (where, of_row) in enumerate(parts):
        own = [part for part in of_row if _COLUMNS.sub("", part) not in every]
        if number == 0 and every:
            shared = AND.join(part for part in of_row if part not in own)
            messages.append(f"{where}: question {shared} (the same in all {total} rows)")
        messages += [f"{where}: question {AND.join(own)}"] if own else []
    return messages


def _required_text(values: Mapping[str, Any], field: str) -> str:
    value = values.get(field)
    if value is None:
        likely = next((column for column in sorted(values) if column.casefold() == field), "their_column")
        raise DataError(
            f"has no `{field}`; columns there: {', '.join(sorted(values)) or 'none'} (map one with `columns: "
            f"{{{field}: {likely}}}`)"
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


def _context(values: Mapping[str, Any], library: Library, open_book: bool | None) -> tuple[str | None, str | None]:
    """`(context, document_id)` of a row; the context is None when the question is asked closed book."""
    text = text_value(values.get("context"))
    text = text if text and text.strip() else None
    document_id = label_value(values.get("document_id")) or None
    if text is not None and document_id is None:
        document_id = library.id_of_text.get(normalized(text))
    wanted = open_book
    if wanted is None and values.get("open_book") is not None:
        wanted = _WORDS_OF_TRUTH.get(str(values["open_book"]).strip().lower())
        if wanted is None:
            raise DataError(f"open_book is {values['open_book']!r}, it must be true or false")
    raw = values.get("context")
    if wanted is None and text_value(raw) is None and raw not in (None, [], {}):
        raise DataError(
            f"`context` is {kind_of(raw)}, it must be text; map it with `columns: {{context: their.column}}`, or "
            "ask without it by `open_book: false`"
        )
    if wanted is None:
        wanted = text is not None
    if not wanted:
        return None, document_id
    if text is not None:
        return text, document_id
    if document_id is None:
        raise DataError("is asked open book but has neither `document_id` nor `context`")
    document = library.by_id.get(document_id)
    if document is None and not library.complete:
        return f"(text of document {document_id})", document_id
    if document is None:
        raise UnknownDocumentError(document_id)
    return document.text, document_id
