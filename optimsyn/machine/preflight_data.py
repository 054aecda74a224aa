"""Checks a recipe's documents and questions: too few, too long, or with prompt injections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from optimsyn.base.counting import plural
from optimsyn.data.chat import sample_of, split_context
from optimsyn.data.files.rows import sampled, shortened
from optimsyn.data.forms.code import unnamed_note
from optimsyn.data.injections import all_dropped, note, talking
from optimsyn.data.passages import split_passages
from optimsyn.data.splits import passage_notes, passage_parts
from optimsyn.data.text import word_count
from optimsyn.machine.shapes import is_here
from optimsyn.programs.language_checks import language_notes

if TYPE_CHECKING:
    from optimsyn.data.questions import QuestionSets
    from optimsyn.data.records import Document, Passage, Question
    from optimsyn.machine.preflight_result import Preflight
    from optimsyn.recipe.recipe import Recipe

# Checking a passage for injections takes half a millisecond.
LOOKED_AT = 4000
_FEW_VALIDATION = 8
_FEW_TEST = 20
# An English token has about four characters and is never longer than a word; this is between the two.
_CHARS_A_TOKEN = 3.0
_TEMPLATE_TOKENS = 16


def check_documents(recipe: Recipe, documents: Sequence[Document], preflight: Preflight) -> list[Passage]:
    """Splits the documents into passages, checks and returns them."""
    used = sampled(documents, recipe.documents.source.limit, recipe.seed_of("data"))
    passages, lost = split_passages(used, recipe.documents)
    preflight.counts |= {"documents": len(used), "passages": len(passages)}
    if not passages:
        preflight.problems.append(
            f"documents: none of {plural(len(lost), 'passage')} has documents.min_words = "
            f"{recipe.documents.min_words} words; "
            "lower it or give longer documents"
        )
        return passages
    _check_injections(recipe, passages, preflight)
    preflight.warnings += [f"checks: {note}" for note in language_notes(passages, recipe.checks.disabled)]
    parts = passage_parts(recipe, len(passages))
    if parts is None:
        preflight.warnings += [f"synthesis.passages: {note}" for note in passage_notes(recipe, len(passages))]
    compared, there = recipe.optimizers.prompt.passages, len(passages) if parts is None else len(parts["optimize"])
    if recipe.optimizers.prompt.enabled and there < compared:
        preflight.warnings.append(
            f"optimizers.prompt.passages: guiding texts are compared on {compared} passages, but there are only "
            f"{there}{'' if parts is None else ' for the optimisers (synthesis.passages: disjoint)'}"
        )
    candidates = round(recipe.synthesis.pairs * recipe.synthesis.oversample)
    if candidates > 4 * len(passages):
        preflight.warnings.append(
            f"synthesis.pairs: {plural(candidates, 'candidate')} from {plural(len(passages), 'passage')} are "
            f"{candidates / len(passages):.0f} a passage, so many will be alike; add documents or ask for fewer pairs"
        )
    return passages


def _check_injections(recipe: Recipe, passages: Sequence[Passage], preflight: Preflight) -> None:
    """Checks passages for text addressed to a language model; of very many, an even sample."""
    step = -(-len(passages) // LOOKED_AT)
    sample = passages[::step]
    flagged = talking(sample)
    if not flagged:
        return
    if recipe.documents.on_injection == "drop" and len(flagged) == len(passages):
        preflight.problems.append(all_dropped(flagged))
        return
    total = len(passages) if step > 1 else None
    preflight.warnings.append(note(flagged, sample, recipe.documents.on_injection, total=total))


def check_sets(recipe: Recipe, sets: QuestionSets, preflight: Preflight) -> None:
    """Counts the questions and warns if there are too few."""
    preflight.counts |= {"validation": len(sets.validation), "test": len(sets.test)}
    if len(sets.validation) < _FEW_VALIDATION:
        preflight.warnings.append(
            f"questions.validation: {plural(len(sets.validation), 'question')} "
            f"{'gives' if len(sets.validation) == 1 else 'give'} the influence a noisy direction; "
            "a few dozen are better"
        )
    unnamed = unnamed_note([*sets.validation, *sets.test])
    preflight.warnings += [unnamed] if unnamed is not None else []
    if len(sets.test) < _FEW_TEST:
        preflight.warnings.append(
            f"questions.test: intervals over {plural(len(sets.test), 'test question')} will be very wide"
        )


def check_lengths(recipe: Recipe, sets: QuestionSets, preflight: Preflight) -> None:
    """Finds questions that are too long for the target, also in a file with other problems."""
    longest = recipe.models.target.max_length
    cut = 0
    maybe_too_long: list[str] = []
    too_long: list[str] = []
    for question in [*sets.validation, *sets.test]:
        least, likely, with_context = _token_bounds(question)
        if least > longest:
            too_long.append(
                f"question {question.id!r} takes at least {least} tokens without its context, more than "
                f"models.target.max_length = {longest}; raise it or remove the question"
            )
        elif likely > longest:
            maybe_too_long.append(question.id)
        cut += question.context is not None and with_context > longest
    preflight.problems += shortened(too_long, "questions")
    if maybe_too_long:
        preflight.warnings.append(
            f"models.target.max_length: {plural(len(maybe_too_long), 'question')} may be longer than {longest} "
            f"tokens without any context ({', '.join(maybe_too_long[:3])}{' ...' if len(maybe_too_long) > 3 else ''})"
        )
    if cut:
        preflight.warnings.append(
            f"models.target.max_length: about {cut} of "
            f"{plural(len(sets.validation) + len(sets.test), 'question')} have a "
            f"context that is cut to fit {longest} tokens"
        )


def check_trained(recipe: Recipe, sets: QuestionSets, preflight: Preflight) -> None:
    """Finds test questions that another model to fine-tune (`fine_tune.target`) cannot read, by its own tokenizer."""
    spec = recipe.fine_tune.target
    if spec is None or not is_here(spec):
        return
    from optimsyn.stages.fine_tune import unfit

    preflight.problems += shortened(unfit(spec, sets.test), "questions.test")


def _token_bounds(question: Question) -> tuple[int, int, int]:
    """Tokens of a question: at least and likely without its context, and roughly with it."""
    sample = sample_of(question)
    context, text = split_context(sample.prompt, sample.context)
    text += sample.completion
    likely = round(len(text) / _CHARS_A_TOKEN) + _TEMPLATE_TOKENS
    return word_count(text), likely, round((len(context) + len(text)) / (_CHARS_A_TOKEN + 1)) + _TEMPLATE_TOKENS
