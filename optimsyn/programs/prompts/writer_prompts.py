"""The prompts of the writer, the embedded model's adapter that writes rubrics and pairs: no task, no demonstrations.

What the writer was trained on (`tools/train_writer.py`) and what it is asked with must be the same text, so both come
from here. The passage stands first: a server that keeps what it has read reads it once for its rubrics and all their
pairs.

    Passage: …                          Passage: …
    Guidance: …                         Rubric:
    Form: …                             Question type: …           (a form only where it is not free)
    Rubric:                             …
    Question type: …                    Form: …
    …                                   Pair:
    Trainability: …                     Quote: …
                                        Question: …
                                        Options: … | … | … | …     (multiple choice only)
                                        Answer: …

Forms with keys of their own have a line for each, question first. A text of several lines begins on the line after its
label and goes on to the next label or the end; it has no blank lines, which end a reply. Items have a line each:

    Quote: …                            Quote: …
    Question: …                         Question: …
    Reasoning: …                        Answer:
    Answer: …                           - …
                                        - …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optimsyn.data.forms import Key, QuestionForm
from optimsyn.data.records import Rubric
from optimsyn.programs.prompts.fence import fenced
from optimsyn.programs.prompts.rubric_prompts import LABELS

OPTION_MARK = " | "


def rubric_prompt(passage: str, guiding_text: str, form: str = "") -> str:
    """What the writer is given for a rubric; it ends at the first label's line.

    Args:
        passage: The text.
        guiding_text: What the rubric is to follow.
        form: The form of the question where it is given, such as `multiple choice`.
    """
    return f"{_passage(passage)}\nGuidance: {_line(guiding_text)}{_form(form)}\nRubric:\n"


def rubric_reply(rubric: Rubric) -> str:
    """What the writer answers: five lines."""
    return "\n".join(f"{label}: {_line(getattr(rubric, name))}" for name, label in LABELS.items())


def pair_prompt(passage: str, rubric: Rubric | None, form: str = "") -> str:
    """What the writer is given for a pair; it ends at the line of the quote.

    Args:
        passage: The text.
        rubric: What the pair is to obey; None: nothing.
        form: The form of the question where it is given, such as `the answer is yes, no or maybe`.
    """
    asked = "" if rubric is None else f"\nRubric:\n{rubric_reply(rubric)}"
    return f"{_passage(passage)}{asked}{_form(form)}\nPair:\n"


def pair_reply(quote: str, question: str, answer: str, options: Sequence[str] = ()) -> str:
    """What the writer answers: three lines, or four of a multiple-choice pair."""
    lines = [f"Quote: {_line(quote)}", f"Question: {_line(question)}"]
    if options:
        lines.append("Options: " + OPTION_MARK.join(_line(option) for option in options))
    return "\n".join([*lines, f"Answer: {_line(answer)}"])


def form_reply(form: QuestionForm, quote: str, values: Mapping[str, str]) -> str:
    """What the writer answers for a form with keys of its own, without options; keys without a value have no line.

    Args:
        form: The form, for its `reply_keys`.
        quote: The sentence of the passage.
        values: The texts by key, items one a line.
    """
    lines = [f"Quote: {_line(quote)}"]
    written = (_labelled(key, values[key.name]) for key in in_order(form) if values.get(key.name, "").strip())
    return "\n".join([*lines, *written])


def in_order(form: QuestionForm) -> list[Key]:
    """The keys of a form as the writer's lines have them: the question first."""
    return sorted(form.reply_keys(), key=lambda key: key.name != "question")


def label_of_key(name: str) -> str:
    """The label of a key's line: `reason` is `Reason`."""
    return name.replace("_", " ").capitalize()


def _labelled(key: Key, value: str) -> str:
    label = f"{label_of_key(key.name)}:"
    lines = [line.rstrip() for line in value.splitlines() if line.strip()]
    if key.items:
        return "\n".join([label, *(f"- {_line(item)}" for item in lines)])
    # The reader takes asterisks around a value for bold face.
    if key.lines and (len(lines) > 1 or "*" in (value.strip()[0], value.strip()[-1])):
        return "\n".join([label, *lines])
    return f"{label} {_line(value)}"


def _passage(text: str) -> str:
    return f"Passage: {fenced(text)}"


def _form(form: str) -> str:
    return f"\nForm: {_line(form)}" if form else ""


def _line(text: str) -> str:
    return " ".join(text.split())
