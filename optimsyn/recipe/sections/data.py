"""The sections `documents` and `questions` of a recipe."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from optimsyn.base.extensions import FORMS, READERS
from optimsyn.base.suggestions import did_you_mean
from optimsyn.base.text_files import text_encoding
from optimsyn.recipe.sections.models import Section
from optimsyn.recipe.sections.parts import named


class Source(Section):
    """Where documents or questions come from: a file or folder on disk, a Hugging Face hub dataset, or `embedded`."""

    path: str | None = Field(
        None,
        description="File of rows (JSONL, Parquet, CSV), one document or a folder of them (.md .txt .html .pdf .docx "
        "...), relative to the recipe's folder; or `embedded:DOMAIN`, texts that come with optimsyn (quickstart, "
        "medicine, law ...).",
    )
    hub: str | None = Field(None, description="Hugging Face dataset id, e.g. qiaojin/PubMedQA.")
    config: str | None = Field(None, description="Configuration name of the hub dataset.")
    split: str = Field("train", description="Split of the hub dataset.")
    revision: str | None = Field(None, description="Commit or tag of the hub dataset, for exact replay.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Our field -> their column; a dotted name reaches into nested columns, lists are joined.",
    )
    where: dict[str, str] = Field(default_factory=dict, description="Keep only rows whose column equals this value.")
    limit: int | None = Field(None, ge=1, description="Use at most this many rows (a seeded sample).")
    encoding: str | None = Field(
        None,
        description="Encoding of text files that are not UTF-8, such as cp1252; null: they are refused, and the "
        "message names a likely one.",
    )
    file_mb: int = Field(1000, ge=1, description="Larger files are refused, packed ones by their size unpacked.")
    follow_links: bool = Field(False, description="Read what symbolic links point at outside the folder.")
    text_suffixes: tuple[str, ...] = Field(
        (), description="Further endings of files that are text, such as `.log` or `.tex`; '' for files without one."
    )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return value if value is None else text_encoding(value)

    @field_validator("text_suffixes")
    @classmethod
    def _endings(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value and (not value.startswith(".") or value.count(".") > 1 or len(value) == 1):
                raise ValueError(f"{value!r} is not an ending of a file's name; write one like '.log', or '' for none")
        return tuple(value.lower() for value in values)

    @model_validator(mode="after")
    def _one_of(self) -> Source:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` and `hub`")
        return self


def as_path(value: Any) -> Any:
    """Lets a source be written as its path alone."""
    return {"path": value} if isinstance(value, str) else value


SourceField = Annotated[Source, BeforeValidator(as_path)]
_DOCUMENT_FIELDS = ("id", "title", "text", "source", "license", "group")
QUESTION_FIELDS = (
    *("id", "question", "answer", "answers", "choices", "answer_index", "label"),
    *("context", "document_id", "open_book", "group", "subtask", "scale", "spans", "answer_type"),
)
"""Fields of a row of questions, whatever its form."""


def unknown_column(name: str, source: Source, fields: tuple[str, ...]) -> str | None:
    """A message for a field of `columns` that is not read, such as a misspelled `group`; None without one."""
    for ours in source.columns:
        if ours not in fields:
            hint = did_you_mean(ours, fields, f"known here: {', '.join(fields)}", cutoff=0.5)
            return f"{name}.columns.{ours}: unknown field; {hint} (write our field first, then your column)"
    return None


def _check_columns(name: str, source: Source, fields: tuple[str, ...]) -> None:
    problem = unknown_column(name, source, fields)
    if problem is not None:
        raise ValueError(problem)


class FileLimits(Section):
    """Limits for converting one document file; `on_error` decides about a file beyond them."""

    inflated_mb: int = Field(200, ge=1, description="Size of a packed file (.docx, .epub ...) unpacked.")
    inflated_ratio: int = Field(200, ge=10, description="How many times larger unpacked, from 10 MB on.")
    nesting: int = Field(2, ge=0, description="Archives within archives, as embedded tables of a .docx are.")
    pages: int = Field(2000, ge=1, description="Pages of a PDF.")
    seconds: float = Field(120, gt=0, description="Time for one file; with `ocr`, for one page of a scan.")
    memory_mb: int = Field(2048, ge=64, description="Memory for one file, where the system can enforce it.")


# The names that people write instead of tesseract's.
_OCR_NAMES = dict(
    pair.split(":")
    for pair in (
        "en:eng de:deu ko:kor fr:fra es:spa it:ita pt:por nl:nld ja:jpn zh:chi_sim ru:rus pl:pol ar:ara tr:tur cs:ces"
    ).split()
)


def _joined(value: Any) -> Any:
    """Lets several languages be written as a list."""
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        value = "+".join(value)
    return value.replace(" ", "") if isinstance(value, str) else value


class Documents(Section):
    """The domain's texts and how they are cut into passages."""

    source: SourceField
    readers: dict[str, Annotated[str, named(READERS)]] = Field(
        {},
        description="Readers of your own: the ending of a file (`.tei`) or its whole name -> a registered reader, an "
        "entry point of `optimsyn.readers`, or `package.module:function`.",
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="Refuse unreadable, empty and repeated documents, all by name; or skip and count them."
    )
    limits: FileLimits = FileLimits()
    ocr: Annotated[str | None, BeforeValidator(_joined)] = Field(
        None,
        description="Languages in which tesseract reads scanned pages of PDFs and pictures (.png .jpg .tiff), such as "
        "`eng`, `deu+kor` or a list of them; null: pages without text are named and left out.",
    )
    passage_words: int = Field(160, ge=20, le=2000, description="Longest passage, in words.")
    min_words: int = Field(20, ge=1, description="Shorter passages are dropped (and counted as lost).")
    on_injection: Literal["flag", "drop"] = Field(
        "flag",
        description="Passages that talk to a language model (`ignore previous instructions`, control tokens): flag: "
        "they are counted, named in the run, and used; drop: they are dropped (and counted as lost).",
    )

    @field_validator("ocr")
    @classmethod
    def _languages(cls, value: str | None) -> str | None:
        if value is None:
            return None
        for name in value.split("+"):
            short = _OCR_NAMES.get(name.lower()[:2], "eng") if re.fullmatch(r"[A-Za-z]{2}(?:[-_]\w+)?", name) else None
            if short is not None or not re.fullmatch(r"\w{3,}(?:/\w+)?", name, re.ASCII):
                hint = short or "eng"
                raise ValueError(
                    f"{name!r} is no language of tesseract, whose names have three letters or more; write "
                    f"`ocr: {hint}`, or `ocr: {hint}+deu` for several (`tesseract --list-langs` shows them)"
                )
        return "+".join(dict.fromkeys(value.split("+")))

    @field_validator("readers")
    @classmethod
    def _patterns(cls, values: dict[str, str]) -> dict[str, str]:
        for pattern in values:
            if "." not in pattern or not pattern.strip(".") or "/" in pattern or "\\" in pattern or "*" in pattern:
                ending = re.sub(r".*[/\\*.]", "", pattern)
                hint = f"; did you mean '.{ending}'?" if ending else ""
                raise ValueError(
                    f"{pattern!r} is neither an ending of a file's name, like '.tei', nor a whole name, like "
                    f"'index.db'{hint}"
                )
        endings = [pattern.lower() for pattern in values if pattern.startswith(".")]
        twice = next((ending for ending in endings if endings.count(ending) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is there twice (upper and lower case are the same); remove one")
        return values

    @model_validator(mode="after")
    def _known_columns(self) -> Documents:
        _check_columns("source", self.source, _DOCUMENT_FIELDS)
        return self


class Questions(Section):
    """The expert questions: validation gives the influence its direction, test is held back until evaluate."""

    validation: SourceField
    test: Annotated[Source | None, BeforeValidator(as_path)] = Field(
        None, description="Held-back questions; when absent, `test_fraction` of the validation groups is held back."
    )
    test_fraction: float = Field(0.5, gt=0, lt=1, description="Share that is held back when `test` is absent.")
    open_book: bool | None = Field(
        None, description="Ask with the question's document as context; null: as the data says (`open_book`)."
    )
    validation_limit: int | None = Field(None, ge=1, description="Most validation questions to use (a seeded sample).")
    test_limit: int | None = Field(None, ge=1, description="Most test questions to use (a seeded sample).")
    form: Annotated[str | None, named(FORMS)] = Field(
        None,
        description="Form of the questions: `free`, `multiple_choice`, `true_false`, `figure`, `long_answer`, `list`, "
        "`code`, `reasoning`, `dialogue`, or one of your own, registered or as `package.module:name`; null: multiple "
        "choice where a row has `choices`, else free.",
    )
    show_form: bool = Field(
        True,
        description="Whether rubric model and generator are told the form of the validation questions (number of "
        "options, fixed verdicts, length of answers). false: a pair has the form that its rubric asks for, so that the "
        "rubrics have to find the one that helps.",
    )
    subtask: str | None = Field(None, description="Column that names a question's subtask; null: `subtask` or `all`.")

    @model_validator(mode="after")
    def _known_columns(self) -> Questions:
        if self.form is not None:
            return self  # a form's columns are known after its import
        fields = QUESTION_FIELDS if self.subtask is None else (*QUESTION_FIELDS, self.subtask)
        for name, source in (("validation", self.validation), ("test", self.test)):
            if source is not None:
                _check_columns(name, source, fields)
        return self
