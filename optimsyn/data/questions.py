"""Expert questions as validation and test sets that share nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from optimsyn.data.dedup import overlap
from optimsyn.data.losses import Loss
from optimsyn.data.question_rows import Library, UnknownDocumentError, question_of
from optimsyn.data.records import Document, Question
from optimsyn.data.sources import exploded, is_own_file, raise_problems, read_rows, sampled
from optimsyn.data.splits import balanced_sample, split_by_group
from optimsyn.errors import DataError
from optimsyn.recipe import Questions, Source


@dataclass(frozen=True)
class QuestionSets:
    """The two sets of expert questions.

    Attributes:
        validation: Give the influence its direction.
        test: Held back until evaluation.
        losses: Rows that went no further, with the reason.
        problems: Faults in the user's own files, which `load_questions` refuses.
        warnings: What a person may want to know.
    """

    validation: list[Question]
    test: list[Question]
    losses: list[Loss]
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_questions(
    config: Questions, source: Source, name: str, documents: Sequence[Document] | None, *, complete: bool = False
) -> list[str]:
    """The faults in the rows of one source alone, when the other one cannot be read yet.

    Args:
        config: The recipe's `questions` section.
        source: Its `validation` or `test`.
        name: The recipe field, for messages.
        documents: As for `read_questions`.
        complete: As for `read_questions`.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    problems: list[str] = []
    reading = _read(source, name, config, Library.of(documents), 0, complete, [], problems, [])
    _unique_ids(config, reading, None, problems)
    return problems


@dataclass
class _Reading:
    """The questions of one source, each with its place."""

    places: list[str]
    questions: list[Question]


def load_questions(config: Questions, documents: Sequence[Document], seed: int) -> QuestionSets:
    """The validation and test questions of a recipe.

    Without a `test` source, whole groups (documents and their kin) are held back until about `test_fraction` of the
    questions are. A test question that is also a validation question, word for word or nearly, is never kept: in a
    user's own files the former is refused, everything else is dropped and listed as a loss.

    Args:
        config: The recipe's `questions` section.
        documents: Looked up for open-book questions. Pass `load_documents(..., everything=True)` so that questions
            about documents outside the sample keep their text; else they are lost (and listed).
        seed: Draws splits and samples; the same seed gives the same sets whatever the order of the groups.

    Raises:
        DataError: A source cannot be read, a row holds no usable question, ids repeat, test and validation overlap, or
            nothing is left; all problems are named.
    """
    sets = read_questions(config, documents, seed)
    raise_problems(sets.problems)
    return sets


def read_questions(
    config: Questions, documents: Sequence[Document] | None, seed: int, *, complete: bool = False
) -> QuestionSets:
    """Both sets with every problem, for `load_questions` and the preflight.

    Args:
        config: The recipe's `questions` section.
        documents: Looked up for open-book questions; None: not readable yet, any document_id is believed.
        seed: Draws splits and samples.
        complete: All documents of the source were given, so a question whose document is missing is warned of.

    Raises:
        DataError: A source as a whole cannot be read, or cannot be split.
    """
    library = Library.of(documents)
    losses: list[Loss] = []
    problems: list[str] = []
    warnings: list[str] = []

    def read(source: Source, name: str) -> _Reading:
        return _read(source, name, config, library, seed, complete, losses, problems, warnings)

    validation = read(config.validation, "questions.validation")
    test = read(config.test, "questions.test") if config.test is not None else None
    _unique_ids(config, validation, test, problems)
    _warn_repeats(validation, warnings)
    if problems or not validation.questions or (test is not None and not test.questions):
        problems += [] if problems else _nothing_left(validation, losses)
        held_back = test.questions if test is not None else []
        return QuestionSets(validation.questions, held_back, losses, problems, warnings)
    if test is None:
        kept, held_back = split_by_group(validation.questions, config.test_fraction, seed)
    else:
        kept, held_back = validation.questions, test.questions
    held_back = _without_overlap(config, validation, test, kept, held_back, losses, problems, warnings)
    if not held_back and not problems:
        problems.append("questions.test: every test question is also a validation question; nothing is held back")
    return QuestionSets(
        balanced_sample(kept, config.validation_limit, seed),
        balanced_sample(held_back, config.test_limit, seed),
        losses,
        problems,
        warnings,
    )


def _read(
    source: Source,
    name: str,
    config: Questions,
    library: Library,
    seed: int,
    complete: bool,
    losses: list[Loss],
    problems: list[str],
    warnings: list[str],
) -> _Reading:
    own = is_own_file(source)
    rows = sampled(exploded(read_rows(source, "questions.jsonl"), source), source.limit, seed)
    reading = _Reading([], [])
    faults: list[str] = []
    astray: list[str] = []
    for row in rows:
        try:
            question = question_of(row, library, open_book=config.open_book, subtask=config.subtask)
        except UnknownDocumentError as error:
            losses.append(Loss(id=row.key, stage="questions", reason=str(error)))
            astray.append(f"{row.where} ({error})")
        except DataError as error:
            if own:
                faults.append(f"{row.where}: question {error}")
            else:
                losses.append(Loss(id=row.key, stage="questions", reason=str(error)))
        else:
            reading.places.append(row.where)
            reading.questions.append(question)
    if complete and own and astray:
        warnings.append(
            f"{name}: {len(astray)} of {len(rows)} questions are asked with a document that is not there and are left "
            f"out, first {astray[0]}; mend their document_id or add the documents"
        )
    if not own:
        _rename_repeats(reading)
    problems += faults if len(faults) < len(rows) or len(rows) < 3 else [*faults[:3], f"{name}: no row is usable"]
    return reading


def _rename_repeats(reading: _Reading) -> None:
    """Repeated ids of a hub dataset get a number; nobody can mend them there."""
    seen: dict[str, int] = {}
    for position, question in enumerate(reading.questions):
        seen[question.id] = seen.get(question.id, 0) + 1
        if seen[question.id] > 1:
            name = f"{question.id}~{seen[question.id]}"
            reading.questions[position] = question.model_copy(update={"id": name})


def _unique_ids(config: Questions, validation: _Reading, test: _Reading | None, problems: list[str]) -> None:
    first: dict[str, str] = {}
    for reading in (validation, test):
        for where, question in zip(reading.places, reading.questions, strict=True) if reading is not None else ():
            if question.id in first and first[question.id] != where:
                problems.append(f"{where}: id {question.id!r} is taken by {first[question.id]}; ids must be unique")
            elif question.id in first:
                problems.append(
                    f"{where}: is read as a validation and as a test question; set `where` on both sources so that "
                    "each takes its own rows, or leave questions.test out to hold back a part"
                )
            first.setdefault(question.id, where)
    # One source read twice without a filter says the same for every row.
    if config.test is not None and config.test == config.validation and len(problems) > 3:
        del problems[3:]


def _warn_repeats(validation: _Reading, warnings: list[str]) -> None:
    seen: dict[tuple[str, str, tuple[str, ...]], str] = {}
    for where, question in zip(validation.places, validation.questions, strict=True):
        key = (question.question.casefold(), question.context or "", question.choices or ())
        if key in seen:
            warnings.append(f"{where}: the same validation question as {seen[key]}; it counts twice")
        seen.setdefault(key, where)


def _nothing_left(validation: _Reading, losses: list[Loss]) -> list[str]:
    side = "questions.test" if validation.questions else "questions.validation"
    reason = f" ({losses[0].reason})" if losses else ""
    return [f"{side}: no usable question is left; {len(losses)} were lost{reason}"]


def _without_overlap(
    config: Questions,
    validation: _Reading,
    test: _Reading | None,
    kept: list[Question],
    held_back: list[Question],
    losses: list[Loss],
    problems: list[str],
    warnings: list[str],
) -> list[Question]:
    """The held-back questions that no validation question gives away."""
    dropped = set()
    own = config.test is not None and is_own_file(config.test)
    near = 0
    for second, first, word_for_word in overlap(kept, held_back):
        ours, theirs = held_back[second], kept[first]
        dropped.add(second)
        if word_for_word and own and test is not None:
            where = test.places[second]
            problems.append(
                f"{where}: test question {ours.id!r} is also validation question {theirs.id!r} "
                f"({validation.places[first]}): {ours.question[:80]!r}; remove it from one of them"
            )
            continue
        how = "the same as" if word_for_word else "nearly the same as"
        near += 1
        losses.append(Loss(id=ours.id, stage="split", reason=f"{how} validation question {theirs.id}"))
    if near:
        warnings.append(f"questions: {near} test questions are (nearly) the same as validation questions and left out")
    return [question for position, question in enumerate(held_back) if position not in dropped]
