"""The form `dialogue`: several turns between a user and an assistant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from optimsyn.base.errors import DataError, ReplyError
from optimsyn.base.values import kind_of
from optimsyn.data.answer_metrics import exact_match, token_f1
from optimsyn.data.demonstrations import Demo
from optimsyn.data.forms.cells import parsed
from optimsyn.data.forms.form import Content, FormCheck, Gold, Heard, Key, Looked, Marks
from optimsyn.data.forms.lines import LinesForm, block, debris, ungrounded
from optimsyn.data.records import Pair, Question
from optimsyn.data.text import normalized, word_count, words_of

FEWEST, MOST = 2, 6
"""Exchanges (a user's turn and the assistant's) of a dialogue."""
_LONGEST = 200
_SHARE_IN_PASSAGE = 0.5
_SPEAKER = re.compile(r"^\s*(?:user|assistant|human|bot)\s*:", re.IGNORECASE | re.MULTILINE)
# Names of the two speakers in other formats (ShareGPT).
_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_TURNS = {
    "When was Halley's Comet last seen?": (
        ("When was Halley's Comet last seen?", "It was last seen in 1986."),
        ("And how long until the comet passes again?", "It passes the Earth about every 76 years."),
    ),
    "What does the barn swallow build its nest from?": (
        ("What does the barn swallow build its nest from?", "It builds its nest from pellets of mud."),
        ("Where does it put the nest?", "It puts it under the roofs of barns."),
    ),
}
Turn = tuple[str, str]


def check_dialogue_well_formed(pair: Pair, context: Looked) -> str | None:
    """Two to six exchanges, none of them empty or too long, no turn twice, no speaker's name inside."""
    turns = turns_of(pair)
    if not FEWEST <= len(turns) <= MOST:
        return f"the dialogue has {len(turns)} exchanges; it needs {FEWEST} to {MOST}"
    texts = [text for turn in turns for text in turn]
    if not all(words_of(text) for text in texts):
        return "a turn is empty"
    if (longest := max(map(word_count, texts))) > _LONGEST:
        return f"a turn has {longest} words, more than {_LONGEST}"
    for number in (0, 1):
        said = [normalized(turn[number]) for turn in turns]
        if len(set(said)) < len(said):
            return f"the {'assistant' if number else 'user'} says the same twice"
    label = next((found for text in texts if (found := debris(text)) is not None), None)
    if label is None and any(_SPEAKER.search(text) for text in texts):
        return "a turn holds the name of a speaker"
    return label


def check_dialogue_grounded(pair: Pair, context: Looked) -> str | None:
    """Half of the content words of each answer come from the passage or the turns before, and its figures do."""
    before = ""
    for number, (asked, given) in enumerate(turns_of(pair), 1):
        before = f"{before}\n{asked}"
        reason = ungrounded(f"answer {number}", given, context, share=_SHARE_IN_PASSAGE, also=before)
        if reason is not None:
            return reason
        before = f"{before}\n{given}"
    return None


@dataclass(frozen=True)
class Dialogue(LinesForm):
    """A dialogue of two to six exchanges. Training, influence and answer loss are over all of the assistant's turns.

    Its last turn is marked: the target writes it after the turns before, which are the gold ones.
    """

    label: ClassVar[str] = "dialogues"
    columns: ClassVar[tuple[str, ...]] = ("messages",)
    asks_in: ClassVar[str] = "messages"
    free_length: ClassVar[bool] = False
    question_label: ClassVar[str] = "User"
    answer_label: ClassVar[str] = "Assistant"
    checks: ClassVar[Mapping[str, FormCheck]] = {
        "dialogue_well_formed": check_dialogue_well_formed,
        "dialogue_grounded": check_dialogue_grounded,
    }
    exchanges: int = FEWEST

    def fitted(self, questions: Sequence[Question]) -> Dialogue:
        """With the questions' number of exchanges."""
        counts = [len(turns_of(question)) for question in questions if question.kind == "dialogue"]
        return Dialogue(min(MOST, max(FEWEST, round(median(counts))))) if counts else self

    def read_row(self, values: Mapping[str, Any]) -> Gold:
        """Reads `messages`, of the user and the assistant in turn; the last one is the gold answer."""
        turns = _read(values.get("messages"))
        return Gold(turns[-1][1], (turns[-1][1],), details={"messages": _messages(turns)}, question=turns[0][0])

    def described(self) -> str:
        """The number of exchanges."""
        return f"a dialogue of {self.exchanges} questions and answers that build on each other"

    def task(self) -> str:
        """Turns."""
        return "From each passage: a quoted sentence, and a dialogue in which a user asks and an assistant answers."

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """The turns, two keys for each exchange."""
        keys = [
            Key("question", "the user's first question, clear to a reader who has not seen the passage"),
            Key("answer", "the assistant's answer, a sentence or two", lines=True),
        ]
        for number in range(2, self.exchanges + 1):
            needed = number <= FEWEST
            keys += [
                Key(f"question_{number}", "the user's next question, which follows from the answer", needed=needed),
                Key(f"answer_{number}", "the assistant's answer to it, a sentence or two", needed=needed, lines=True),
            ]
        return tuple(keys)

    def demonstration(self, demo: Demo) -> dict[str, str]:
        """Two exchanges for each example."""
        return _keys(_TURNS[demo.question])

    def mended(self, values: dict[str, Any]) -> dict[str, Any]:
        """The dialogue may come as a list of messages."""
        for name in ("messages", "dialogue", "conversation", "turns"):
            if isinstance(values.get(name), list):
                try:
                    return values | _keys(_read(values[name])[: self.exchanges])
                except DataError as error:
                    raise ReplyError(f"the dialogue {error}") from error
        return values

    def content(self, reply: Mapping[str, str], seed: int) -> Content:
        """The turns up to the first that is missing."""
        turns: list[Turn] = [(reply["question"], reply["answer"])]
        for number in range(2, self.exchanges + 1):
            asked, given = reply.get(f"question_{number}", ""), reply.get(f"answer_{number}", "")
            if not asked or not given:
                break
            turns.append((asked, given))
        return Content(turns[0][0], turns[-1][1], details={"messages": _messages(turns)})

    def spoken(self, pair: Pair) -> str:
        """The first answer, which belongs to the question."""
        return turns_of(pair)[0][1]

    def parts(self, item: Question | Pair) -> tuple[str, ...]:
        """The first question, then the turns up to the last question."""
        (first, given), *more = turns_of(item)
        lines = [first]
        for asked, answer in more:
            lines += [f"Assistant: {given}", f"User: {asked}"]
            given = answer
        return tuple(lines)

    def prompt(self, item: Question | Pair) -> str:
        """The last question."""
        return turns_of(item)[-1][0]

    def turns(self, item: Question | Pair) -> tuple[Turn, ...]:
        """All of them."""
        return tuple(turns_of(item))

    def marks(self, question: Question, heard: Heard) -> Marks:
        """The last answer by exact match and token F1."""
        accepted = question.answers or (question.answer,)
        matched = exact_match(heard.text, accepted)
        return Marks(heard.text, matched, exact_match=matched, token_f1=token_f1(heard.text, accepted))


def turns_of(item: Question | Pair) -> list[Turn]:
    """Each of the user's turns with the assistant's."""
    messages: Any = item.details.get("messages") or []
    said = [str(message["content"]) for message in messages]
    return list(zip(said[::2], said[1::2], strict=False)) or [(item.question, item.answer)]


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def _keys(turns: Sequence[Turn]) -> dict[str, str]:
    keys: dict[str, str] = {}
    for number, (asked, given) in enumerate(turns, 1):
        ending = "" if number == 1 else f"_{number}"
        keys |= {f"question{ending}": asked, f"answer{ending}": given}
    return keys


def _read(value: Any) -> list[Turn]:
    """The exchanges of a list of messages, each with `role` and `content` (or `from` and `value`).

    Raises:
        DataError: It is none; the message says which of them is wrong.
    """
    wanted = '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]'
    if isinstance(value, str):
        value = parsed(value, f"has `messages` that are not valid JSON; write {wanted}")
    if value in (None, []):
        raise DataError(f"has no `messages`; write {wanted}")
    if not isinstance(value, list):
        raise DataError(f"has `messages` that are {kind_of(value)}; write {wanted}")
    texts: list[str] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping):
            raise DataError(f"message {number} of `messages` is {kind_of(message)}; write {wanted}")
        named = str(message.get("role", message.get("from", ""))).strip().lower()
        text = message.get("content", message.get("value"))
        due = ("user", "assistant")[len(texts) % 2]
        if _ROLES.get(named) != due:
            raise DataError(
                f"message {number} of `messages` has the role {named!r}, it must be {due!r}: the user begins, then "
                "both speak in turn (put instructions of a system message into the first question)"
            )
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"message {number} of `messages` has no text in `content`")
        texts.append(block(text))
    turns = list(zip(texts[::2], texts[1::2], strict=False))
    if len(texts) % 2:
        raise DataError(
            "ends with the user's message in `messages`; the last one must be the assistant's, the gold answer"
        )
    if not FEWEST <= len(turns) <= MOST:
        raise DataError(
            f"has {len(turns)} exchanges in `messages`, a dialogue has {FEWEST} to {MOST}; for one question use the "
            "form `free` or `long_answer`, and cut longer dialogues"
        )
    return turns
