"""Stage 1, prepare: documents become passages, questions become validation and test sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from optimsyn.base.errors import DataError, ModelError
from optimsyn.base.files import write_json, write_jsonl
from optimsyn.base.secrets.redaction import kept
from optimsyn.data.documents import load_document_set
from optimsyn.data.files.readers import reader_identity
from optimsyn.data.files.rows import sampled
from optimsyn.data.injections import all_dropped, note, talking
from optimsyn.data.losses import Loss
from optimsyn.data.passages import split_passages
from optimsyn.data.questions import load_other_questions, load_questions
from optimsyn.data.splits import passage_notes
from optimsyn.data.text import word_count
from optimsyn.programs.language_checks import language_notes
from optimsyn.reward.permuted import permuted
from optimsyn.runs.reader_changes import READERS_NOTE, reopen_if_readers_changed
from optimsyn.runs.results.built_in import NAMED, PrepareResult, Skipped

if TYPE_CHECKING:
    from optimsyn.data.records import Passage, Question, Record
    from optimsyn.runs.folder import Run

RecordT = TypeVar("RecordT", bound="Record")
# Most passages to name in the manifest.
_NOTED = 100
# Records per search for keys.
_AT_ONCE = 1000


def run(run: Run) -> PrepareResult:
    """Reads the recipe's data and writes it into the run; lists dropped rows with their reason.

    Raises:
        DataError: A row cannot be used; names file and row.
    """
    recipe = run.recipe
    reopen_if_readers_changed(run)
    with run.stage("prepare") as stage:
        if stage.finished:
            return PrepareResult.load(run)
        if recipe.documents.readers:
            stage.note(**{READERS_NOTE: reader_identity(recipe.documents.readers)})
        document_set = load_document_set(recipe.documents)
        # Before the texts are cut: a key in a document would be sent to every service.
        documents = _without_keys(
            sampled(document_set.documents, recipe.documents.source.limit, recipe.seed_of("data"))
        )
        passages, lost_passages = split_passages(documents, recipe.documents)
        all_passages = passages
        passages, flagged = _not_talking(all_passages, recipe.documents.on_injection)
        if recipe.documents.on_injection == "drop":
            lost_passages = [*lost_passages, *flagged]
        sets = load_questions(recipe.questions, document_set.library, recipe.seed_of("data"), complete=True)
        notes = [note(flagged, all_passages, recipe.documents.on_injection)] if flagged else []
        validation, too_long = _fitting(run, _without_keys(sets.validation))
        test, test_too_long = _fitting(run, _without_keys(sets.test))
        write_jsonl(run.path("prepare", "documents.jsonl"), documents)
        write_jsonl(run.path("prepare", "passages.jsonl"), passages)
        write_jsonl(run.path("prepare", "validation.jsonl"), validation)
        write_jsonl(run.path("prepare", "test.jsonl"), test)
        notes += passage_notes(recipe, len(passages))
        notes += language_notes(passages, recipe.checks.disabled)
        lost = [*document_set.losses, *lost_passages, *sets.losses, *too_long, *test_too_long]
        if recipe.reward.source in ("permuted", "other"):
            asked, lost_others, said = _reward_questions(run, validation)
            write_jsonl(run.path("prepare", "reward_questions.jsonl"), asked)
            lost += lost_others
            notes.append(said)
        write_jsonl(run.path("prepare", "lost.jsonl"), lost)
        words = sorted(word_count(passage.text) for passage in passages)
        result = PrepareResult(
            documents=len(documents),
            groups=len({document.group for document in documents}),
            passages=len(passages),
            passage_words=(words[0], words[len(words) // 2], words[-1]),
            validation=len(validation),
            test=len(test),
            validation_subtasks=_subtasks(validation),
            test_subtasks=_subtasks(test),
            lost=len(lost),
            lost_by_reason=dict(Counter(loss.reason for loss in lost)),
            skipped=len(document_set.skipped),
            skipped_documents=tuple(
                Skipped(id=loss.id, reason=loss.reason.removeprefix("skipped: "))
                for loss in document_set.skipped[:NAMED]
            ),
            passed_over=len(document_set.passed),
            talking=len(flagged),
            talking_passages=tuple(loss.id for loss in flagged[:NAMED]),
            talking_dropped=recipe.documents.on_injection == "drop",
            notes=tuple(f"{text}." for text in [*notes, *sets.astray]),
        )
        if flagged:
            write_jsonl(run.path("prepare", "talking.jsonl"), flagged)
            stage.note(passages_that_talk_to_a_model=[loss.id for loss in flagged[:_NOTED]])
        write_json(
            run.path("prepare", "splits.json"),
            {
                "seed": recipe.seed_of("data"),
                "validation": [question.id for question in validation],
                "test": [question.id for question in test],
            },
        )
        return result.save(run)


def _reward_questions(run: Run, validation: list[Question]) -> tuple[list[Question], list[Loss], str]:
    """The questions of a control, which were lost, and a note on them.

    Raises:
        DataError: There are none.
    """
    recipe = run.recipe
    if recipe.reward.other_questions is not None:
        others, lost = load_other_questions(recipe.questions, recipe.reward.other_questions, recipe.seed_of("data"))
        fitting, too_long = _fitting(run, _without_keys(others))
        said = f"{len(fitting)} questions of another domain give the reward its direction (reward.source: other)"
        return fitting, [*lost, *too_long], said
    asked = permuted(validation, recipe.seed_of("data"))
    alone = len(validation) - len(asked)
    same = sum(mine.answer == theirs.answer for mine, theirs in zip(_in(validation, asked), asked, strict=True))
    said = (
        f"{len(asked)} validation questions with each other's answers give the reward its direction (reward.source: "
        f"permuted); {same} answers are right by chance"
    )
    if alone:
        said += f", and {alone} questions have no other of their form to swap with and are left out"
    # What may be too long is the answer.
    fitting, too_long = _fitting(run, asked)
    return fitting, too_long, said


def _in(questions: Sequence[Question], some: Sequence[Question]) -> list[Question]:
    ids = {question.id for question in some}
    return [question for question in questions if question.id in ids]


def _not_talking(passages: Sequence[Passage], on_injection: str) -> tuple[list[Passage], list[Loss]]:
    """The passages to use, and those that talk to a language model, with the reason.

    Raises:
        DataError: All passages do, and the recipe drops them.
    """
    losses = talking(passages)
    if on_injection == "flag":
        return list(passages), losses
    talking_ids = {loss.id for loss in losses}
    usable = [passage for passage in passages if passage.id not in talking_ids]
    if not usable:
        raise DataError(all_dropped(losses))
    return usable, losses


def _without_keys(records: Sequence[RecordT]) -> list[RecordT]:
    """The records without the values of this run's secret variables; text that only looks like a key stays."""
    clean: list[RecordT] = []
    for start in range(0, len(records), _AT_ONCE):
        batch = records[start : start + _AT_ONCE]
        lines = [record.model_dump_json() for record in batch]
        # JSON lines hold no line break, and redaction adds none.
        for record, before, line in zip(batch, lines, kept("\n".join(lines)).split("\n"), strict=True):
            clean.append(record if line == before else type(record).model_validate_json(line))
    return clean


def _fitting(run: Run, questions: list[Question]) -> tuple[list[Question], list[Loss]]:
    """The questions that fit the target's `max_length`; contexts are cut, questions never are.

    Raises:
        DataError: None fits.
    """
    from optimsyn.llm.local.loading import load_tokenizer
    from optimsyn.target.encoding import as_sample, encode

    spec = run.recipe.models.target
    tokenizer = load_tokenizer(spec)
    fitting, lost = [], []
    for question in questions:
        try:
            encode(tokenizer, as_sample(question), spec.max_length)
        except ModelError:
            lost.append(Loss(id=question.id, stage="questions", reason="too long for models.target.max_length"))
        else:
            fitting.append(question)
    if not fitting:
        raise DataError(
            f"questions: none of {len(questions)} fits models.target.max_length ({spec.max_length} tokens); raise it"
        )
    return fitting, lost


def _subtasks(questions: list[Question]) -> dict[str, int]:
    """Questions by subtask, most first."""
    return dict(Counter(question.subtask for question in questions).most_common())
