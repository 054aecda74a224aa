"""The one format in which a target model sees pairs and questions.

Synthesized pairs, validation questions and test questions all become a `Sample` here, so that they differ in content
only.

    Passage: <context>          only when asked open book
    Question: <question>        and what its form shows with it, such as options
    Answer: <answer>

The question's form decides what follows `Question:` and `Answer:` (`optimsyn.data.forms`).
"""

from __future__ import annotations

from typing import Literal

from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import FORMS
from optimsyn.data.forms import form_of
from optimsyn.data.records import Pair, Question, Sample

CONTEXT_PREFIX = "Passage: "
QUESTION_PREFIX = "Question: "
ANSWER_PREFIX = "Answer:"
_MARK = "\n" + QUESTION_PREFIX


def sample_of(item: Pair | Question, answer: str | None = None) -> Sample:
    """The sample of a pair or a question, in the one format that both share.

    Args:
        item: A synthesized pair or an expert question.
        answer: Replaces the item's answer, e.g. by another option to get its likelihood.

    Returns:
        A sample whose `prompt + completion` is the plain text, and whose `messages` say the same as a chat.

    Raises:
        RecipeError: The item's form is unknown, or a custom one fails on it.

    Example:
        >>> question = Question(id="q", question="Which vitamin prevents scurvy?", answer="vitamin C")
        >>> sample = sample_of(question)
        >>> print(sample.prompt + sample.completion)
        Question: Which vitamin prevents scurvy?
        Answer: vitamin C
    """
    body = QUESTION_PREFIX + _text_of(item, "prompt")
    if item.context is not None and item.context.strip():
        # A line "Question: ..." in the text must not look like the start of the question.
        context = item.context.strip().replace(_MARK, "\n " + QUESTION_PREFIX)
        body = f"{CONTEXT_PREFIX}{context}\n{body}"
    gold = (_text_of(item, "answer") if answer is None else answer).strip()
    return Sample(
        id=item.id,
        prompt=f"{body}\n{ANSWER_PREFIX}",
        completion=f" {gold}",
        messages=({"role": "user", "content": body}, {"role": "assistant", "content": gold}),
        subtask=item.subtask if isinstance(item, Question) else "",
    )


def _text_of(item: Pair | Question, member: Literal["prompt", "answer"]) -> str:
    """What the form of an item gives as prompt or answer."""
    form = form_of(item)
    try:
        text: object = getattr(form, member)(item)
    except Exception as error:
        if item.kind in FORMS.built_in:
            raise
        raise RecipeError(
            f"{FORMS.field}: `{member}` of {item.kind} raised {type(error).__name__}: {error} ({item.id}); fix it and "
            "run again"
        ) from error
    if not isinstance(text, str):
        raise RecipeError(f"{FORMS.field}: `{member}` of {item.kind} gave {text!r} ({item.id}), not a text")
    return text


def split_context(text: str) -> tuple[str, str]:
    """Splits a sample's prompt (or its user message) into the part that may be shortened and the rest.

    Returns:
        `(context, rest)` with `context + rest == text`; the context is "" for a closed-book sample. To shorten a
        prompt, cut the left end of `context`, never `rest`.
    """
    if not text.startswith(CONTEXT_PREFIX) or _MARK not in text:
        return "", text
    cut = text.index(_MARK) + 1
    return text[:cut], text[cut:]
