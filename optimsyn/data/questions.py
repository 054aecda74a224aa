"""Expert questions as disjoint validation and test sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from optimsyn.base.counting import plural
from optimsyn.base.errors import DataError, RecipeError
from optimsyn.data.duplicates import contradicting, overlap
from optimsyn.data.files.file_tree import Fault
from optimsyn.data.files.rows import exploded, is_own_file, raise_problems, read_rows, sampled, shortened, under
from optimsyn.data.forms import form_named, form_of
from optimsyn.data.losses import Loss
from optimsyn.data.missing_documents import note
from optimsyn.data.question_rows import Library, UnknownDocumentError, name_of, question_of, told_once
from optimsyn.data.records import Document, Question
from optimsyn.data.splits import balanced_sample, split_by_group
from optimsyn.recipe.recipe import Questions, Source
from optimsyn.recipe.sections.data import QUESTION_FIELDS, unknown_column

_PLACE = re.compile(r".*?:(\d+)")
_FEW = 6
# Contradictions that are shown, and characters of each text in them.
_SHOWN, _CHARACTERS = 3, 60
OTHER = "reward.other_questions"


@dataclass(frozen=True)
class QuestionSets:
    """The two sets of expert questions.

    Attributes:
        validation: Give the influence its direction.
        test: Held back until evaluation.
        problems: Faults in the user's files, which `load_questions` refuses.
        astray: The warnings about missing documents.
    """

    validation: list[Question]
    test: list[Question]
    losses: list[Loss]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    astray: list[str] = field(default_factory=list)


def check_questions(
    config: Questions, source: Source, name: str, documents: Sequence[Document] | None, *, complete: bool = False
) -> tuple[list[str], list[str]]:
    """Faults and notes on the rows of one source, when the other one cannot be read yet."""
    reader = _Reader(config, Library.of(documents), 0, complete)
    reading = reader.read(source, name)
    _unique_ids(config, reading, None, reader.problems)
    return reader.problems, [*reading.astray, *_contradictions(reading)]


@dataclass
class _Reading:
    """The questions of one source, each with its place.

    Attributes:
        names: Place and id of every row in the user's files, also of unusable ones.
    """

    places: list[str]
    questions: list[Question]
    names: list[tuple[str, str]] = field(default_factory=list)
    astray: list[str] = field(default_factory=list)


def load_questions(
    config: Questions, documents: Sequence[Document], seed: int, *, complete: bool = False
) -> QuestionSets:
    """The validation and test questions of a recipe.

    Without a `test` source, whole groups (related documents) are held back until about `test_fraction` of the questions
    are. A test question that is also a validation question, word for word or nearly, is never kept: an exact repetition
    in the user's files is refused, everything else is dropped and listed as a loss.

    Args:
        config: The recipe's `questions` section.
        documents: For open-book questions. Pass `DocumentSet.library`, since questions on documents outside the sample
            are lost (and listed).
        seed: Draws splits and samples; the order of the groups does not matter.
        complete: As for `read_questions`.

    Raises:
        RecipeError: There is no form as `questions.form` names it.
        DataError: A source cannot be read, a row has no usable question, ids repeat, test and validation overlap, or
            nothing is left; names all problems.
    """
    sets = read_questions(config, documents, seed, complete=complete)
    raise_problems(sets.problems)
    return sets


def read_questions(
    config: Questions, documents: Sequence[Document] | None, seed: int, *, complete: bool = False
) -> QuestionSets:
    """Both sets with every problem, for `load_questions` and the preflight.

    Without `documents`, which cannot be read yet, any document_id is accepted; if they are `complete`, missing ones
    get a warning.

    Raises:
        RecipeError: There is no form as `questions.form` names it.
        DataError: A source as a whole cannot be read or split; includes the problems of the other one.
    """
    reader = _Reader(config, Library.of(documents), seed, complete)
    losses, problems = reader.losses, reader.problems
    unreadable: list[str] = []

    def read(source: Source, name: str) -> _Reading:
        try:
            return reader.read(source, name)
        except DataError as error:
            unreadable.append(str(error))
            return _Reading([], [])

    validation = read(config.validation, "questions.validation")
    test = read(config.test, "questions.test") if config.test is not None else None
    _unique_ids(config, validation, test, problems)
    if unreadable:
        raise DataError("\n".join([*unreadable, *shortened(problems)]))
    astray = [*validation.astray, *(test.astray if test is not None else ())]
    warnings = list(astray)
    _warn_repeats(validation, warnings)
    warnings += _contradictions(validation, *([test] if test is not None else ()))
    if problems or not validation.questions or (test is not None and not test.questions):
        held_back = test.questions if test is not None else []
        if test is not None and config.test != config.validation:
            # Report overlaps now, together with the other problems.
            apart = _Apart(config, validation, test, problems)
            apart.kept_from(validation.questions, held_back)
        problems += [] if problems else _nothing_left(validation, losses)
        return QuestionSets(validation.questions, held_back, losses, problems, warnings, astray)
    if test is None:
        validation_questions, held_back = split_by_group(validation.questions, config.test_fraction, seed)
        warnings += _far_from_wanted(len(held_back), len(validation.questions), config.test_fraction)
    else:
        validation_questions, held_back = validation.questions, test.questions
    apart = _Apart(config, validation, test, problems, losses, warnings)
    held_back = apart.kept_from(validation_questions, held_back)
    if not held_back and not problems:
        problems.append("questions.test: every test question is also a validation question; nothing is held back")
    return QuestionSets(
        balanced_sample(validation_questions, config.validation_limit, seed),
        balanced_sample(held_back, config.test_limit, seed),
        losses,
        problems,
        warnings,
        astray,
    )


def load_other_questions(config: Questions, source: Source, seed: int) -> tuple[list[Question], list[Loss]]:
    """Another domain's questions, and those that were lost: read as the validation questions, asked without a text.

    Args:
        config: The recipe's `questions` section: form, subtask and `validation_limit` are as there.
        source: Where they come from.
        seed: Draws the sample.

    Raises:
        RecipeError: There is no form as `questions.form` names it.
        DataError: The source cannot be read, a row has no usable question, or nothing is left; names all problems.
    """
    reader = _other_reader(config, source, seed)
    reading = reader.read(source, OTHER)
    if not reader.problems and not reading.questions:
        reader.problems.append(f"{OTHER}: no usable question is left; {len(reader.losses)} were lost")
    raise_problems(reader.problems)
    questions = [question.model_copy(update={"context": None}) for question in reading.questions]
    return balanced_sample(questions, config.validation_limit, seed), reader.losses


def check_other_questions(config: Questions, source: Source, seed: int) -> list[str]:
    """The faults in a user's file of another domain's questions, for the preflight."""
    reader = _other_reader(config, source, seed)
    reader.read(source, OTHER)
    return reader.problems


def _other_reader(config: Questions, source: Source, seed: int) -> _Reader:
    update = {"validation": source, "test": None, "open_book": False}
    # Its documents are not read: any that a question names will do.
    return _Reader(config.model_copy(update=update), Library.of(None), seed, complete=False)


@dataclass
class _Reader:
    """Reads the sources of a recipe's questions."""

    config: Questions
    library: Library
    seed: int
    complete: bool
    losses: list[Loss] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_columns(self.config)

    def read(self, source: Source, name: str) -> _Reading:
        """The questions of one source."""
        own, config = is_own_file(source), self.config
        torn: list[Fault] = []
        try:
            rows = exploded(read_rows(source, "questions.jsonl", torn=torn.append), source)
        except DataError as error:
            raise under(name, error) from None
        # Report faults outside the sample too: removing a row draws another sample.
        drawn = set(sampled(range(len(rows)), source.limit, self.seed))
        reading = _Reading([], [])
        faulty: list[tuple[str, str]] = []
        astray: dict[str, str] = {}
        elsewhere: dict[str, str] = {}
        for number, row in enumerate(rows):
            if number not in drawn and not own:
                continue
            reading.names += [(row.where, name_of(row))] if own else []
            try:
                question = question_of(
                    row, self.library, open_book=config.open_book, subtask=config.subtask, form=config.form
                )
            except UnknownDocumentError as error:
                if number in drawn:
                    self.losses.append(Loss(id=row.key, stage="questions", reason=str(error)))
                    astray[row.where] = error.document_id
            except DataError as error:
                if own:
                    faulty.append((row.where, str(error)))
                else:
                    self.losses.append(Loss(id=row.key, stage="questions", reason=str(error)))
            else:
                if number not in drawn:
                    continue
                reading.places.append(row.where)
                reading.questions.append(question)
                if question.document_id is not None and question.document_id not in self.library.by_id:
                    elsewhere[row.where] = question.document_id
        if self.complete:
            for wrong, used in ((astray, False), (elsewhere, True)):
                reading.astray += [note(name, len(drawn), wrong, self.library.by_id, used=used)] if wrong else []
        if not own:
            _rename_repeats(reading)
        total = len(rows) + len(torn)
        usable = len(faulty) + len(torn) < total or total < 3
        faults = sorted([*(fault.message for fault in torn), *told_once(faulty, len(rows))], key=_line)
        self.problems += (
            faults if usable else [*shortened(faults, most=_FEW), f"{name}: none of {total} rows is usable"]
        )
        return reading


def check_columns(config: Questions) -> None:
    """Refuses an unknown form, and `columns` that it does not read; without a form the recipe has checked them."""
    if config.form is None:
        return
    further = form_named(config.form).columns
    for name, source in (("validation", config.validation), ("test", config.test)):
        if source is not None:
            fields = (*QUESTION_FIELDS, *further, *([config.subtask] if config.subtask else []))
            problem = unknown_column(f"questions.{name}", source, fields)
            if problem is not None:
                raise RecipeError(problem)


def _line(fault: str) -> int:
    """The line number of a fault."""
    match = _PLACE.match(fault)
    return int(match.group(1)) if match is not None else 0


def _rename_repeats(reading: _Reading) -> None:
    """Numbers repeated ids of a hub dataset, which the user cannot fix."""
    seen: dict[str, int] = {}
    for position, question in enumerate(reading.questions):
        seen[question.id] = seen.get(question.id, 0) + 1
        if seen[question.id] > 1:
            name = f"{question.id}~{seen[question.id]}"
            reading.questions[position] = question.model_copy(update={"id": name})


def _unique_ids(config: Questions, validation: _Reading, test: _Reading | None, problems: list[str]) -> None:
    first: dict[str, str] = {}
    for reading in (validation, test) if test is not None else (validation,):
        read = [(where, question.id) for where, question in zip(reading.places, reading.questions, strict=True)]
        for where, name in reading.names or read:
            if name in first and first[name] != where:
                problems.append(f"{where}: id {name!r} is taken by {first[name]}; ids must be unique")
            elif name in first:
                problems.append(
                    f"{where}: is read as a validation and as a test question; set `where` on both sources so that "
                    "each takes its own rows, or leave questions.test out to hold back a part"
                )
            first.setdefault(name, where)
    # One source read twice without a filter has the same problem in every row.
    if config.test is not None and config.test == config.validation and len(problems) > 3:
        del problems[3:]


def _warn_repeats(validation: _Reading, warnings: list[str]) -> None:
    seen: dict[tuple[str, ...], str] = {}
    contradict = {later for _, later in contradicting(validation.questions)}
    for position, (where, question) in enumerate(zip(validation.places, validation.questions, strict=True)):
        asked, *below = form_of(question).parts(question)
        key = (asked.casefold(), question.context or "", *below)
        if key in seen and position not in contradict:
            warnings.append(f"{where}: the same validation question as {seen[key]}; it counts twice")
        seen.setdefault(key, where)


def _far_from_wanted(held_back: int, total: int, fraction: float) -> list[str]:
    """A sentence where whole groups are so large that far more or fewer questions are held back than was asked for."""
    if 2 / 3 <= held_back / (total * fraction) <= 3 / 2:
        return []
    return [
        f"questions.test_fraction: {fraction:.0%} of the questions were to be test questions, and {held_back} of "
        f"{total} are, since questions of one group, or else of one document, stay together; give the rows a finer "
        "`group`, or name questions of their own under questions.test"
    ]


def _contradictions(*readings: _Reading) -> list[str]:
    """A sentence for the first questions that are asked twice with different answers, and how many more there are."""
    places = [place for reading in readings for place in reading.places]
    questions = [question for reading in readings for question in reading.questions]
    found = [(a, b) for a, b in contradicting(questions) if places[a] != places[b]]
    lines = [
        f"{places[b]}: question {questions[b].id!r} ({_short(questions[b].question)}) repeats {questions[a].id!r} of "
        f"{places[a]}, and their answers contradict each other: {_short(questions[b].answer)} here, "
        f"{_short(questions[a].answer)} there; correct or remove one, or list both as `answers`"
        for a, b in found[:_SHOWN]
    ]
    more = len(found) - _SHOWN
    return [*lines, f"questions: and {more} more that contradict an earlier one"] if more > 0 else lines


def _short(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= _CHARACTERS else f"{words[:_CHARACTERS]}…")


def _nothing_left(validation: _Reading, losses: list[Loss]) -> list[str]:
    side = "questions.test" if validation.questions else "questions.validation"
    reason = f" ({losses[0].reason})" if losses else ""
    return [f"{side}: no usable question is left; {len(losses)} were lost{reason}"]


@dataclass
class _Apart:
    """Keeps the test questions apart from the validation questions.

    Attributes:
        test: As read; None without a `test` source.
        problems: Gets each question of the user's test file that is also a validation question.
        losses: Gets each question that is left out.
        warnings: Gets their number.
    """

    config: Questions
    validation: _Reading
    test: _Reading | None
    problems: list[str]
    losses: list[Loss] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def kept_from(self, validation: list[Question], held_back: list[Question]) -> list[Question]:
        """The held-back questions without those that are (nearly) validation questions."""
        dropped = set()
        own = self.config.test is not None and is_own_file(self.config.test)
        near = 0
        for second, first, word_for_word in overlap(validation, held_back):
            ours, theirs = held_back[second], validation[first]
            dropped.add(second)
            if own and self.test is not None and self.test.places[second] == self.validation.places[first]:
                continue  # one row read twice, reported for its id
            if word_for_word and own and self.test is not None:
                where = self.test.places[second]
                self.problems.append(
                    f"{where}: test question {ours.id!r} is also validation question {theirs.id!r} "
                    f"({self.validation.places[first]}): {ours.question[:80]!r}; remove it from one of them"
                )
                continue
            how = "the same as" if word_for_word else "nearly the same as"
            near += 1
            self.losses.append(Loss(id=ours.id, stage="split", reason=f"{how} validation question {theirs.id}"))
        if near:
            self.warnings.append(
                f"questions: {plural(near, 'test question')} {'is' if near == 1 else 'are'} (nearly) the same as "
                "validation questions and left out"
            )
        return [question for position, question in enumerate(held_back) if position not in dropped]
