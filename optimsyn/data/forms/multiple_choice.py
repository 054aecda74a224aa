"""The form `multiple_choice`: a question with options, one of which is right."""

from __future__ import annotations

import json
import operator
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, ClassVar

from optimsyn.base.errors import DataError
from optimsyn.base.seeds import derive_seed
from optimsyn.data.demonstrations import Demo
from optimsyn.data.forms.cells import Faults, accepted_answers, list_cell, written
from optimsyn.data.forms.form import Content, FormCheck, Gold, Heard, Key, Looked, Marks, QuestionForm
from optimsyn.data.forms.free import FEW_WORDS, answer_words
from optimsyn.data.records import Pair, Question
from optimsyn.data.text import normalized, words_of

VERDICTS = frozenset("yes no maybe true false unknown unclear uncertain".split())
# Options count as fixed if at least this share of the questions has the same ones.
_FIXED_SHARE = 0.8
_FEW_OPTIONS = 4
_LETTER = re.compile(r"^\(?([A-Za-z])[).:]?$")
_COUNTS = "no one two three four five six seven eight nine ten".split()
_WRONG_LISTS = ("wrong", "wrong_answers", "wrong_options", "incorrect_answers", "distractors")


def lettered(choices: Sequence[str]) -> str:
    """The options as lines `A. …`, `B. …`."""
    if len(choices) > len(ascii_uppercase):
        raise DataError(f"{len(choices)} choices are more than the {len(ascii_uppercase)} letters of the format")
    lines = (f"{letter}. {' '.join(choice.split())}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return "\n".join(lines)


def has_options(values: Mapping[str, Any]) -> bool:
    """Whether a row of a question file is one of multiple choice."""
    value = values.get("choices")
    return not (value is None or value in ("", [], ()))


def check_choices_well_formed(pair: Pair, context: Looked) -> str | None:
    """At least two distinct options, the answer at its index."""
    choices, index = pair.choices or (), pair.answer_index
    if len(choices) < 2:
        return "a multiple-choice question needs at least two options"
    if index is None or not 0 <= index < len(choices):
        return f"the index of the answer, {index}, names no option"
    if normalized(choices[index]) != normalized(pair.answer):
        return f"option {index} is not the answer"
    plain = [" ".join(w for w in words_of(choice) if w not in ("the", "a", "an")) for choice in choices]
    if not all(choice.strip() for choice in choices):
        return "an option is empty"
    if len(set(plain)) < len(plain):
        return "two options are the same"
    if any(re.search(r"\b(?:all|none|both) of (?:the|these)\b", choice, re.IGNORECASE) for choice in choices):
        return "an option refers to the others"
    return None


@dataclass(frozen=True)
class MultipleChoice(QuestionForm):
    """A question whose answer is one of its options.

    The target sees the options with letters and learns the text of the right one, never its letter, since then pairs
    would get influence for sharing a letter. The target's answer is the likeliest option per token.

    Attributes:
        fixed: The options if they are the same for every question (yes, no, maybe), else empty.
    """

    label: ClassVar[str] = "multiple choice"
    columns: ClassVar[tuple[str, ...]] = ("choices", "answer_index", "label")
    decodes: ClassVar[bool] = False
    free_length: ClassVar[bool] = False
    checks: ClassVar[Mapping[str, FormCheck]] = {"choices_well_formed": check_choices_well_formed}
    options: int = _FEW_OPTIONS
    fixed: tuple[str, ...] = ()
    answer_words: int = FEW_WORDS

    @property
    def wrong_keys(self) -> tuple[str, ...]:
        """Keys of the wrong options in a reply."""
        return () if self.fixed else tuple(f"wrong_{index}" for index in range(1, self.options))

    def fitted(self, questions: Sequence[Question]) -> MultipleChoice:
        """With the most frequent number of options, or with the options that nearly all questions share."""
        words = answer_words(questions)
        choice_lists = [q.choices for q in questions if q.kind == "multiple_choice" and q.choices is not None]
        if not choice_lists:
            return MultipleChoice(answer_words=words)
        sets = Counter(_as_set(choices) for choices in choice_lists)
        common, count = sets.most_common(1)[0]
        if count > 1 and count >= _FIXED_SHARE * len(choice_lists):
            fixed = next(choices for choices in choice_lists if _as_set(choices) == common)
            return MultipleChoice(len(fixed), fixed, words)
        return MultipleChoice(Counter(map(len, choice_lists)).most_common(1)[0][0], (), words)

    def read_row(self, values: Mapping[str, Any]) -> Gold:
        """Reads `choices` and the gold option from `answer_index`, `label` or `answer`."""
        faults = Faults()
        answers = faults.part(lambda: accepted_answers(values))
        choices = faults.part(lambda: _choices(values.get("choices")))
        faults.raise_all()
        assert answers is not None
        assert choices is not None
        options, labels = choices
        index = _gold_index(values, options, labels, answers)
        return Gold(options[index], (options[index],), tuple(options), index)

    def described(self) -> str:
        """The number of options, or the fixed ones."""
        if self.fixed:
            *others, last = self.fixed
            return f"the answer is {', '.join(others)} or {last}"
        count = _COUNTS[self.options] if self.options < len(_COUNTS) else str(self.options)
        return f"multiple choice, {count} options"

    def task(self) -> str:
        """Names the options if they are fixed."""
        if self.fixed:
            return (
                f"From each passage: a quoted sentence, a question about it and the answer ({', '.join(self.fixed)})."
            )
        return "From each passage: a quoted sentence, an exam question about it, the right answer and wrong ones."

    def reply_keys(self, seed: int = 0) -> tuple[Key, ...]:
        """A question and its verdict, or an answer, its question, and wrong options."""
        if self.fixed:
            options = ", ".join(json.dumps(choice, ensure_ascii=False) for choice in self.fixed)
            question = Key("question", "a question that a reader of the passage can decide")
            return question, Key("answer", f"one of {options}", self.fixed)
        _, question = super().reply_keys(seed)
        wrong = "an option that is wrong but tempting, of the same sort and length as the answer"
        return (
            Key("answer", f"the correct answer, as short as possible (about {self.answer_words} words)"),
            question,
            # Small models write four options, however many are asked for.
            *(Key(name, wrong, needed=place < _FEW_OPTIONS) for place, name in enumerate(self.wrong_keys, 1)),
        )

    def demonstration(self, demo: Demo) -> dict[str, str]:
        """The example with some of its wrong options, or asked for a verdict."""
        if self.fixed:
            # For fixed sets other than yes and no, the first and second member stand for them.
            verdicts = {"yes": self.fixed[0], "no": self.fixed[min(1, len(self.fixed) - 1)]}
            named = {choice.casefold(): choice for choice in self.fixed}
            return {"question": demo.closed_question, "answer": named.get(demo.verdict, verdicts[demo.verdict])}
        wrong = random.Random(demo.question).sample(demo.wrong, k=min(len(demo.wrong), len(self.wrong_keys)))
        reply = {"answer": demo.answer, "question": demo.question}
        return reply | dict(zip(self.wrong_keys, wrong, strict=False))

    def mended(self, values: dict[str, Any]) -> dict[str, Any]:
        """Wrong options may come as one list, also with the right one, which the answer may name by its letter."""
        options = values.get("options", values.get("choices"))
        if isinstance(options, str):
            options = options.split("|")
        if isinstance(options, list) and self.wrong_keys and "answer" in values:
            right = _bare(values["answer"])
            letter = _LETTER.match(str(values["answer"]).strip())
            place = ascii_uppercase.index(letter[1].upper()) if letter else len(options)
            if place < len(options) and right not in map(_bare, options):
                values = values | {"answer": options[place]}
                right = _bare(options[place])
            listed = right in map(_bare, options)
            # An answer that is not listed is right all the same, but one in fewer or more words is no second option.
            same = operator.eq if listed else _contained
            wrong = [option for option in options if not same(_bare(option), right)]
            values = {"wrong": wrong} | values
        for name in _WRONG_LISTS:
            if isinstance(values.get(name), list):
                for key, value in zip(self.wrong_keys, values[name], strict=False):
                    values.setdefault(key, value)
        return values

    def content(self, reply: Mapping[str, str], seed: int) -> Content:
        """The options in random order."""
        if self.fixed:
            return Content(reply["question"], reply["answer"], self.fixed, self.fixed.index(reply["answer"]))
        options = [reply["answer"], *(reply[name] for name in self.wrong_keys if reply.get(name))]
        order = list(range(len(options)))
        random.Random(derive_seed(seed, "options")).shuffle(order)
        choices = tuple(options[place] for place in order)
        return Content(reply["question"], reply["answer"], choices, order.index(0))

    def is_verdict(self, pair: Pair) -> bool:
        """An option of a fixed set, such as yes, no and maybe."""
        return pair.choices is not None and all(normalized(choice) in VERDICTS for choice in pair.choices)

    def prompt(self, item: Question | Pair) -> str:
        """The question and its options with letters."""
        return f"{item.question.strip()}\n{lettered(item.choices or ())}"

    def candidates(self, question: Question) -> tuple[str | None, ...]:
        """All options."""
        return question.choices or (None,)

    def marks(self, question: Question, heard: Heard) -> Marks:
        """The likeliest option is the target's answer; ties go to the first one."""
        choices, gold = question.choices or (question.answer,), question.answer_index or 0
        # Options are compared per token: a sum would prefer the shortest.
        best = max(range(len(heard.means)), key=heard.means.__getitem__)
        return Marks(choices[best], best == gold, loss_of=gold, choice_scores=heard.means)


def _bare(option: Any) -> str:
    return normalized(str(option)).rstrip(".")


def _contained(one: str, other: str) -> bool:
    """Whether one text holds the other as whole words."""
    return f" {one} " in f" {other} " or f" {other} " in f" {one} "


def _as_set(choices: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(choice.casefold().strip() for choice in choices))


def _choices(value: Any) -> tuple[list[str], list[str]]:
    """The options and, if the row has them, their labels."""
    labels: list[str] = []
    if value is None or value in ("", [], ()):
        raise DataError('has no `choices`; a list such as ["first", "second"] is needed')
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError('`choices` is not valid JSON; write a list as ["first", "second"]') from None
    if isinstance(value, dict) and isinstance(value.get("label"), list):
        labels = [str(label).strip() for label in value["label"]]
    if isinstance(value, list) and value and all(isinstance(item, dict) and "label" in item for item in value):
        labels = [str(item["label"]).strip() for item in value]
    options = [written(option) for option in list_cell(value, "choices")]
    if len(options) < 2:
        raise DataError(f'`choices` has {len(options)} option; a list such as ["first", "second"] is needed')
    if len(options) > len(ascii_uppercase):
        raise DataError(f"`choices` has {len(options)} options, more than the letters A to Z")
    if not all(options):
        raise DataError(f"option {ascii_uppercase[options.index('')]} of `choices` is empty")
    return options, labels if len(labels) == len(options) else []


def _gold_index(values: Mapping[str, Any], options: list[str], labels: list[str], accepted: list[str]) -> int:
    """Which option is gold, by `answer_index`, `label` or `answer`."""
    indices: dict[str, int] = {}
    if values.get("answer_index") is not None:
        index = str(values["answer_index"]).strip().removesuffix(".0")
        if not index.isdecimal() or int(index) >= len(options):
            raw = values["answer_index"]
            raise DataError(f"answer_index {raw!r} names none of its {len(options)} choices (counted from 0)")
        indices["answer_index"] = int(index)
    if values.get("label") is not None:
        indices["label"] = _option(values["label"], options, labels, "label")
    if values.get("answer") is not None and accepted:
        if not indices:
            indices["answer"] = _option(values["answer"], options, labels, "answer")
        elif normalized(accepted[0]) in map(normalized, options):
            indices["answer"] = [normalized(option) for option in options].index(normalized(accepted[0]))
            # The same option listed twice: the index decides.
            if normalized(options[indices["answer"]]) == normalized(options[next(iter(indices.values()))]):
                indices["answer"] = next(iter(indices.values()))
    if not indices:
        raise DataError("has choices but no answer; give `answer` (text or letter) or `answer_index` (from 0)")
    if len(set(indices.values())) > 1:
        named = ", ".join(f"{field} names {options[index]!r}" for field, index in indices.items())
        raise DataError(f"its gold answer is contradictory: {named}")
    gold = next(iter(indices.values()))
    if [normalized(option) for option in options].count(normalized(options[gold])) > 1:
        raise DataError(f"its gold option {options[gold]!r} is listed twice among the choices")
    return gold


def _option(value: Any, options: list[str], labels: list[str], field: str) -> int:
    """The index of an answer's option: by its text, its label, its letter, or as a number."""
    text = written(value[0] if isinstance(value, list | tuple) and len(value) == 1 else value)
    plain = [normalized(option) for option in options]
    if normalized(text) in plain:
        return plain.index(normalized(text))
    if text in labels:
        return labels.index(text)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options):
        return value
    letter = _LETTER.match(text)
    if letter and ascii_uppercase.index(letter.group(1).upper()) < len(options):
        return ascii_uppercase.index(letter.group(1).upper())
    cure = "; a number is taken as index only in `answer_index` (from 0)" if text.isdecimal() else ""
    raise DataError(f"{field} {text!r} is neither one of its {len(options)} choices nor their letter{cure}")
