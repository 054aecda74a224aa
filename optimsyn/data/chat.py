"""The one format in which a target model sees pairs and questions.

Synthesized pairs, validation questions and test questions all become a `Sample` here, so that they differ in content
only. A target with a chat template sees the messages of a chat, as its own template renders them:

    user        <context>           only when asked open book, then a blank line
                <question>          and what its form shows with it, such as options
    assistant   <answer>

A base model sees a text with labels:

    Passage: <context>
    Question: <question>
    Answer: <answer>

The question's form decides about `<question>`, `<answer>`, the labels and how many turns there are
(`optimsyn.data.forms`).
"""

from __future__ import annotations

from typing import Literal

from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import FORMS
from optimsyn.data.forms import QuestionForm, form_of
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
        >>> [message["content"] for message in sample.messages]
        ['Which vitamin prevents scurvy?', 'vitamin C']
    """
    form = form_of(item)
    asks, answers = f"{form.question_label}: ", f"{form.answer_label}:"
    context = (item.context or "").strip()
    # A line "Question: ..." in the text must not look like the start of the question.
    context = context.replace(_MARK, "\n " + QUESTION_PREFIX).replace(f"\n{asks}", f"\n {asks}")
    turns = [(asked, given.strip()) for asked, given in _turns(item, form)]
    if answer is not None:
        turns[-1] = turns[-1][0], answer.strip()
    prompt = f"{CONTEXT_PREFIX}{context}\n" if context else ""
    messages: list[dict[str, str]] = []
    earlier: list[tuple[int, int]] = []
    for number, (asked, given) in enumerate(turns, 1):
        prompt += f"{asks}{asked}\n{answers}"
        body = f"{context}\n\n{asked}" if context and number == 1 else asked
        messages += [{"role": "user", "content": body.strip()}, {"role": "assistant", "content": given}]
        if number < len(turns):
            earlier.append((len(prompt), len(prompt) + 1 + len(given)))
            prompt += f" {given}\n"
    return Sample(
        id=item.id,
        prompt=prompt,
        completion=f" {turns[-1][1]}",
        messages=tuple(messages),
        subtask=item.subtask if isinstance(item, Question) else "",
        context=context,
        earlier=tuple(earlier),
    )


def _turns(item: Pair | Question, form: QuestionForm) -> tuple[tuple[str, str], ...]:
    """Each question to the target and the answer that it learns."""
    if type(form).turns is QuestionForm.turns:
        return ((_text_of(item, "prompt"), _text_of(item, "answer")),)
    return form.turns(item)


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


def split_context(text: str, context: str = "") -> tuple[str, str]:
    """Splits a sample's prompt, or its first message, into the part that may be shortened and the rest.

    Args:
        text: The prompt or the message.
        context: The sample's `context`; "" looks for the labels of the plain layout.

    Returns:
        `(context, rest)` with `context + rest == text`; the context is "" for a closed-book sample. To shorten a
        prompt, cut the left end of `context`, never `rest`.
    """
    if context:
        heads = (f"{CONTEXT_PREFIX}{context}\n", f"{context}\n\n")
        head = next((head for head in heads if text.startswith(head)), "")
        return head, text[len(head) :]
    if not text.startswith(CONTEXT_PREFIX) or _MARK not in text:
        return "", text
    cut = text.index(_MARK) + 1
    return text[:cut], text[cut:]
