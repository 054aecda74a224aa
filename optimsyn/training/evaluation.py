"""Evaluation of a target on held-back questions: answer loss, and the metrics of each question's form.

Reading the prompts takes most of the time, so each prompt is read once: its key-value cache then serves every candidate
of a question's form (the gold answer, the options) and the greedy decoding of the target's own answer. Models with a
recurrent state, whose cache cannot be shared, read prompt and answer together (`_is_stateful` in transformers).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

from optimsyn.base.errors import ModelError
from optimsyn.data.forms import Heard, QuestionForm, form_of

if TYPE_CHECKING:
    from optimsyn.data.records import Question
    from optimsyn.recipe.recipe import CountedTokens
    from optimsyn.recipe.sections.evaluation import Evaluation
    from optimsyn.target.target import Target
    from optimsyn.training.likelihood import Item


class QuestionRow(TypedDict):
    """The result of one question.

    Attributes:
        id: Id of the question.
        kind: Name of its form.
        subtask: Subtask of the question.
        loss: Mean negative log-likelihood of the gold answer's tokens, in nats. `optimsyn.target.encoding.counted`
            decides which tokens count and how they are summed, as for the influence. By default the token that ends
            the text does not count: a fine-tuned target learns to stop within a few steps, which says nothing about
            its knowledge.
        correct: Defined by its form. Options: the gold one has the highest mean log-likelihood per token (ties go to
            the first). Free answers: the decoded answer matches an accepted one exactly. None where no answer is simply
            right or wrong.
        exact_match: The same for decoded answers; None for options.
        token_f1: Token F1 of a decoded answer against the best accepted one; None for options.
        prediction: The target's answer: the decoded one, or the likeliest option.
        choice_scores: Mean log-likelihood per token of each option; None for free answers.
        metrics: Further metrics of its form, by name; omitted if there are none.
    """

    id: str
    kind: str
    subtask: str
    loss: float
    correct: bool | None
    exact_match: bool | None
    token_f1: float | None
    prediction: str
    choice_scores: list[float] | None
    metrics: NotRequired[dict[str, float]]


class _Job(NamedTuple):
    question: Question
    item: Item


def evaluate(
    target: Target,
    questions: Sequence[Question],
    config: Evaluation,
    *,
    adapter: Path | None = None,
    tokens: CountedTokens | None = None,
    report: Callable[[int, int], None] | None = None,
) -> list[QuestionRow]:
    """Asks a target every question, closed or open book as the question requires.

    Args:
        target: The target; its own adapter and training mode stay unchanged.
        questions: The held-back questions; at least one.
        config: Batch size, longest decoded answer, tolerance of figures.
        adapter: Folder of the fine-tuned adapter to evaluate; None evaluates the base target, without adapter.
        tokens: Which tokens of an answer count, the recipe's `influence.tokens`; None uses the default.
        report: Called after each batch with the questions done and their total.

    Returns:
        One row per question, in the order of `questions`.

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
            form = form_of(jobs[batch[0]].question)
            longest = _longest(jobs, form, config) if form.decodes else 0
            scores, texts = scorer.score(items, max_new_tokens=longest, lines=form.lines)
            for position, index in enumerate(batch):
                text = texts[position] if form.decodes else ""
                if form.lines and not target.tokenizer.chat_template:
                    text = _first_answer(text, form_of(jobs[index].question))
                rows[index] = _row(jobs[index], scores[position], text, config.tolerance)
            if report is not None:
                report(len(rows), len(questions))
    return [rows[index] for index in range(len(questions))]


@contextlib.contextmanager
def use_adapter(target: Target, adapter: Path | None) -> Iterator[None]:
    """Temporarily puts a saved adapter into the target, or switches its own off (None), in evaluation mode.

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
        raise ModelError(f"{adapter}: the target was loaded without LoRA, so no adapter can be loaded into it")
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
                f"{adapter}: the target has no parameter for {loaded.unexpected_keys[0]}; it belongs to another model"
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
    """Batches of indices, decoded in the same way and of similar prompt length, so that there is little padding."""

    def manner(job: _Job) -> tuple[bool, bool]:
        form = form_of(job.question)
        return form.decodes, form.decodes and form.lines

    for wanted in sorted({manner(job) for job in jobs}, reverse=True):
        indices = [i for i, job in enumerate(jobs) if manner(job) == wanted]
        indices.sort(key=lambda i: len(jobs[i].item.prompt))
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


def _longest(jobs: Sequence[_Job], form: QuestionForm, config: Evaluation) -> int:
    """Tokens to decode: where answers have lines, room for one and a half of the longest gold answer."""
    if not form.lines:
        return config.max_new_tokens
    gold = max(len(job.item.options[0]) for job in jobs if form_of(job.question).lines)
    return max(config.max_new_tokens, gold + gold // 2)


def _first_answer(text: str, form: QuestionForm) -> str:
    """What a base model wrote before it went on with a question or a passage of its own."""
    return re.split(rf"\n(?:{re.escape(form.question_label)}|Question|Passage): ", text, maxsplit=1)[0].strip()


def _row(job: _Job, scores: list[float], text: str, tolerance: float) -> QuestionRow:
    question = job.question
    # Candidates are compared per token, independent of the reduction of the loss.
    means = tuple(score / sum(weights) for score, weights in zip(scores, job.item.weights, strict=True))
    marks = form_of(question).marks(question, Heard(text, means, tolerance))
    row = QuestionRow(
        id=question.id,
        kind=question.kind,
        subtask=question.subtask,
        loss=-scores[marks.loss_of],
        correct=marks.correct,
        exact_match=marks.exact_match,
        token_f1=marks.token_f1,
        prediction=marks.prediction,
        choice_scores=list(marks.choice_scores) if marks.choice_scores is not None else None,
    )
    if marks.further:
        row["metrics"] = dict(marks.further)
    return row
