"""Replies as no service should send them, from a seed; and good ones in every wrapping, with what is right to read."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from optimsyn.llm.replies import Reply

QUESTION = "Which metal does ceruloplasmin carry?"
_WORDS = (
    "copper",
    "iron",
    "25 %",
    "$\\frac{a}{b}$",
    "naïve",
    "銅",
    "نحاس",
    "Szent-Györgyi",
    "5 mg/kg",
    'a "quoted" one',
)
_ODD = (
    *("\ud83d", "\udc9f", "\\ud83d", "\x00", "\u202e", "\u2028", "\ufeff", "\x1b[31m", "\\", "\\u12", "\\x", "\\frac"),
    *"\"'“{}[]():,-#\n\r\t",
    *(
        "<think>",
        "</think>",
        "<|channel|>",
        "[THINK]",
        "◁/think▷",
        "```",
        "```json",
        "//",
        "/*",
        "null",
        "NaN",
        "1e999",
    ),
    *("🙂", "<|im_end|>"),
)
_TAGS = (
    *(("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"), ("<THINK>", "</THINK>")),
    *(("<seed:think>", "</seed:think>"), ("<reasoning>", "</reasoning>"), ("<reflection>", "</reflection>")),
    *(("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"), ("<|START_THINKING|>", "<|END_THINKING|>")),
    ("<unused94>", "<unused95>"),
)
_BRACKETS = (("[", "]"), ("{", "}"), ('{"a":', "}"), ('["', '"]'), ("(", ")"), ('[{"a":[', "]}]"))
THOUGHTS = (
    "The set {a,b} is no answer.",
    'Draft: {"question": "Who?", "answer": "nobody"}',
    "Question type: a date\nQuestion quality: vague\nAnswer quality: any\nAlignment: none\nTrainability: low",
    'Let me see [1, 2].\n\nNo: "that" isn\'t it.',
)
_LINES = {
    "question_type": "a dose with its unit",
    "question_quality": "names the drug and the age group",
    "answer_quality": "one figure and its unit",
    "alignment": "the dose is the one given for adults",
    "trainability": "a figure that is asked in practice",
}


def pair_text(random_: random.Random) -> tuple[str, dict[str, str]]:
    """A good reply, and the pair in it."""
    fields = {"quote": "It carries copper.", "question": QUESTION, "answer": random_.choice(_WORDS)}
    if random_.random() < 0.5:
        fields = {"question": fields["question"], "answer": fields["answer"]}
    text = json.dumps(fields, ensure_ascii=random_.random() < 0.5, indent=random_.choice((None, 1, 4)))
    return text, {"quote": "", **fields}


def rubric_lines() -> str:
    """A good rubric of five lines."""
    return "\n".join(f"{name.replace('_', ' ').capitalize()}: {value}" for name, value in _LINES.items())


def rubric_fields() -> dict[str, str]:
    """The rubric in them."""
    return dict(_LINES)


def wrappings() -> dict[str, Callable[[str, str], str]]:
    """Ways in which services and models wrap an answer: from a thought and a reply to a text."""
    found: dict[str, Callable[[str, str], str]] = {
        "bare": lambda thought, reply: reply,
        "blank": lambda thought, reply: f"\n\n  {reply}\n\n",
        "fence": lambda thought, reply: f"```json\n{reply}\n```",
        "bare fence": lambda thought, reply: f"```\n{reply}\n```",
        "prose": lambda thought, reply: f"Here it is:\n{reply}",
        "prose after": lambda thought, reply: f"{reply}\n\nI hope that this helps.",
        "unopened": lambda thought, reply: f"{thought}\n</think>\n\n{reply}",
        "nested": lambda thought, reply: f"<think>{thought}<think>{thought}</think>{thought}</think>{reply}",
        "twice": lambda thought, reply: f"<think>{thought}</think><think>{thought}</think>{reply}",
        "after": lambda thought, reply: f"{reply}\n<think>{thought}</think>",
        "unclosed after": lambda thought, reply: f"{reply}\n<think>{thought}",
        "mentioned": lambda thought, reply: f"<think>{thought} The tag <think> is odd.</think>{reply}",
        "fenced after thought": lambda thought, reply: f"<think>\n{thought}\n</think>\n```json\n{reply}\n```",
        "answer": lambda thought, reply: f"<think>{thought}</think>\n<answer>\n{reply}\n</answer>",
        "solution": lambda thought, reply: (
            f"<|begin_of_thought|>{thought}<|end_of_thought|><|begin_of_solution|>{reply}<|end_of_solution|>"
        ),
        "harmony": lambda thought, reply: (
            f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{reply}<|return|>"
        ),
        "harmony, bare": lambda thought, reply: f"analysis{thought.capitalize()}assistantfinal{reply}",
        "end token": lambda thought, reply: f"{reply}<|im_end|>",
        "channel": lambda thought, reply: f"<|channel>thought\n{thought}<channel|>{reply}",
    }
    for opening, closing in _TAGS:
        found[opening] = lambda thought, reply, a=opening, z=closing: f"{a}\n{thought}\n{z}\n{reply}"  # type: ignore[misc]
    return found


def json_wrappings() -> dict[str, Callable[[str], str]]:
    """The same for what only JSON can be wrapped in."""
    other = '{"question": "Who found it?", "answer": "somebody else"}'
    return {
        "plain": lambda reply: reply,
        "list": lambda reply: f"[{reply}, {other}]",
        "two": lambda reply: f"{reply}\n{other}",
        "lines": lambda reply: f"{reply}\n{other}\n{other}",
        "pair": lambda reply: f'{{"pair": {reply}}}',
        "pairs": lambda reply: f'{{"pairs": [{reply}, {other}]}}',
        "deep": lambda reply: f'{{"result": {{"data": [{{"qa": {reply}}}]}}, "note": "x"}}',
        "comma": lambda reply: f"{reply[:-1].rstrip()},}}",
        "no brace": lambda reply: reply[:-1],
        "string": lambda reply: json.dumps(reply),
        "set in prose": lambda reply: f"Not {{a,b}}, but this: {reply}",
    }


def fuzzed(seed: int) -> Reply:
    """One odd reply."""
    draw = random.Random(seed)
    kind = draw.randrange(8)
    text = pair_text(draw)[0] if draw.random() < 0.7 else rubric_lines()
    if kind == 0:
        text = _mutated(text, draw)
    elif kind == 1:
        text = text[: draw.randrange(len(text) + 1)]
    elif kind == 2:
        text = "".join(draw.choice(_ODD) for _ in range(draw.choice((3, 30, 300))))
    elif kind == 3:
        unit = "".join(draw.choice(_ODD + _WORDS) for _ in range(draw.randint(1, 4)))
        text = draw.choice(("", text[: draw.randrange(len(text))])) + unit * draw.choice((10, 500, 3000, 30_000))
    elif kind == 4:
        opening, closing = draw.choice(_BRACKETS)
        depth = draw.choice((5, 60, 200, 500, 5000))
        text = opening * depth + draw.choice(("", text)) + closing * draw.choice((0, depth // 2, depth))
    elif kind == 5:
        text = draw.choice(list(wrappings().values()))(_mutated(draw.choice(THOUGHTS), draw), _mutated(text, draw))
    elif kind == 6:
        text = draw.choice(list(json_wrappings().values()))(_mutated(text, draw))
    else:
        text = _mutated(text, draw) * draw.choice((2, 20, 400))
    return Reply(
        text=text.encode("utf-8", "ignore").decode() if draw.random() < 0.9 else text,
        finish_reason=draw.choice(("stop", "stop", "length", "content_filter", "tool_calls", "", "SAFETY")),
        reasoning=draw.choice(("", "", _mutated(text[:2000], draw))),
        refusal=draw.choice(("", "", "", "I can't help with that.")),
        tool_call=draw.choice(("", "", "", _mutated(text[:500], draw))),
        output_tokens=draw.randrange(500),
    )


def _mutated(text: str, draw: random.Random) -> str:
    for _ in range(draw.choice((1, 2, 5, 20))):
        if not text:
            break
        place = draw.randrange(len(text))
        what = draw.randrange(5)
        if what == 0:
            text = text[:place] + draw.choice(_ODD) + text[place:]
        elif what == 1:
            text = text[:place] + text[place + draw.randint(1, 5) :]
        elif what == 2:
            text = text[:place] + draw.choice(_ODD) * draw.choice((2, 50)) + text[place + 1 :]
        elif what == 3:
            end = min(len(text), place + draw.randint(1, 60))
            text = text[:end] + text[place:end] * draw.randint(1, 5) + text[end:]
        else:
            odd = chr(draw.choice((draw.randrange(1, 0x300), draw.randrange(0x10000), 0xD800)))
            text = text[:place] + odd + text[place:]
    return text[:400_000]


def seeds(run: int, count: int) -> list[Any]:
    """Seeds of one run of the fuzzer."""
    return [run * 1_000_003 + index for index in range(count)]
