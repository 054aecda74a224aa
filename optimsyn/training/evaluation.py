"""Evaluation of a target on held-back questions: answer loss, choice by likelihood, free answers by greedy decoding.

What costs time is reading the prompts, so each prompt is read once: its key-value cache then serves the gold answer,
every option of a multiple-choice question and the decoding of a free answer. Models with a recurrent state, whose
cache cannot be shared that way, read prompt and answer together (`_is_stateful` in transformers).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from optimsyn.base.errors import ModelError
from optimsyn.training.answer_metrics import exact_match, token_f1

if TYPE_CHECKING:
    from optimsyn.data.records import PairKind, Question
    from optimsyn.recipe.recipe import CountedTokens
    from optimsyn.recipe.sections.evaluation import Evaluation
    from optimsyn.target.target import Target
    from optimsyn.training.likelihood import Item


class QuestionRow(TypedDict):
    """How one question went.

    Attributes:
        id: Id of the question.
        kind: `free` or `multiple_choice`.
        subtask: Subtask of the question.
        loss: Mean negative log-likelihood of the gold answer's tokens, in nats. Which tokens count (and whether they
            are added up in another way) `optimsyn.target.encoding.counted` decides, for the evaluation as for the
            influence. By default the one that ends the text is left out: a fine-tuned target learns to stop within a
            few steps, which says nothing about what it knows.
        correct: Multiple choice: the gold option has the highest mean log-likelihood per token (ties go to the first
            option). Free: the decoded answer matches an accepted one exactly.
        exact_match: The same for free answers; None for multiple choice.
        token_f1: Token F1 of a free answer against the best accepted one; None for multiple choice.
        prediction: The decoded answer, or the chosen option.
        choice_scores: Mean log-likelihood per token of each option; None for free answers.
    """

    id: str
    kind: PairKind
    subtask: str
    loss: float
    correct: bool
    exact_match: bool | None
    token_f1: float | None
    prediction: str
    choice_scores: list[float] | None


class _Job(NamedTuple):
    question: Question
    item: Item


def evaluate(
    target: Target,
    questions: Sequence[Question],
    config: Evaluation,
    seed: int = 0,
    *,
    adapter: Path | None = None,
    tokens: CountedTokens | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[QuestionRow]:
    """Asks a target every question, closed or open book as the question says.

    Args:
        target: The target; its own adapter and its training mode are left as they were.
        questions: The held-back questions; at least one.
        config: Batch size and longest decoded answer.
        seed: Unused by greedy decoding and likelihoods; kept so that every stage is called alike.
        adapter: Folder of the fine-tuned adapter to evaluate; None evaluates the target as it came, with no adapter.
        tokens: Which tokens of an answer count, the recipe's `influence.tokens`; None: the default.
        report: Called after each batch with the questions done and their number.

    Returns:
        One row a question, in the order of `questions`.

    Raises:
        ModelError: The adapter does not fit the target, or a question cannot be scored; names it.
    """
    import torch

    from optimsyn.recipe.sections.models import CountedTokens
    from optimsyn.training.likelihood import AnswerScorer

    if not questions:
        raise ModelError("evaluate: there are no test questions; check questions.test in the recipe")
    rows: dict[int, QuestionRow] = {}
    with use_adapter(target, adapter), torch.inference_mode():
        scorer = AnswerScorer(target, tokens or CountedTokens())
        jobs = [_Job(question, scorer.prepare(question)) for question in questions]
        for batch in _batches(jobs, config.batch_size):
            items = [jobs[index].item for index in batch]
            decode = jobs[batch[0]].question.choices is None
            scores, texts = scorer.score(items, max_new_tokens=config.max_new_tokens if decode else 0)
            for position, index in enumerate(batch):
                text = texts[position] if decode else None
                rows[index] = _row(jobs[index], scores[position], text)
            if report is not None:
                report(len(rows), len(questions))
    return [rows[index] for index in range(len(questions))]


@contextlib.contextmanager
def use_adapter(target: Target, adapter: Path | None) -> Iterator[None]:
    """Puts a saved adapter (or none at all) into the target for a while, in evaluation mode.

    Args:
        target: The target whose own adapter comes back afterwards, unchanged.
        adapter: Folder that peft saved; None switches all adapters off.

    Raises:
        ModelError: The folder holds no adapter, or one that does not fit the target.
    """
    from peft import PeftModel

    model = target.model
    training = model.training
    model.eval()
    try:
        if adapter is None:
            with model.disable_adapter() if isinstance(model, PeftModel) else contextlib.nullcontext():
                yield
        else:
            with _loaded(model, adapter):
                yield
    finally:
        model.train(training)


@contextlib.contextmanager
def _loaded(model: object, adapter: Path) -> Iterator[None]:
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ModelError(f"{adapter}: the target was loaded without LoRA, so no adapter can be put in")
    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter}: no adapter here (adapter_config.json is missing); run the stage fine_tune first")
    own, name = model.active_adapter, "evaluated"
    trainable = {key for key, value in model.named_parameters() if value.requires_grad}
    try:
        loaded = model.load_adapter(str(adapter), adapter_name=name, is_trainable=False)
    except (RuntimeError, ValueError, KeyError) as error:
        if name in model.peft_config:
            model.delete_adapter(name)
        raise ModelError(f"{adapter}: this adapter does not fit the target ({error}); run fine_tune again") from error
    try:
        if loaded is not None and loaded.unexpected_keys:
            raise ModelError(
                f"{adapter}: the target has no place for {loaded.unexpected_keys[0]}; it was trained on another model"
            )
        model.set_adapter(name)
        yield
    finally:
        model.set_adapter(own)
        model.delete_adapter(name)
        # peft decides again which parameters train whenever the active adapter changes.
        for key, value in model.named_parameters():
            value.requires_grad_(key in trainable)


def _batches(jobs: Sequence[_Job], batch_size: int) -> Iterator[list[int]]:
    """Indices of questions of one kind and of like prompt length, so that little is padded."""
    for multiple_choice in (False, True):
        indices = [i for i, job in enumerate(jobs) if (job.question.choices is not None) == multiple_choice]
        indices.sort(key=lambda i: len(jobs[i].item.prompt))
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


def _row(job: _Job, scores: list[float], text: str | None) -> QuestionRow:
    question = job.question
    accepted = question.answers or (question.answer,)
    if question.choices is None or question.answer_index is None:
        prediction = text or ""
        matches = exact_match(prediction, accepted)
        f1: float | None = token_f1(prediction, accepted)
        gold, correct, matched, options = 0, matches, matches, None
    else:
        # Options are compared per token, whichever way the tokens' losses add up: a sum would prefer the shortest.
        means = [score / sum(weights) for score, weights in zip(scores, job.item.weights, strict=True)]
        best = max(range(len(means)), key=means.__getitem__)
        prediction, f1, matched = question.choices[best], None, None
        gold, correct, options = question.answer_index, best == question.answer_index, means
    return QuestionRow(
        id=question.id,
        kind=question.kind,
        subtask=question.subtask,
        loss=-scores[gold],
        correct=correct,
        exact_match=matched,
        token_f1=f1,
        prediction=prediction,
        choice_scores=options,
    )
