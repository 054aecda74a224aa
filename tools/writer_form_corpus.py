"""The corpus of the forms that have keys of their own (`benchmarks/writer_forms`): its rows, its samples, its faults.

Every pair has to pass the checks of its form, as a pair of a run does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from writer_rules import DOMAINS, Strict, faults_of_likeness, faults_of_lines, faults_of_repetition, plain

from optimsyn.base.errors import ReplyError
from optimsyn.data.forms import QuestionForm, form_named
from optimsyn.data.forms.code import Code
from optimsyn.data.forms.dialogue import Dialogue
from optimsyn.data.records import Pair, Passage, Rubric
from optimsyn.data.text import word_count
from optimsyn.programs.checker import Checker
from optimsyn.programs.pair_reader import read_pair
from optimsyn.programs.prompts.writer_prompts import form_reply, pair_prompt, rubric_prompt, rubric_reply
from optimsyn.recipe.sections.synthesis import Checks

# The least number of examples of each form.
LEAST = {
    "long_answer": 35,
    "code": 35,
    "dialogue": 35,
    "reasoning": 35,
    "list": 25,
    "figure": 25,
    "true_false": 25,
}
LEAST_PASSAGES, LEAST_SUBJECTS = 40, 8
# Words of a long answer.
SHORTEST, LONGEST = 35, 80


class FormExample(Strict):
    """A rubric with a pair of a built-in form.

    Attributes:
        guiding_text: What the rubric follows.
        form: The form's name in a recipe.
        language: Of code, where all questions of an exam have the same; else `values` says it.
        rubric: The rubric.
        quote: A sentence of the passage, word for word.
        values: The texts by key of the reply, items one a line.
    """

    guiding_text: str = Field(min_length=20, max_length=600)
    form: Literal[tuple(LEAST)]  # type: ignore[valid-type]
    language: str = ""
    rubric: Rubric
    quote: str
    values: dict[str, str]

    def question_form(self) -> QuestionForm:
        """The form as a run fits it to questions of this kind."""
        if self.form == "code":
            return Code(self.language)
        if self.form == "dialogue":
            return Dialogue(sum(name.startswith("question") for name in self.values))
        return form_named(self.form)

    def reply(self) -> str:
        """What the writer answers."""
        return form_reply(self.question_form(), self.quote, self.values)


class FormEntry(Strict):
    """A passage with examples of several forms."""

    id: str
    subject: str
    domain: Literal[DOMAINS]  # type: ignore[valid-type]
    title: str
    passage: str
    examples: tuple[FormExample, ...] = Field(min_length=4, max_length=7)


def is_form_corpus(file: Path) -> bool:
    """Whether a file of examples is one of these: its pairs have `values` by key."""
    with file.open(encoding="utf-8") as lines:
        return '"values": {' in next(lines, "")


def form_entries(files: Sequence[Path]) -> list[FormEntry]:
    """The passages of files.

    Raises:
        ValueError: A line is no passage; the message names it.
    """
    entries = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entries.append(FormEntry.model_validate(json.loads(line)))
            except (json.JSONDecodeError, ValidationError) as error:
                raise ValueError(f"{file.name}:{number}: {error}"[:400].replace("\n", " ")) from error
    return entries


def form_samples(entry: FormEntry, kind: str) -> list[dict[str, str]]:
    """Prompt and completion of each example's rubric and pair; as in a run, both prompts name the form.

    Args:
        entry: The passage.
        kind: `lines`, or `json` to compare.
    """
    rows = []
    for example in entry.examples:
        form, rubric = example.question_form().described(), example.rubric
        as_lines = kind == "lines"
        pair = {"quote": example.quote, **example.values}
        rows += [
            {
                "prompt": rubric_prompt(entry.passage, example.guiding_text, form),
                "completion": rubric_reply(rubric) if as_lines else _json(rubric.model_dump()),
            },
            {
                "prompt": pair_prompt(entry.passage, rubric, form),
                "completion": example.reply() if as_lines else _json(pair),
            },
        ]
    return rows


def faults_of_form_corpus(files: Sequence[Path], *, whole: bool) -> Iterator[str]:
    """The faults of the files, a line each.

    Args:
        files: Of this corpus.
        whole: Whether they are all, so that sizes and repetition count.
    """
    if not files:
        return
    try:
        entries = form_entries(files)
    except ValueError as error:
        yield str(error)
        return
    checker = Checker(Checks())
    for entry in entries:
        yield from (f"{entry.id}: {fault}" for fault in _faults_of(entry, checker))
    if whole:
        yield from (f"forms: {fault}" for fault in _faults_of_all(entries))


def form_summary(files: Sequence[Path]) -> str:
    """A line with the counts of passages, subjects and forms; empty where a file cannot be read."""
    try:
        entries = form_entries(files)
    except ValueError:
        return ""
    counts = Counter(example.form for entry in entries for example in entry.examples)
    forms = ", ".join(f"{form} {count}" for form, count in counts.most_common())
    subjects = len({entry.subject for entry in entries})
    return f"forms: {len(entries)} passages of {subjects} subjects, {counts.total()} examples; {forms}\n"


def _faults_of(entry: FormEntry, checker: Checker) -> Iterator[str]:
    words = len(entry.passage.split())
    if not 60 <= words <= 150:
        yield f"the passage has {words} words; it must have 60 to 150"
    forms = Counter(example.form for example in entry.examples)
    yield from (
        f"{count} examples have the form {form}; they must differ" for form, count in forms.items() if count > 1
    )
    yield from faults_of_likeness([example.rubric for example in entry.examples])
    passage = Passage(
        id=entry.id,
        document_id=entry.id,
        text=entry.passage,
        title=entry.title,
        char_start=0,
        char_end=len(entry.passage),
    )
    for example in entry.examples:
        yield from (f"{example.form}: {fault}" for fault in _faults_of_example(example, passage, checker))


def _faults_of_example(example: FormExample, passage: Passage, checker: Checker) -> Iterator[str]:
    if example.quote not in passage.text:
        yield f"the quote is not in the passage: {example.quote[:60]!r}"
    form, values = example.question_form(), example.values
    unknown = set(values) - {key.name for key in form.reply_keys()}
    if unknown:
        yield f"values.{min(unknown)} is no key of this form"
    try:
        read = read_pair(example.reply(), form)
        made = form.content(read, 0)
    except ReplyError as error:
        yield f"it is not read back: {error}"
        return
    for name, value in values.items():
        if plain(read.get(name, "")) != plain(value):
            yield f"values.{name} is read back as {read.get(name, '')!r}"
    pair = Pair(
        id=passage.id,
        question=made.question,
        answer=made.answer,
        details=made.details,
        form=example.form,
        quote=example.quote,
        passage_id=passage.id,
    )
    yield from (f"{name}: {reason}" for name, reason in checker.check(pair, passage).reasons.items())
    if example.form == "long_answer" and not SHORTEST <= word_count(pair.answer) <= LONGEST:
        yield f"the answer has {word_count(pair.answer)} words; it must have {SHORTEST} to {LONGEST}"
    if example.form == "code" and "syntax_checked" in made.details and not made.details["syntax_checked"]:
        yield "its language is none whose syntax is checked"
    yield from faults_of_lines(example.rubric)
    answer, rubric = plain(pair.answer), plain(" ".join(example.rubric.model_dump().values()))
    if example.form != "true_false" and len(answer) > 3 and f" {answer} " in f" {rubric} ":
        yield "the rubric gives the answer away"


def _faults_of_all(entries: Sequence[FormEntry]) -> Iterator[str]:
    examples = [example for entry in entries for example in entry.examples]
    counts = Counter(example.form for example in examples)
    for form, least in LEAST.items():
        if counts[form] < least:
            yield f"{counts[form]} examples of {form}; there must be at least {least}"
    if len(entries) < LEAST_PASSAGES or len({entry.subject for entry in entries}) < LEAST_SUBJECTS:
        yield f"there must be at least {LEAST_PASSAGES} passages of {LEAST_SUBJECTS} subjects"
    yield from (f"no passage of {domain}" for domain in DOMAINS if domain not in {entry.domain for entry in entries})
    verdicts = Counter(example.values["answer"] for example in examples if example.form == "true_false")
    if verdicts and 3 * min(verdicts["true"], verdicts["false"]) < verdicts.total():
        yield f"{verdicts['true']} statements are true and {verdicts['false']} false; a third at least must be either"
    texts = {
        "passage": [entry.passage for entry in entries],
        "question": [plain(example.values["question"]) for example in examples],
        "id": [entry.id for entry in entries],
    }
    rubrics, guiding = [example.rubric for example in examples], [example.guiding_text for example in examples]
    yield from faults_of_repetition(texts, rubrics, guiding)


def _json(value: dict[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False)
