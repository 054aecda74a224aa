"""The prompts and the schema of a rubric.

The constant part (task and demonstrations) comes first, then the guiding text, then the passage: a llama.cpp server
keeps the prefix that all requests share, and within one guiding text a longer one still.
"""

from __future__ import annotations

import json

from optimsyn.data.demonstrations import DEMOS
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


def lines_prompt(guiding_text: str, passage: str, form: str = "") -> str:
    """The plain-text prompt of a base model; it ends in the label of the first of five lines."""
    demos = "".join(
        f"{_ask(demo.guiding_text, demo.passage, '')}\nRubric:\n{_lines(demo.rubric)}\n\n" for demo in DEMOS
    )
    return f"{_TASK}\n\n{demos}{_ask(guiding_text, passage, form)}\nRubric:\n{CUE}"


def chat_messages(guiding_text: str, passage: str, form: str = "", *, lines: bool = False) -> list[Message]:
    """The messages for a model with a chat template.

    Args:
        guiding_text: What the rubric is to follow.
        passage: The text that the pair will be made from.
        form: What is said about the form of the question; "" for nothing.
        lines: Ask for the five lines (the local policy) in place of a JSON object.
    """
    if lines:
        reply_form = "Reply with exactly these five lines and nothing else:\n" + "\n".join(
            f"{LABELS[name]}: <{meaning}>" for name, meaning in _MEANING.items()
        )
    else:
        reply_form = "Reply with one JSON object and nothing else. Its keys:\n" + "\n".join(
            f'"{name}": {meaning}' for name, meaning in _MEANING.items()
        )
    task = (
        "You write rubrics. A rubric tells another writer how to make one question and its answer from a passage, so "
        "that a student who learns the pair gets better at the subject. Say what this passage is good for; a rubric "
        f"that would suit every passage helps nobody. Each criterion is one short sentence. {MATERIAL}\n\n{reply_form}"
    )
    turns = []
    for demo in DEMOS:
        reply = _lines(demo.rubric) if lines else json.dumps(demo.rubric.model_dump(), ensure_ascii=False)
        turns.append((_ask(demo.guiding_text, demo.passage, ""), reply))
    return chat_turns(task, turns, _ask(guiding_text, passage, form))


def rubric_schema() -> Schema:
    """The JSON schema of a rubric: plain strings, which every service's strict mode accepts."""
    return object_schema({name: {"type": "string", "description": _MEANING[name]} for name in LABELS})


def _ask(guiding_text: str, passage: str, form: str) -> str:
    # An open question with a short answer goes without saying: a base model takes every word here for its subject.
    guidance = f"Guidance: {_line(guiding_text)}"
    if form:
        guidance += f" Form of the question: {form}."
    return f"{guidance}\nPassage: {fenced(passage)}"


def _lines(rubric: Rubric) -> str:
    return "\n".join(f"{label}: {getattr(rubric, name)}" for name, label in LABELS.items())


def _line(text: str) -> str:
    # A blank line ends a demonstration, so none may occur inside one.
    return " ".join(text.split())
