"""The one format in which a target model sees pairs and questions.

Synthesized pairs, validation questions and test questions all become a `Sample` here, so that they differ in content
only.

    Passage: <context>          only when asked open book
    Question: <question>        and what its form shows with it, such as options
    Answer: <answer>

The question's form decides what follows `Question:` and `Answer:` (`optimsyn.data.forms`).
"""

from __future__ import annotations

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

    Example:
        >>> question = Question(id="q", question="Which vitamin prevents scurvy?", answer="vitamin C")
        >>> sample = sample_of(question)
        >>> print(sample.prompt + sample.completion)
        Question: Which vitamin prevents scurvy?
        Answer: vitamin C
    """
    form = form_of(item)
    body = QUESTION_PREFIX + form.prompt(item)
    if item.context is not None and item.context.strip():
        # A line "Question: ..." in the text must not look like the start of the question.
        context = item.context.strip().replace(_MARK, "\n " + QUESTION_PREFIX)
        body = f"{CONTEXT_PREFIX}{context}\n{body}"
    gold = (form.answer(item) if answer is None else answer).strip()
    return Sample(
        id=item.id,
        prompt=f"{body}\n{ANSWER_PREFIX}",
        completion=f" {gold}",
        messages=({"role": "user", "content": body}, {"role": "assistant", "content": gold}),
        subtask=item.subtask if isinstance(item, Question) else "",
    )


def split_context(text: str) -> tuple[str, str]:
    """Splits a sample's prompt (or its user message) into the part that may be shortened and the rest.

    Args:
        text: `Sample.prompt` or the content of its user message.

    Returns:
        `(context, rest)` with `context + rest == text`; the context is "" for a closed-book sample. To shorten a
        prompt, cut the left end of `context`, never `rest`.
    """
    if not text.startswith(CONTEXT_PREFIX) or _MARK not in text:
        return "", text
    cut = text.index(_MARK) + 1
    return text[:cut], text[cut:]
