"""Documents from JSONL, Parquet, CSV, a folder of files, a hub dataset, or the bundled ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimsyn.base.errors import DataError
from optimsyn.base.values import kind_of
from optimsyn.data.files.file_tree import HIDDEN, LEFT_BEHIND, Fault
from optimsyn.data.files.rows import ROW_SUFFIXES, Row, is_own_file, read_rows, resolve, shortened, under
from optimsyn.data.losses import Loss
from optimsyn.data.records import Document
from optimsyn.data.text import encodable, normalized
from optimsyn.recipe.bundled import EMBEDDED_PREFIX
from optimsyn.recipe.recipe import Documents, Source

_ALIASES = ("content", "contents", "body", "context", "passage", "markdown", "abstract", "document", "page_content")
_NAMED = 5
_SKIP_HINT = "Fix them, or set documents.on_error: skip to go on without them (each is counted and named)."
_FIELDS = ("text", "id", "title", "source", "license", "group")


@dataclass(frozen=True)
class DocumentSet:
    """The content of a documents source.

    Attributes:
        documents: The usable documents, in the order of the source, `limit` not yet applied.
        repeats: Documents with the text of an earlier one; questions may still name them.
        losses: Empty and repeated rows of a hub dataset, and all of `passed` and `skipped` except hidden files and
            leftovers of programs.
        problems: Faults in the user's files, which `load_document_set` refuses.
        passed: Ignored files of a folder: no documents, or of a kind whose extra is not installed.
        skipped: Unreadable, empty and repeated documents under `on_error: skip`, with the whole message.
        hint: Another way to deal with `problems`.
    """

    documents: list[Document]
    repeats: list[Document]
    losses: list[Loss]
    problems: list[str]
    passed: list[Loss] = field(default_factory=list)
    skipped: list[Loss] = field(default_factory=list)
    hint: str = ""

    @property
    def library(self) -> list[Document]:
        """All documents that open-book questions may name, also those without pairs."""
        return [*self.documents, *self.repeats]

    @property
    def remarks(self) -> list[str]:
        """Notes on skipped and ignored files, with numbers and names."""
        lines = []
        if self.skipped:
            total = len(self.skipped) + len(self.documents)
            head = f"documents: {len(self.skipped)} of {total} are skipped (documents.on_error: skip)"
            lines.append("\n  ".join([head, *shortened([loss.detail for loss in self.skipped])]))
        for reason in dict.fromkeys(loss.reason for loss in self.passed):
            named = [loss.id for loss in self.passed if loss.reason == reason]
            more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
            lines.append(f"documents: {len(named)} passed over: {', '.join(named[:_NAMED])}{more} ({reason})")
        return lines


def load_document_set(config: Documents) -> DocumentSet:
    """All documents of a recipe, with losses.

    A row has `text`, and may have `id`, `title`, `source`, `license` and `group`. Line ends become uniform; otherwise
    the text is unchanged, and character offsets of passages point into it. Ids are unique; `group` is the id where the
    row names none.

    Raises:
        DataError: The source cannot be read, or holds empty or repeated documents or repeated ids; all are named.
    """
    try:
        document_set = read_documents(config)
    except DataError as error:
        raise under("documents.source", error) from None
    if document_set.problems:
        raise DataError(
            "\n".join([*shortened(document_set.problems), *([document_set.hint] if document_set.hint else [])])
        )
    return document_set


def read_documents(config: Documents, *, convert: bool = True) -> DocumentSet:
    """All documents of the source with every problem, for `load_document_set` and the preflight.

    `convert=False` leaves out PDF, office and mail files (the preflight's quick look).
    """
    source = config.source
    losses: list[Loss] = []
    passed: list[Loss] = []
    faults: list[Fault] = []
    problems: list[str] = []
    place = files_of(config)
    if place is not None:
        from optimsyn.data.files.folder import read_folder

        contents = read_folder(place, config, convert=convert)
        passed, documents, faults = contents.passed, contents.documents, contents.faults
    else:
        rows = read_rows(source, torn=faults.append)
        if all("text" not in row.values for row in rows):
            problems, rows = [_no_text(rows)], []
        documents = _documents_of(rows, is_own_file(source), losses, faults)
    unique, repeats = _without_repeats(documents, is_own_file(source), losses, faults)
    skipped: list[Loss] = []
    if config.on_error == "skip":
        for fault in faults:
            reason = f"skipped: {fault.reason}"
            skipped.append(Loss(id=fault.name, stage="documents", reason=reason, detail=fault.message))
    else:
        problems = [*(fault.message for fault in faults), *problems]
    if not unique and not problems and convert:
        problems = [_nothing_left(source, skipped)]
    hint = _SKIP_HINT if len(faults) > len(skipped) and unique else ""
    # Files that were never meant as documents are no losses.
    lost = [*losses, *(loss for loss in passed if loss.reason not in (LEFT_BEHIND, HIDDEN)), *skipped]
    return DocumentSet(unique, repeats, lost, problems, passed, skipped, hint)


def files_of(config: Documents) -> Path | None:
    """The folder or single document file of the source; None for rows."""
    source = config.source
    if source.path is None or source.path.startswith(EMBEDDED_PREFIX):
        return None
    place = resolve(source.path)
    if place.is_dir() or place.suffix.lower() not in ROW_SUFFIXES:
        return place
    if config.readers:
        from optimsyn.data.files.readers import named_readers, reader_for

        return place if reader_for(place, named_readers(config.readers)) is not None else None
    return None


def _nothing_left(source: Source, skipped: list[Loss]) -> str:
    name = source.path or source.hub
    if not skipped:
        return f"documents.source: {name}: holds no document with text; name a file, folder or dataset that does"
    count = "the only document" if len(skipped) == 1 else f"all {len(skipped)} documents"
    return "\n  ".join(
        [f"documents.source: {name}: {count} would be skipped:", *shortened([loss.detail for loss in skipped])]
    )


def text_value(value: Any) -> str | None:
    """The text of a cell, with uniform line ends.

    A list of texts is joined by blank lines; a table (a list of rows of cells) becomes lines of cells between bars.
    None for anything but these and strings.
    """
    if isinstance(value, str):
        return value.replace("\r\n", "\n").replace("\r", "\n")
    if not isinstance(value, list) or not value:
        return None
    if _is_table(value):
        return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in value)
    parts = [text_value(item) for item in value]
    return None if any(part is None for part in parts) else "\n\n".join(part for part in parts if part)


def _is_table(value: list[Any]) -> bool:
    if not all(isinstance(row, list) and row for row in value) or len({len(row) for row in value}) != 1:
        return False
    # One row alone is a list of paragraphs inside a list, not a table.
    return len(value) > 1 and all(isinstance(cell, str | int | float) for row in value for cell in row)


def label_value(value: Any) -> str:
    """A short field such as an id, title or group as text."""
    if value is None or isinstance(value, bool | dict | list):
        return ""
    return str(value).strip()


def _no_text(rows: list[Row]) -> str:
    """One message instead of the same one for every row."""
    columns = sorted({column for row in rows for column in row.values})
    likely = next((alias for alias in _ALIASES if alias in columns), "their_column")
    return (
        f"{rows[0].where}: no row has a `text`; columns there: {', '.join(columns)}. Name the right one in the "
        f"recipe: documents.source.columns: {{text: {likely}}}"
    )


def _documents_of(rows: list[Row], own: bool, losses: list[Loss], faults: list[Fault]) -> list[tuple[str, Document]]:
    documents = []
    for row in rows:
        values = row.values
        text = text_value(values.get("text"))
        name = label_value(values.get("id")) or row.key
        if text is None and "text" not in values:
            reason = "has no `text`"
        elif text is None:
            reason = f"`text` is {kind_of(values['text'])}, it must be text"
        elif not text.strip():
            reason = "`text` is empty"
        elif broken := [name for name in _FIELDS if not encodable(text if name == "text" else str(values.get(name)))]:
            reason = f"`{broken[0]}` holds half of a surrogate pair, which is not a character; fix or remove it"
        else:
            group = label_value(values.get("group")) or name
            document = Document(
                id=name,
                title=label_value(values.get("title")),
                text=text,
                source=label_value(values.get("source")),
                license=label_value(values.get("license")),
                group=group,
            )
            documents.append((row.where, document))
            continue
        if own:
            message = f"{row.where}: document {reason}; give it a text or remove the row"
            faults.append(Fault(name, message, reason.partition(";")[0]))
        else:
            losses.append(Loss(id=name, stage="documents", reason=reason))
    return documents


def _without_repeats(
    documents: list[tuple[str, Document]], own: bool, losses: list[Loss], faults: list[Fault]
) -> tuple[list[Document], list[Document]]:
    """Finds repeated ids and texts: faults in the user's files, merged and counted in hub datasets.

    Hub datasets of questions, such as SQuAD, repeat a text for every question on it, often with one id.
    """
    by_id: dict[str, str] = {}
    by_text: dict[str, tuple[str, str]] = {}
    unique: list[Document] = []
    repeats: list[Document] = []
    for where, document in documents:
        key = normalized(document.text)
        if key in by_text:
            first, first_id = by_text[key]
            if own:
                message = f"{where}: the same text as {first} (but for case and white space); remove one"
                faults.append(Fault(document.id, message, "the text of another"))
            else:
                losses.append(Loss(id=document.id, stage="documents", reason=f"same text as {first_id}"))
            repeats.append(document)
            continue
        by_text[key] = (where, document.id)
        if document.id in by_id:
            if own:
                message = f"{where}: id {document.id!r} is taken by {by_id[document.id]}; ids must be unique"
                faults.append(Fault(document.id, message, "id is taken"))
                continue
            document = document.model_copy(update={"id": _free_id(document.id, by_id)})
        by_id[document.id] = where
        unique.append(document)
    return unique, [document for document in repeats if document.id not in by_id]


def _free_id(name: str, taken: dict[str, str]) -> str:
    number = 2
    while f"{name}~{number}" in taken:
        number += 1
    return f"{name}~{number}"
