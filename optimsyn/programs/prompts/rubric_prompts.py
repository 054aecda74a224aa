"""The prompts and the schema of a rubric.

The constant part (task and demonstrations) comes first, then the guiding text, then the passage: a llama.cpp server
keeps the prefix that all requests share, and within one guiding text a longer one still.
"""

from __future__ import annotations

import json

from optimsyn.data.demonstrations import DEMOS
from optimsyn.data.forms import form_named
from optimsyn.data.records import Rubric
from optimsyn.programs.messages import Message, Schema, chat_turns, object_schema
from optimsyn.programs.prompts.fence import MATERIAL, fenced

LABELS = {
    "question_type": "Question type",
    "question_quality": "Question quality",
    "answer_quality": "Answer quality",
    "alignment": "Alignment",
    "trainability": "Trainability",
}
# Keys of the compact JSON form: a base model spends a third of its reply on the long ones.
COMPACT_KEYS = {
    "question_type": "type",
    "question_quality": "question",
    "answer_quality": "answer",
    "alignment": "alignment",
    "trainability": "trainability",
}
CUE = "Question type:"
STOP = ("\n\n",)

_TASK = (
    "For each passage, follow the guidance and write a rubric of five lines for one question: question type, question "
    "quality, answer quality, alignment, trainability."
)
_MEANING = {
    "question_type": "what kind of thing the question asks for",
    "question_quality": "what makes the question a good one",
    "answer_quality": "what a good answer is like",
    "alignment": "how question and answer must fit together",
    "trainability": "why a model that learns this pair becomes better at the subject",
}


def lines_prompt(guiding_text: str, passage: str, kind: str, kind_hint: str = "") -> str:
    """The plain-text prompt of the five-line form; it ends in the label of the first line."""
    demos = "".join(
        f"{_ask(demo.guiding_text, demo.passage, 'free', '')}\nRubric:\n{_lines(demo.rubric)}\n\n" for demo in DEMOS
    )
    return f"{_TASK}\n\n{demos}{_ask(guiding_text, passage, kind, kind_hint)}\nRubric:\n{CUE}"


def json_prompt(guiding_text: str, passage: str, kind: str, kind_hint: str = "") -> str:
    """The plain-text prompt of the JSON form."""
    demos = "".join(
        f"{_ask(demo.guiding_text, demo.passage, 'free', '')}\nRubric:\n{_json(demo.rubric)}\n\n" for demo in DEMOS
    )
    return f"{_TASK}\n\n{demos}{_ask(guiding_text, passage, kind, kind_hint)}\nRubric:\n"


def chat_messages(
    guiding_text: str, passage: str, kind: str, kind_hint: str = "", *, lines: bool = False
) -> list[Message]:
    """The messages for a model with a chat template.

    Args:
        guiding_text: What the rubric is to follow.
        passage: The text that the pair will be made from.
        kind: The form of the pair.
        kind_hint: Said about the form of the question in place of the words for `kind`.
        lines: Ask for the five lines (the local policy) in place of a JSON object.
    """
    if lines:
        form = "Reply with exactly these five lines and nothing else:\n" + "\n".join(
            f"{LABELS[name]}: <{meaning}>" for name, meaning in _MEANING.items()
        )
    else:
        form = "Reply with one JSON object and nothing else. Its keys:\n" + "\n".join(
            f'"{name}": {meaning}' for name, meaning in _MEANING.items()
        )
    task = (
        "You write rubrics. A rubric tells another writer how to make one question and its answer from a passage, so "
        "that a student who learns the pair gets better at the subject. Say what this passage is good for; a rubric "
        f"that would suit every passage helps nobody. Each criterion is one short sentence. {MATERIAL}\n\n{form}"
    )
    turns = []
    for demo in DEMOS:
        reply = _lines(demo.rubric) if lines else json.dumps(demo.rubric.model_dump(), ensure_ascii=False)
        turns.append((_ask(demo.guiding_text, demo.passage, "free", ""), reply))
    return chat_turns(task, turns, _ask(guiding_text, passage, kind, kind_hint))


def rubric_schema(*, compact: bool) -> Schema:
    """The JSON schema of a rubric.

    Args:
        compact: For a constrained base model: short keys, and patterns that keep each criterion to a line of 10 to 90
            characters. Otherwise plain strings under the full names, which every service's strict mode accepts.
    """
    if not compact:
        return object_schema({name: {"type": "string", "description": _MEANING[name]} for name in LABELS})
    line: Schema = {"type": "string", "pattern": r"^[A-Za-z][^\"\\\n{}]{9,89}$"}
    kind: Schema = {"type": "string", "pattern": r"^[A-Za-z][^\"\\\n{}]{3,39}$"}
    return object_schema({key: kind if key == "type" else line for key in COMPACT_KEYS.values()})


def _ask(guiding_text: str, passage: str, kind: str, kind_hint: str) -> str:
    # An open question with a short answer goes without saying: a base model takes every word here for its subject.
    form = kind_hint or form_named(kind).in_rubric
    guidance = f"Guidance: {_line(guiding_text)}"
    if form:
        guidance += f" Form of the question: {form}."
    return f"{guidance}\nPassage: {fenced(passage)}"


def _lines(rubric: Rubric) -> str:
    return "\n".join(f"{label}: {getattr(rubric, name)}" for name, label in LABELS.items())


def _json(rubric: Rubric) -> str:
    return json.dumps({key: getattr(rubric, name) for name, key in COMPACT_KEYS.items()}, ensure_ascii=False)


def _line(text: str) -> str:
    # A blank line ends a demonstration, so none may occur inside one.
    return " ".join(text.split())
