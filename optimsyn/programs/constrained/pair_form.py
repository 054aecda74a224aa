"""The JSON schema that constrains a small base model to a passage, for the forms of question that its grammar knows."""

from __future__ import annotations

import random
from collections.abc import Sequence

from optimsyn.data.forms import QuestionForm
from optimsyn.data.forms.free import Free
from optimsyn.data.forms.multiple_choice import MultipleChoice
from optimsyn.programs.constrained.questions import question_pattern, starts_with_pronoun
from optimsyn.programs.constrained.spans import Answer, answers_in, is_english, sentences
from optimsyn.programs.constrained.steering import Steer
from optimsyn.programs.messages import Schema, object_schema

# The longest question of a constrained model, in characters. One of this length was cut off.
LONGEST_QUESTION = 130
# Sentences that one request may quote, picked by rubric and seed: among all of them, a small model at a low temperature
# always quotes the first.
QUOTES = 3
# The same under a rubric: only the sentences nearest to it.
_STEERED_QUOTES = 2
_MOST_ANSWERS = 40
NO_STEER = Steer()
_CLOSED_OPENERS = ("Is", "Are", "Was", "Were", "Does", "Do", "Did", "Can", "Could", "Has", "Have", "Should", "Will")


# The forms that the grammar knows, without subclasses, which may change anything.
_KNOWN = (Free, MultipleChoice)
_LONGEST_LINE = 300


def tight_schema(form: QuestionForm, passage: str, seed: int, steer: Steer = NO_STEER) -> Schema:
    """The schema for a constrained base model: a quote, a stretch of it as the answer, and a question that it answers.

    For a form other than `free` and `multiple_choice` only the quote is constrained to the passage; each of the form's
    keys is a free line or one of its options.

    Args:
        form: The form of the pair.
        passage: The text for the pair.
        seed: Picks the sentences that may be quoted, among those equally near to the rubric, and the wrong options.
        steer: What the rubric asks for.
    """
    if type(form) not in _KNOWN:
        return _quoting_schema(form, passage, seed, steer)
    assert isinstance(form, Free | MultipleChoice)
    fixed = form.fixed if isinstance(form, MultipleChoice) else ()
    wrong_keys = form.wrong_keys if isinstance(form, MultipleChoice) else ()
    english = is_english(passage)
    draw = random.Random(seed)
    parts = sentences(passage)
    longest = max(4, min(12, 2 * form.answer_words))
    drafts: dict[str, list[tuple[Answer, Schema]]] = {part: [] for part in parts}
    if not fixed:
        # If no English sentence can be turned into a question, allow any question about its stretches.
        for turned in (english, False):
            by_sentence = {part: _drafts(part, english=turned, longest=longest) for part in parts}
            drafts = {part: drafted for part, drafted in by_sentence.items() if drafted}
            if drafts:
                break
    # A sentence that starts with "He" makes a question that is unclear on its own.
    clear = [part for part in drafts if not starts_with_pronoun(part)] or list(drafts)
    if steer.sorts and not fixed:
        # A rubric that asks for a year gets a sentence with one, if there is any.
        fitting = [part for part in clear if any(answer.sort in steer.sorts for answer, _ in drafts[part])]
        clear = fitting or clear
        wanted = {part: [item for item in drafts[part] if item[0].sort in steer.sorts] for part in clear}
        drafts = wanted if fitting else drafts
    quotes = steer.pick(clear, _STEERED_QUOTES if steer.words else QUOTES, draw)
    if fixed:
        return object_schema(
            {
                "quote": {"type": "string", "enum": quotes},
                "question": _question(_CLOSED_OPENERS if english else ()),
                "answer": {"type": "string", "enum": list(fixed)},
            }
        )
    options = [(answer, part) for part in parts for answer in answers_in(part, english=english, longest=longest)]
    branches: list[Schema] = []
    for quote in quotes:
        for answer, question in drafts[quote]:
            wrong = _wrong_options(wrong_keys, answer, quote, options, draw)
            if wrong is not None:
                consts = {"quote": quote, "answer": answer.text}
                properties: dict[str, Schema] = {key: {"type": "string", "const": text} for key, text in consts.items()}
                branches.append(object_schema({**properties, "question": question, **wrong}))
    if not branches:
        return _free(wrong_keys, parts[:QUOTES])
    return {"anyOf": branches} if len(branches) > 1 else branches[0]


def _quoting_schema(form: QuestionForm, passage: str, seed: int, steer: Steer) -> Schema:
    """For a form that the grammar does not know: a quote of the passage, then the form's keys."""
    parts = sentences(passage)
    quotes = steer.pick(parts, _STEERED_QUOTES if steer.words else QUOTES, random.Random(seed))
    line: Schema = {"type": "string", "pattern": rf'^[^ "\\\n][^"\\\n]{{0,{_LONGEST_LINE - 1}}}$'}
    keys = {
        key.name: {"type": "string", "enum": list(key.options)} if key.options else line
        for key in form.reply_keys(seed)
    }
    return object_schema({"quote": {"type": "string", "enum": quotes}, **keys})


def _drafts(part: str, *, english: bool, longest: int) -> list[tuple[Answer, Schema]]:
    """Possible answers in a sentence, each with the schema of its question."""
    drafts: list[tuple[Answer, Schema]] = []
    for answer in answers_in(part, english=english, longest=longest)[:_MOST_ANSWERS]:
        if not english:
            drafts.append((answer, _question(())))
        elif (pattern := question_pattern(answer)) is not None:
            drafts.append((answer, {"type": "string", "pattern": pattern}))
    return drafts


def _free(wrong_keys: Sequence[str], quotes: list[str]) -> Schema:
    """The schema for a passage without recognisable stretches (a table, a language without spaces)."""
    line: Schema = {"type": "string", "pattern": r'^[^ "\\\n][^"\\\n]{0,79}$'}
    return object_schema(
        {
            "quote": {"type": "string", "enum": quotes},
            "answer": line,
            "question": _question(()),
            **dict.fromkeys(wrong_keys, line),
        }
    )


def _question(openers: Sequence[str]) -> Schema:
    # llama.cpp drops a pattern silently when a class holds an escape such as \\s or a character beyond ASCII.
    if not openers:
        return {"type": "string", "pattern": rf'^[^ "\\?\n][^"\\?\n]{{5,{LONGEST_QUESTION - 2}}}(\?|？|؟)$'}
    return {"type": "string", "pattern": rf'^({"|".join(openers)}) [^"\\?\n]{{8,{LONGEST_QUESTION - 20}}}\?$'}


def _wrong_options(
    keys: Sequence[str],
    answer: Answer,
    quote: str,
    pool: Sequence[tuple[Answer, str]],
    draw: random.Random,
) -> dict[str, Schema] | None:
    """One enumeration for each wrong option, disjoint, so that options are distinct by construction.

    The options are stretches of other sentences, of the answer's sort if there are enough.

    Returns:
        Empty for a pair without options; None if the passage has too few stretches.
    """
    if not keys:
        return {}
    same: dict[str, str] = {}
    other: dict[str, str] = {}
    for candidate, part in pool:
        key = candidate.text.casefold()
        if part == quote or key in quote.casefold() or any(key in k or k in key for k in (*same, *other)):
            continue
        (same if candidate.sort == answer.sort else other)[key] = candidate.text
    options, rest = list(same.values()), list(other.values())
    draw.shuffle(options)
    draw.shuffle(rest)
    if len(options) < len(keys):
        options += rest[: len(keys) - len(options)]
    if len(options) < len(keys):
        return None
    options = options[: 6 * len(keys)]
    return {key: {"type": "string", "enum": options[index :: len(keys)]} for index, key in enumerate(keys)}
