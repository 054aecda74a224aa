"""The form of one pair and the JSON schema that holds a reply to it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from optimsyn.programs.constrained.questions import question_pattern, starts_with_pronoun
from optimsyn.programs.constrained.spans import Answer, answers_in, is_english, sentences
from optimsyn.programs.constrained.steering import Steer
from optimsyn.programs.messages import Schema, object_schema

# Characters of the longest question that a constrained model may write. One that fills it was cut off.
LONGEST_QUESTION = 130
# Sentences that one request may quote. Fewer than the passage has: a small model at a low temperature would quote the
# first one for ever; the rubric and the seed, which pick them, bring in the others.
QUOTES = 3
# Under a rubric, only the sentences nearest to it.
_STEERED_QUOTES = 2
_MOST_ANSWERS = 40
NO_STEER = Steer()
_CLOSED_OPENERS = ("Is", "Are", "Was", "Were", "Does", "Do", "Did", "Can", "Could", "Has", "Have", "Should", "Will")


@dataclass(frozen=True)
class PairForm:
    """What one pair has to look like.

    Attributes:
        choices: Options of a multiple-choice pair; 0 for a free answer.
        fixed: The options when they are the same for every question (yes, no, maybe).
        answer_words: Words that an answer typically has.
    """

    choices: int = 0
    fixed: tuple[str, ...] = ()
    answer_words: int = 3

    @property
    def wrong_keys(self) -> tuple[str, ...]:
        """Keys of the wrong options in a reply."""
        if self.fixed:
            return ()
        return tuple(f"wrong_{index}" for index in range(1, self.choices))


def open_schema(form: PairForm) -> Schema:
    """The schema for chat models: one small one for each form of pair, whatever the passage.

    Services compile a schema before they use it and keep it for the next request; one that lists a passage's sentences
    is new each time, and too large for some. Whether the quote stands in the passage is checked afterwards
    (`optimsyn.programs.checks.check_grounded`).
    """
    line: Schema = {"type": "string"}
    if form.fixed:
        return object_schema({"quote": line, "question": line, "answer": {"type": "string", "enum": list(form.fixed)}})
    return object_schema({"quote": line, "answer": line, "question": line, **dict.fromkeys(form.wrong_keys, line)})


def tight_schema(form: PairForm, passage: str, seed: int, steer: Steer = NO_STEER) -> Schema:
    """The schema for a constrained base model: a quote, a stretch of it as the answer, and a question that it answers.

    Args:
        form: The form of the pair.
        passage: The text that it is made from.
        seed: Picks the sentences that may be quoted, among those equally near to the rubric, and deals out the wrong
            options.
        steer: What the rubric asks for.
    """
    english = is_english(passage)
    draw = random.Random(seed)
    parts = sentences(passage)
    longest = max(4, min(12, 2 * form.answer_words))
    drafts: dict[str, list[tuple[Answer, Schema]]] = {part: [] for part in parts}
    if not form.fixed:
        # Where no English sentence can be turned into a question, any question may be asked about its stretches.
        for turned in (english, False):
            found = {part: _drafts(part, english=turned, longest=longest) for part in parts}
            drafts = {part: drafted for part, drafted in found.items() if drafted}
            if drafts:
                break
    # A sentence that starts with "He" makes a question that nobody understands on its own.
    clear = [part for part in drafts if not starts_with_pronoun(part)] or list(drafts)
    if steer.sorts and not form.fixed:
        # A rubric that asks for a year gets a sentence with one, if there is any.
        fitting = [part for part in clear if any(answer.sort in steer.sorts for answer, _ in drafts[part])]
        clear = fitting or clear
        wanted = {part: [item for item in drafts[part] if item[0].sort in steer.sorts] for part in clear}
        drafts = wanted if fitting else drafts
    quotes = steer.pick(clear, _STEERED_QUOTES if steer.words else QUOTES, draw)
    if form.fixed:
        return object_schema(
            {
                "quote": {"type": "string", "enum": quotes},
                "question": _question(_CLOSED_OPENERS if english else ()),
                "answer": {"type": "string", "enum": list(form.fixed)},
            }
        )
    options = [(answer, part) for part in parts for answer in answers_in(part, english=english, longest=longest)]
    branches: list[Schema] = []
    for quote in quotes:
        for answer, question in drafts[quote]:
            wrong = _wrong_options(form, answer, quote, options, draw)
            if wrong is not None:
                fixed = {"quote": quote, "answer": answer.text}
                properties: dict[str, Schema] = {key: {"type": "string", "const": text} for key, text in fixed.items()}
                branches.append(object_schema({**properties, "question": question, **wrong}))
    if not branches:
        return _free(form, parts[:QUOTES])
    return {"anyOf": branches} if len(branches) > 1 else branches[0]


def _drafts(part: str, *, english: bool, longest: int) -> list[tuple[Answer, Schema]]:
    """Answers that a sentence holds, each with the schema of its question."""
    found: list[tuple[Answer, Schema]] = []
    for answer in answers_in(part, english=english, longest=longest)[:_MOST_ANSWERS]:
        if not english:
            found.append((answer, _question(())))
        elif (pattern := question_pattern(answer)) is not None:
            found.append((answer, {"type": "string", "pattern": pattern}))
    return found


def _free(form: PairForm, quotes: list[str]) -> Schema:
    """For a passage in whose sentences no stretch could be told (a table, a language without spaces)."""
    line: Schema = {"type": "string", "pattern": r'^[^ "\\\n][^"\\\n]{0,79}$'}
    return object_schema(
        {
            "quote": {"type": "string", "enum": quotes},
            "answer": line,
            "question": _question(()),
            **dict.fromkeys(form.wrong_keys, line),
        }
    )


def _question(openers: Sequence[str]) -> Schema:
    # llama.cpp drops a pattern silently when a class holds an escape such as \\s or a character beyond ASCII.
    if not openers:
        return {"type": "string", "pattern": rf'^[^ "\\?\n][^"\\?\n]{{5,{LONGEST_QUESTION - 2}}}(\?|？|؟)$'}
    return {"type": "string", "pattern": rf'^({"|".join(openers)}) [^"\\?\n]{{8,{LONGEST_QUESTION - 20}}}\?$'}


def _wrong_options(
    form: PairForm,
    answer: Answer,
    quote: str,
    pool: Sequence[tuple[Answer, str]],
    draw: random.Random,
) -> dict[str, Schema] | None:
    """One enumeration for each wrong option, disjoint, so that options are distinct by construction.

    The options are stretches of other sentences, of the answer's own sort where there are enough of those.

    Returns:
        Nothing to add for a pair without options; None when the passage has too few stretches to choose from.
    """
    keys = form.wrong_keys
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
