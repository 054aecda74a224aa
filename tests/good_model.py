"""A stub service that answers as a good hosted model does: rubrics of its own words, pairs out of the passage.

It counts tokens as such services do, so that what a run really uses can be held against what was foreseen.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

from tests.llm_helpers import Answer, said

_KINDS = ("a figure", "a name", "the cause of an event", "a duty", "the term for a thing", "a condition", "a place")
_GOOD = ("asks for one thing and names it in full", "can be answered by whoever knows the field", "turns on one fact")
_FIT = ("the answer is of the kind that was asked for", "the answer follows from one sentence alone")
_WHY = ("it links two facts that are often mixed up", "it states what practice depends on", "it comes up in exams")
# Share of its answers that the passage does not bear out.
_WRONG = 0.12


def answer(number: int, request: dict[str, Any]) -> Answer:
    """The rubric when a rubric is asked for, else a pair about a sentence of the passage."""
    messages = request["messages"]
    whole = "\n".join(message["content"] for message in messages)
    text = messages[-1]["content"]
    seed = request.get("seed", 0)
    draw = random.Random(f"{whole} {seed}")
    if "write rubrics" in whole.casefold() or 'Its keys:\n"question_type"' in whole:
        reply = {
            "question_type": f"{draw.choice(_KINDS)} that a reader of {_name(text, draw)} should know",
            "question_quality": f"{draw.choice(_GOOD)}, without giving the answer away",
            "answer_quality": f"at most {draw.randint(1, 5)} words, taken from the text",
            "alignment": draw.choice(_FIT),
            "trainability": draw.choice(_WHY),
        }
    elif "Reply with the word" in whole:
        reply = {"word": "yes"}
    else:
        reply = _pair(whole, text, draw)
    body = json.dumps(reply)
    return said(body, prompt_tokens=tokens(whole) + 4 * len(messages), completion_tokens=tokens(body))


def _passage(text: str) -> str:
    return text.rpartition("Passage: ")[2].partition("\nRubric: ")[0]


def _name(text: str, draw: random.Random) -> str:
    words = re.findall(r"[A-Za-z]{6,}", _passage(text)) or ["this subject"]
    return draw.choice(words).lower()


def _pair(whole: str, text: str, draw: random.Random) -> dict[str, str]:
    """A question about two words of a sentence, whose answer is a third one that stands beside them."""
    sentences = [part for part in re.split(r"(?<=[.!?;])\s+", _passage(text)) if len(part.split()) > 7]
    sentence = draw.choice(sentences or [_passage(text)])
    words = sorted(set(re.findall(r"[A-Za-z][a-z]{4,}", sentence))) or sentence.split()
    answer, *others = draw.sample(words, min(5, len(words)))
    about = " and ".join(word.lower() for word in others if word.lower() != answer.lower()) or "this"
    if draw.random() < _WRONG:
        answer = "something else entirely"
    fixed = re.search(r'"answer": one of (.*)', whole)
    if fixed is not None:
        return {"quote": sentence, "question": f"Does {about} go along with {answer.lower()}?", "answer": "yes"}
    reply = {"quote": sentence, "answer": answer, "question": f"What goes with {about}?"}
    for key in re.findall(r'"(wrong_\d+)":', whole.partition("Reply with one JSON")[2].partition("\n\nPassage")[0]):
        reply[key] = f"{draw.choice(('un', 'anti', 'post', 'sub'))}{draw.choice(words).lower()}{draw.randint(2, 99)}"
    return reply


@cache
def _encoding() -> Any:
    import litellm

    return litellm.encoding


def tokens(text: str) -> int:
    """Tokens of a text, in the vocabulary that LiteLLM counts with."""
    return len(_encoding().encode(text, disallowed_special=()))
