"""The prompts of a pair.

For a base model everything constant comes first (task and demonstrations), then the passage, then the rubric: what a
llama.cpp server has read of a passage serves every rubric that is tried on it.
"""

from __future__ import annotations

import json
import random

from optimsyn.data.records import Rubric
from optimsyn.programs.constrained.pair_form import PairForm
from optimsyn.programs.demonstrations import DEMOS, Demo
from optimsyn.programs.messages import Message, chat_turns
from optimsyn.programs.prompts.fence import MATERIAL, fenced

STOP = ("\n\n",)


def base_prompt(form: PairForm, passage: str, rubric: Rubric | None) -> str:
    """The plain-text prompt of a base model; it ends where the JSON object starts.

    The object stands on a line of its own: after a label and a space its brace would be split off from the space that
    the tokenizer joins it with, and the model then writes white space for ever.
    """
    with_rubric = rubric is not None
    if form.fixed:
        task = f"From each passage: a quoted sentence, a question about it and the answer ({', '.join(form.fixed)})."
    elif form.choices:
        task = "From each passage: a quoted sentence, an exam question about it, the right answer and wrong ones."
    else:
        task = "From each passage: a quoted sentence, an exam question about it and the short answer."
    if with_rubric:
        task += " The rubric says what kind."
    demos = "".join(
        f"{_ask(demo.passage, demo.rubric if with_rubric else None)}\n{_json(demo_reply(demo, form))}\n\n"
        for demo in DEMOS
    )
    return f"{task}\n\n{demos}{_ask(passage, rubric)}\n"


def chat_messages(form: PairForm, passage: str, rubric: Rubric | None) -> list[Message]:
    """The messages for a model with a chat template."""
    keys = ['"quote": the sentence of the passage that proves the answer, word for word']
    if form.fixed:
        options = ", ".join(json.dumps(choice, ensure_ascii=False) for choice in form.fixed)
        keys.append('"question": a question that a reader of the passage can decide')
        keys.append(f'"answer": one of {options}')
    else:
        keys.append(f'"answer": the correct answer, as short as possible (about {form.answer_words} words)')
        keys.append('"question": the exam question that it answers, clear to a reader who has not seen the passage')
        keys += [
            f'"{name}": an option that is wrong but tempting, of the same sort and length as the answer'
            for name in form.wrong_keys
        ]
    task = (
        "You write exam questions. Make one question and its answer from the passage"
        + (", exactly as the rubric asks" if rubric is not None else "")
        + ". Everything in the answer must come from the passage; never mention the passage, the text or its author in "
        f"the question, and do not give the answer away in it. {MATERIAL}\n\n"
        "Reply with one JSON object and nothing else. Its keys:\n" + "\n".join(keys)
    )
    turns = [
        (_ask(demo.passage, demo.rubric if rubric is not None else None), _json(demo_reply(demo, form)))
        for demo in DEMOS
    ]
    return chat_turns(task, turns, _ask(passage, rubric))


def demo_reply(demo: Demo, form: PairForm) -> dict[str, str]:
    """The reply that a demonstration shows for one form of pair."""
    if form.fixed:
        # Other fixed sets than yes and no (maybe; true, false) are shown by their first and second member.
        verdicts = {"yes": form.fixed[0], "no": form.fixed[min(1, len(form.fixed) - 1)]}
        named = {choice.casefold(): choice for choice in form.fixed}
        answer = named.get(demo.verdict, verdicts[demo.verdict])
        return {"quote": demo.quote, "question": demo.closed_question, "answer": answer}
    wrong = random.Random(demo.question).sample(demo.wrong, k=min(len(demo.wrong), len(form.wrong_keys)))
    return {
        "quote": demo.quote,
        "answer": demo.answer,
        "question": demo.question,
        **dict(zip(form.wrong_keys, wrong, strict=False)),
    }


def _ask(passage: str, rubric: Rubric | None) -> str:
    text = f"Passage: {fenced(passage)}"
    return text if rubric is None else f"{text}\nRubric: {_compact(rubric)}"


def _compact(rubric: Rubric) -> str:
    return "; ".join(" ".join(value.split()).rstrip(".;") for value in rubric.model_dump().values())


def _json(value: dict[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False)
