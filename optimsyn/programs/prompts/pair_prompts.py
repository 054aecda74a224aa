"""The prompts of a pair.

For a base model everything constant comes first (task and demonstrations), then the passage, then the rubric: what a
llama.cpp server has read of a passage serves every rubric that is tried on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from optimsyn.base.extensions import FORMS
from optimsyn.data.demonstrations import Demo
from optimsyn.data.forms import QuestionForm, shown
from optimsyn.data.forms.multiple_choice import MultipleChoice
from optimsyn.data.records import Pair, Rubric
from optimsyn.programs.messages import Message, Schema, chat_turns, object_schema
from optimsyn.programs.prompts import writer_prompts
from optimsyn.programs.prompts.fence import MATERIAL, fenced

STOP = ("\n\n",)
_VERDICTS = MultipleChoice(3, ("yes", "no", "maybe")).described()


def writer_knows(form: QuestionForm) -> bool:
    """Whether the writer can write pairs of a form: of each built-in one, with options or verdicts that it has learned.

    Of custom forms it can write those with a question and a free answer; for other keys it ignores even worked
    examples. It leaves out keys that need not be there.
    """
    if type(form) is not MultipleChoice and any(type(form) is type(part) for part in FORMS.built_in.values()):
        return True
    keys = form.reply_keys()
    if any(key.lines or key.items for key in keys):
        return False
    if {key.name for key in keys if key.needed} != {"question", "answer"}:
        return type(form) is MultipleChoice
    return not any(key.options for key in keys) or form.described() == _VERDICTS


def writer_prompt(form: QuestionForm, passage: str, rubric: Rubric | None) -> str:
    """The prompt of the writer."""
    return writer_prompts.pair_prompt(passage, rubric, form.described())


def base_prompt(form: QuestionForm, passage: str, rubric: Rubric | None) -> str:
    """The plain-text prompt of a base model; it ends where the JSON object starts.

    The object stands on a line of its own: after a label and a space its brace would be split off from the space that
    the tokenizer joins it with, and the model then writes white space for ever.
    """
    with_rubric = rubric is not None
    task = form.task()
    if with_rubric:
        task += " The rubric says what kind."
    demos = "".join(
        f"{_ask(demo.passage, demo.rubric if with_rubric else None)}\n{_json(demo_reply(demo, form))}\n\n"
        for demo in form.demos
    )
    return f"{task}\n\n{demos}{_ask(passage, rubric)}\n"


def chat_messages(form: QuestionForm, passage: str, rubric: Rubric | None, seed: int = 0) -> list[Message]:
    """The messages for a model with a chat template.

    Args:
        form: The form of the pair.
        passage: The text that it is made from.
        rubric: The criteria, if any.
        seed: Of the pair, for a form that asks for different things in turn.
    """
    keys = ['"quote": the sentence of the passage that proves the answer, word for word']
    keys += [f'"{key.name}": {key.asks}' for key in form.reply_keys(seed)]
    task = (
        "You write exam questions. Make one question and its answer from the passage"
        + (", exactly as the rubric asks" if rubric is not None else "")
        + ". Everything in the answer must come from the passage; never mention the passage, the text or its author in "
        f"the question, and do not give the answer away in it. {MATERIAL}\n\n"
        "Reply with one JSON object and nothing else. Its keys:\n" + "\n".join(keys)
    )
    turns = [
        (_ask(demo.passage, demo.rubric if rubric is not None else None), _json(demo_reply(demo, form)))
        for demo in form.demos
    ]
    return chat_turns(task, turns, _ask(passage, rubric))


def told_why(messages: Sequence[Message], pair: Pair | None, why: Sequence[str]) -> list[Message]:
    """The same messages, with the pair that was refused and what was wrong with it.

    Args:
        messages: As `chat_messages` returns them.
        pair: That was refused; None where the reply held none.
        why: What was wrong, a sentence for each failed check.
    """
    what = "The last reply"
    if pair is not None:
        parts, answer = shown(pair)
        question, *options = map(fenced, parts)
        written = {"quote": fenced(pair.quote), "question": question, **({"options": options} if options else {})}
        what = f"The pair {_json({**written, 'answer': fenced(answer)})}"
    faults = " ".join(fenced(each).rstrip(".") + "." for each in why)
    told = f"{what} was refused: {faults} Write another pair, without that fault."
    *before, last = messages
    return [*before, {**last, "content": f"{last['content']}\n\n{told}"}]


def demo_reply(demo: Demo, form: QuestionForm) -> dict[str, Any]:
    """The reply that a demonstration shows for one form of pair."""
    items = {key.name for key in form.reply_keys() if key.items}
    shown = form.demonstration(demo).items()
    return {"quote": demo.quote, **{name: text.splitlines() if name in items else text for name, text in shown}}


def open_schema(form: QuestionForm, seed: int = 0) -> Schema:
    """The schema of a reply in JSON: one small one for each form of pair, whatever the passage.

    Services compile a schema before they use it and keep it for the next request; one that lists a passage's sentences
    is new each time, and too large for some. Whether the quote stands in the passage is checked afterwards
    (`optimsyn.programs.checks.check_grounded`).
    """
    line: Schema = {"type": "string"}
    keys: dict[str, Schema] = {}
    for key in form.reply_keys(seed):
        keys[key.name] = line | ({"enum": list(key.options)} if key.options else {})
        if key.items:
            keys[key.name] = {"type": "array", "items": line}
    return object_schema({"quote": line, **keys})


def _ask(passage: str, rubric: Rubric | None) -> str:
    text = f"Passage: {fenced(passage)}"
    return text if rubric is None else f"{text}\nRubric: {_compact(rubric)}"


def _compact(rubric: Rubric) -> str:
    return "; ".join(" ".join(value.split()).rstrip(".;") for value in rubric.model_dump().values())


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
