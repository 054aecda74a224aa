"""Checks the seed corpus of the writer: form, quotes, answers, repetition, balance.

    python tools/check_writer_corpus.py                 # the whole corpus; exits with 1 on faults
    python tools/check_writer_corpus.py --file F.jsonl  # one subject, without the overall balance

A subject is a file `optimsyn/data/bundled/writer/<subject>.jsonl` with a passage per line. The subjects in German and
Korean stand in `benchmarks/writer_languages`, further English ones in `benchmarks/writer_practice`; each language is
balanced for itself. `benchmarks/writer_forms` has examples of the other forms of question
(`tools/writer_form_corpus.py`).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from writer_form_corpus import faults_of_form_corpus, form_summary, is_form_corpus
from writer_forms import FORMS, VERDICT, Written
from writer_rules import DOMAINS, Strict, content, faults_of_likeness, faults_of_lines, faults_of_repetition, plain

from optimsyn.data.records import Rubric

FOLDER = Path(__file__).parents[1] / "optimsyn" / "data" / "bundled" / "writer"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FURTHER = [BENCHMARKS / name for name in ("writer_languages", "writer_practice", "writer_forms")]
# Letters at the start of a word that must agree: endings and particles may differ between passage and answer. English
# words are compared whole.
STEMS = {"de": 4, "ko": 2}
# Limits for the overall balance.
LEAST_EXAMPLES, LEAST_SUBJECTS, LEAST_SHARE, MOST_SHARE = 1000, 15, 0.05, 0.16


class Example(Strict):
    """A rubric with a pair that follows it."""

    guiding_text: str = Field(min_length=20, max_length=600)
    form: Literal[tuple(FORMS)]  # type: ignore[valid-type]
    rubric: Rubric
    quote: str
    question: str = Field(min_length=10, max_length=300)
    answer: str = Field(min_length=1, max_length=500)
    options: tuple[str, ...] = ()


class Entry(Strict):
    """A passage with its contrasting examples."""

    id: str
    subject: str
    domain: Literal[DOMAINS]  # type: ignore[valid-type]
    title: str
    passage: str
    examples: tuple[Example, ...] = Field(min_length=3, max_length=5)
    language: Literal["en", "de", "ko"] = "en"


def missing(text: str, entry: Entry) -> set[str]:
    """The content words of a text that the passage lacks."""
    size, there = STEMS.get(entry.language), content(entry.passage, entry.language)
    if size is None:
        return content(text, entry.language) - there
    stems = {each[:size] for each in there}
    return {word for word in content(text, entry.language) if not any(s.startswith(word[:size]) for s in stems)}


def faults_of(entry: Entry) -> Iterator[str]:
    """The faults of one passage."""
    words = len(entry.passage.split())
    if not 50 <= words <= 260:
        yield f"the passage has {words} words; it must have 50 to 260"
    forms = Counter(example.form for example in entry.examples)
    for form, count in forms.items():
        if count > 1:
            yield f"{count} examples have the form {form}; they must differ"
    texts = [plain(example.question) for example in entry.examples]
    if len(set(texts)) < len(texts):
        yield "two questions are the same"
    for place, example in enumerate(entry.examples):
        yield from (f"example {place} ({example.form}): {fault}" for fault in faults_of_example(entry, example))
    yield from faults_of_likeness([example.rubric for example in entry.examples], entry.language)


def faults_of_example(entry: Entry, example: Example) -> Iterator[str]:
    """The faults of one example."""
    if example.quote not in entry.passage:
        yield f"the quote is not in the passage: {example.quote[:60]!r}"
    pair = Written(entry.passage, example.question, example.answer, example.options)
    if not FORMS[example.form](pair):
        yield f"the pair does not have this form: {example.question!r} {example.answer!r} {example.options}"
    if bool(example.options) != (example.form == "options"):
        yield "options belong to the form `options`, and only there"
    if not example.question.rstrip().endswith("?"):
        yield f"the question does not end in a question mark: {example.question!r}"
    mention = (
        r"\b(passage|text above|according to the text|this paragraph|laut (dem )?text|(im|diesem) (text|abschnitt))\b"
        r"|본문|지문|윗?글에"
    )
    if re.search(mention, example.question, re.IGNORECASE):
        yield "the question mentions the passage; it must stand alone"
    if len(example.question.split()) > 35:
        yield "the question has over 35 words"
    if example.form not in ("verdict", "cause", "definition", "explanation", "comparison"):
        lacking = missing(example.answer, entry)
        if lacking:
            yield f"the answer has words that the passage lacks: {sorted(lacking)}"
    else:
        remark = VERDICT.sub("", example.answer, count=1) if example.form == "verdict" else example.answer
        if len(missing(remark, entry)) > 0.5 * len(content(remark, entry.language)):
            yield "over half of the answer's words do not stand in the passage"
    yield from faults_of_lines(example.rubric)
    rubric_text = plain(" ".join(example.rubric.model_dump().values()))
    if example.form not in ("verdict",) and len(plain(example.answer)) > 3 and plain(example.answer) in rubric_text:
        yield "the rubric gives the answer away"


def read(file: Path) -> Iterator[tuple[int, Entry | str]]:
    """The passages of a file with their line numbers; an error text for an invalid line."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            yield number, Entry.model_validate(json.loads(line))
        except (json.JSONDecodeError, ValidationError) as error:
            yield number, str(error).replace("\n", " ")[:400]


def faults_of_size(entries: list[Entry]) -> Iterator[str]:
    """What the bundled corpus lacks in examples, subjects and domains."""
    examples = sum(len(entry.examples) for entry in entries)
    if examples < LEAST_EXAMPLES:
        yield f"{examples} examples; there must be at least {LEAST_EXAMPLES}"
    subjects = {entry.subject for entry in entries}
    if len(subjects) < LEAST_SUBJECTS:
        yield f"{len(subjects)} subjects; there must be at least {LEAST_SUBJECTS}"
    yield from (f"no passage of {domain}" for domain in DOMAINS if domain not in {e.domain for e in entries})


def faults_of_all(entries: list[Entry]) -> Iterator[str]:
    """The faults in balance and repetition of all passages of a language."""
    examples = [example for entry in entries for example in entry.examples]
    for form in FORMS:
        share = sum(example.form == form for example in examples) / max(1, len(examples))
        if not LEAST_SHARE <= share <= MOST_SHARE:
            yield f"{share:.1%} of the examples have the form {form}; allowed: {LEAST_SHARE:.0%} to {MOST_SHARE:.0%}"
    texts = {
        "passage": [entry.passage for entry in entries],
        "question": [example.question for example in examples],
        "id": [entry.id for entry in entries],
    }
    rubrics, guiding = [example.rubric for example in examples], [example.guiding_text for example in examples]
    yield from faults_of_repetition(texts, rubrics, guiding)


def summary(label: str, entries: list[Entry]) -> str:
    """A line with the counts of passages, examples and forms."""
    examples = [example for entry in entries for example in entry.examples]
    forms = ", ".join(f"{form} {count}" for form, count in Counter(e.form for e in examples).most_common())
    return f"{label}: {len(entries)} passages, {len(examples)} examples; {forms}\n"


def main() -> int:
    """Prints all faults; returns 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, action="append", help="only these files")
    args = parser.parse_args()
    files = args.file or [file for folder in (FOLDER, *FURTHER) for file in sorted(folder.glob("*.jsonl"))]
    of_forms = [file for file in files if is_form_corpus(file)]
    files = [file for file in files if file not in of_forms]
    if of_forms:
        sys.stdout.write(form_summary(of_forms))
    entries, faults = [], list(faults_of_form_corpus(of_forms, whole=not args.file))
    for file in files:
        for number, entry in read(file):
            if isinstance(entry, str):
                faults.append(f"{file.name}:{number}: {entry}")
            else:
                entries.append(entry)
                faults += [f"{file.name}:{number}: {fault}" for fault in faults_of(entry)]
    if not args.file:
        faults += faults_of_size([entry for entry in entries if entry.language == "en"])
        for language in sorted({entry.language for entry in entries}):
            of_language = [entry for entry in entries if entry.language == language]
            faults += [f"{language}: {fault}" for fault in faults_of_all(of_language)]
            sys.stdout.write(summary(language, of_language))
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    sys.stdout.write(summary(f"{len(faults)} faults", entries))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
