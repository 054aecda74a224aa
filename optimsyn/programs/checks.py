"""Validity checks: small named functions whose conjunction makes a pair valid.

A check gets a pair and its context and returns None, or the reason why the pair fails. All of them run, so that all
faults of a pair are known. They are cheap and deliberately one-sided: what they refuse is bad, what passes need not be
good. The language of a passage decides which parts of a check run; `optimsyn.programs.language_checks` says which
languages they know.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import regex

from optimsyn.base.extensions import FORMS
from optimsyn.data.demonstrations import DEMOS
from optimsyn.data.duplicates import NearDuplicates, question_text
from optimsyn.data.figures import Printed
from optimsyn.data.forms import FormCheck, QuestionForm, form_of
from optimsyn.data.forms.multiple_choice import VERDICTS
from optimsyn.data.language.grounding import Source, source_of
from optimsyn.data.language.known import pattern
from optimsyn.data.language.known import words as listed_words
from optimsyn.data.language.segment import UNSPACED, has_unspaced
from optimsyn.data.records import Pair, Passage, Question
from optimsyn.data.text import FUNCTION_WORDS, control_token, is_quoted, normalized, stem, word_count, words_of
from optimsyn.programs import language_checks

# An answer's first word, of a question whether something is so; "no" has no content anyway.
_VERDICTS = ("yes", "maybe")
_OPEN_QUESTION = re.compile(r"(?:who|what|when|where|which|why|how|in (?:what|which))\b")
_QUESTION_WORDS = language_checks.ENGLISH_QUESTION_WORDS
_SOURCE_NOUNS = "passage text document article excerpt paragraph sentence snippet author authors"
_MENTION = re.compile(
    rf"\b(?:(?:the|this|that|above|given|following|provided)\s+(?:\w+\s+)?|in\s+)(?P<noun>{'|'.join(_SOURCE_NOUNS.split())})\b",
    re.IGNORECASE,
)
_NAMED_AUTHORS = re.compile(r"(?:the |this |that )?(?:[A-Z]\w+ authors?\b|authors? of (?:the )?(?:\w+ )?[A-Z])")
_CUT_AT = frozenset("the a an and or but whose because its their his her very".split())
_TIME_WORD = re.compile(
    r"\d|\b(?:january|february|march|april|may|june|july|august|september|october|november|december|century|spring|"
    r"summer|autumn|fall|winter|day|week|month|year|after|before|during|when|upon|while|until|since|morning|night|end|"
    r"beginning|birth|death|reign|war|age|hours?|minutes?|"
    r"seconds?|if|once|as soon as|monday|tuesday|wednesday|thursday|friday|saturday|sunday)",
    re.IGNORECASE,
)
_NUMBER_WORD = re.compile(
    r"\d|\b(?:no|none|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty|hundreds?|thousands?|"
    r"millions?|billions?|dozens?|half|third|quarter|few|several|many|most|all|some|once|twice|double|triple)\b",
    re.IGNORECASE,
)
_NO_EDGE = regex.compile(rf"[{UNSPACED}]")
_OWNED = re.compile(r"(?<=\w)['’]s\b")
_LONGEST_QUESTION = 60
_LONGEST_ANSWER = 100
_LONG_ANSWER = 20
_SHARE_IN_PASSAGE = 0.7
_SHARE_OF_QUESTION = 0.5


@dataclass
class CheckContext:
    """The context of a check.

    Attributes:
        passage: The passage of the pair.
        held_questions: Questions that a pair must not repeat: those of validation.
        held_texts: Search index over `held_questions`, in the same order.
        unsafe_words: Words of the recipe that no pair may hold.
    """

    passage: Passage
    held_questions: Sequence[Question] = ()
    held_texts: NearDuplicates = field(default_factory=lambda: NearDuplicates([]))
    unsafe_words: tuple[str, ...] = ()
    _source_words: frozenset[str] | None = field(default=None, repr=False)

    @property
    def source_words(self) -> frozenset[str]:
        """Stems of all words of the passage and its title."""
        if self._source_words is None:
            self._source_words = frozenset(map(stem, words_of(f"{self.passage.title} {self.passage.text}")))
        return self._source_words

    @property
    def source(self) -> Source:
        """The passage and its title, to ask which words come from them, in any language."""
        return source_of(self.passage.title, self.passage.text)

    @property
    def language(self) -> str:
        """The passage's language, as an ISO 639-1 code; "" for a text without letters."""
        return self.source.language


class Check(Protocol):
    """A check: a function or a callable object (docs/extend/check.md)."""

    def __call__(self, pair: Pair, context: CheckContext, /) -> str | None:
        """Why the pair fails, in words that help the model that writes rubrics; None when it passes.

        Args:
            pair: The pair.
            context: Its passage, the validation questions, the unsafe words.
        """


def check_format(pair: Pair, context: CheckContext) -> str | None:
    """One line each, a question that ends like one, no debris of JSON, prompts or control tokens, no loops, not cut."""
    for name, text in (("question", pair.question), ("answer", pair.answer)):
        if not re.search(r"\w", text):
            return f"the {name} is empty"
        if "\n" in text or re.search(r'[{}]|"\s*:|\b(?:Question|Answer|Passage|Rubric):|```|<\|', text):
            return f"the {name} holds debris of the reply's format"
        if _loops(words_of(text)):
            return f"the {name} repeats itself"
    for text in pair.texts:
        if (token := control_token(text)) is not None:
            return f"it holds {token}, a control token of language models"
    words = words_of(pair.question)
    if not re.search(r"[?？؟:.。…;՞፧।၊။៕]\W*$", pair.question) and not has_unspaced(pair.question):
        return "the question does not end like one"
    if context.language == "en" and pair.question.rstrip().endswith("?") and words and words[-1] in _CUT_AT:
        return f"the question is cut off after {words[-1]!r}"
    if re.search(r"[,;:(\-–]\s*\?$", pair.question):
        return "the question is cut off"
    return None


def check_length(pair: Pair, context: CheckContext) -> str | None:
    """Neither too short to ask anything nor a lecture."""
    question, answer = word_count(pair.question), word_count(pair.answer)
    if len(pair.question) < 12 and language_checks.question_size(pair.question) < 4:
        return f"a question of {question} words asks too little"
    if question > _LONGEST_QUESTION:
        return f"the question has {question} words, more than {_LONGEST_QUESTION}"
    if answer > _LONGEST_ANSWER:
        return f"the answer has {answer} words, more than {_LONGEST_ANSWER}"
    return None


def check_copied_passage(pair: Pair, context: CheckContext) -> str | None:
    """The question is not a stretch of the passage with a question mark, the answer not most of the passage."""
    source = words_of(context.passage.text)
    question, answer = words_of(pair.question), words_of(pair.answer)
    # A sentence turned into a question starts with a question word, so only a shared start is a copy.
    # Other languages put the question word where the answer was, so that only a question without one is a copy.
    asks = pattern(context.language, "asks") if context.language != "en" else None
    asked = asks is not None and asks.search(normalized(pair.question)) is not None
    if len(question) >= 4 and not asked and _shared_start(question, source) >= 0.8 * len(question):
        return "the question is copied from the passage"
    if word_count(pair.answer) > _LONG_ANSWER and len(answer) >= 0.5 * len(source):
        return "the answer copies most of the passage"
    return None


def check_answered_by_itself(pair: Pair, context: CheckContext) -> str | None:
    """The question does not hold its own answer."""
    if form_of(pair).is_verdict(pair):
        return None
    if context.language != "en":
        return language_checks.answered_by_itself(pair, context)
    answer, question = _content(pair.answer), set(map(stem, words_of(pair.question)))
    if answer and all(stem(word) in question for word in answer):
        return f"the question already says {pair.answer!r}"
    return None


def check_mentions_document(pair: Pair, context: CheckContext) -> str | None:
    """No "the passage", "this text": the pair has to stand on its own.

    A noun that the passage itself uses (a contract's "this document") is the subject, not the source.
    """
    if context.language != "en":
        return language_checks.mentions_document(pair, context)
    source = set(words_of(context.passage.text))
    for text in (pair.question, pair.answer):
        for match in _MENTION.finditer(text):
            # The authors of a study that is named are its subject.
            named = match["noun"].lower().startswith("author") and _NAMED_AUTHORS.match(text, match.start())
            if match["noun"].lower() not in source and not named:
                return f"it speaks of {match.group()!r}"
    return None


_NUMERAL = re.compile(r"\d[\d.,]*")


def check_grounded(pair: Pair, context: CheckContext) -> str | None:
    """The content words of the answer come from the passage, its figures all do, and so does half of the question.

    Figures are compared by value, scale and unit. Those of a form that derives figures have a check of their own.
    A verdict (yes, no, one of a fixed set) has no content of its own: the quote and the question answer for it.
    """
    source_words = context.source_words
    if normalized(pair.quote) and not is_quoted(pair.quote, f"{context.passage.title} {context.passage.text}"):
        return "the quote is not in the passage"
    if context.language != "en":
        return language_checks.grounded(pair, context)
    printed = Printed.of(f"{context.passage.title}\n{context.passage.text}")
    if not form_of(pair).is_verdict(pair):
        derived = form_of(pair).is_derived(pair)
        figure = None if derived else printed.missing(pair.answer)
        if figure is not None:
            return f"the passage does not give the figure {pair.answer[figure.start : figure.end]}"
        rest = printed.rest(pair.answer, derived=derived)
        answer = _content(rest) or words_of(rest)
        if len(answer) > 1 and answer[0] in _VERDICTS and not _OPEN_QUESTION.match(normalized(pair.question)):
            # What it rests on comes from the passage; the verdict is the answer's own.
            answer = answer[1:]
        if len(_NUMERAL.findall(pair.answer)) > 1:
            # Who compares two figures of the passage says which is the larger one.
            answer = [word for word in answer if word not in listed_words("en", "larger")]
        strange = [word for word in answer if stem(word) not in source_words]
        figures = [word for word in strange if word[0].isdigit()]
        if figures:
            return f"the passage does not give the figure {figures[0]}"
        if len(strange) > (1 - _SHARE_IN_PASSAGE) * len(answer):
            return f"the answer's {', '.join(strange[:3])} does not come from the passage"
    question = [word for word in _content(pair.question) if word not in _QUESTION_WORDS or stem(word) in source_words]
    strange = [
        word for word in _content(printed.rest(pair.question)) if word in question and stem(word) not in source_words
    ]
    figure = printed.missing(pair.question)
    if figure is not None and not form_of(pair).is_verdict(pair):
        return f"the passage does not give the question's figure {pair.question[figure.start : figure.end]}"
    figures = [word for word in strange if word[0].isdigit()]
    if figures and not form_of(pair).is_verdict(pair):
        return f"the passage does not give the question's figure {figures[0]}"
    if not question or len(question) == len(strange):
        return "the question shares no subject with the passage"
    if len(strange) > (1 - _SHARE_OF_QUESTION) * len(question):
        return f"the question's {', '.join(strange[:3])} does not come from the passage"
    return None


def check_answer_fits_question(pair: Pair, context: CheckContext) -> str | None:
    """A question for a time, a number or a person has an answer of that sort (in the languages with lists of words)."""
    start = normalized(pair.question)
    if form_of(pair).is_verdict(pair):
        return None
    if context.language != "en":
        return language_checks.answer_fits_question(pair, context)
    if normalized(pair.answer) in VERDICTS:
        return "yes or no does not answer an open question" if _OPEN_QUESTION.match(start) else None
    if re.match(r"(?:when\b|in (?:what|which) year)", start) and not _TIME_WORD.search(pair.answer):
        return "it asks when, the answer names no time"
    counted = re.match(r"(?:how (?:many|much|old|long|far)|what (?:percentage|share|proportion))\b", start)
    if counted and not (_NUMBER_WORD.search(pair.answer) or _TIME_WORD.search(pair.answer)):
        return "it asks for a quantity, the answer names none"
    if re.match(r"who\b", start) and re.fullmatch(r"[\W\d]+", pair.answer):
        return "it asks who, the answer is a figure"
    return None


def check_near_duplicate_question(pair: Pair, context: CheckContext) -> str | None:
    """Not one of the validation questions, nor nearly; the test questions count only when the dataset is selected.

    Two open-book questions in the same words about different documents are different questions.
    """
    for text in dict.fromkeys((pair.question, question_text(pair))):
        match = context.held_texts.match(text)
        if match is None:
            continue
        held = context.held_questions[match.index]
        both_open = pair.context is not None and held.context is not None
        if both_open and held.document_id and held.document_id != pair.document_id:
            continue
        return f"it repeats the held-back question {held.id!r}"
    return None


def check_demo_copy(pair: Pair, context: CheckContext) -> str | None:
    """Nothing of the prompt's demonstrations has leaked into the pair."""
    question = words_of(pair.question)
    source = words_of(context.passage.text)
    of_form = form_of(pair).demonstration
    for demo in dict.fromkeys((*DEMOS, *form_of(pair).demos)):
        for demo_question in dict.fromkeys((demo.question, demo.closed_question, of_form(demo)["question"])):
            words = words_of(demo_question)
            if question == words:
                return "it is a demonstration of the prompt"
            for start in range(len(words) - 2):
                run = words[start : start + 3]
                content = [word for word in run if word not in FUNCTION_WORDS and word not in _QUESTION_WORDS]
                if len(content) >= 2 and _contains(question, run) and not _contains(source, run):
                    return f"it borrows {' '.join(run)!r} from a demonstration of the prompt"
    return None


def check_unsafe(pair: Pair, context: CheckContext) -> str | None:
    """None of the recipe's unsafe words (whole words or phrases, any case)."""
    text = normalized(" \n ".join(pair.texts))
    for word in context.unsafe_words:
        plain = normalized(word)
        # Scripts without spaces have no edges of words, and particles follow a Korean one.
        before = "" if _NO_EDGE.match(plain) else r"(?<!\w)"
        behind = "" if _NO_EDGE.match(plain[-1:]) or "\uac00" <= plain[-1:] <= "\ud7a3" else r"(?!\w)"
        if regex.search(f"{before}{regex.escape(plain)}{behind}", text):
            return f"it holds the unsafe word {word!r}"
    return None


def _for_form(form: str, check: FormCheck) -> Check:
    """A form's check, which passes pairs of other forms."""

    @functools.wraps(check)
    def only(pair: Pair, context: CheckContext) -> str | None:
        return check(pair, context) if pair.kind == form else None

    return only


def checks_of_forms(forms: Mapping[str, QuestionForm]) -> dict[str, Check]:
    """The checks of forms by name, each of which passes the pairs of other forms.

    Args:
        forms: By name.
    """
    return {name: _for_form(form, check) for form, part in forms.items() for name, check in part.checks.items()}


OF_FORMS = checks_of_forms(FORMS.built_in)
"""The checks of the built-in forms."""
NEAR_QUESTION = "near_duplicate_question"
BUILT_IN: dict[str, Check] = {
    "format": check_format,
    "length": check_length,
    "copied_passage": check_copied_passage,
    "answered_by_itself": check_answered_by_itself,
    "mentions_document": check_mentions_document,
    "whole_question": language_checks.check_whole_question,
    "whole_answer": language_checks.check_whole_answer,
    "stands_alone": language_checks.check_stands_alone,
    **OF_FORMS,
    "grounded": check_grounded,
    "answer_fits_question": check_answer_fits_question,
    NEAR_QUESTION: check_near_duplicate_question,
    "demo_copy": check_demo_copy,
    "unsafe": check_unsafe,
}


def _content(text: str) -> list[str]:
    return [word for word in words_of(_OWNED.sub("", text)) if word not in FUNCTION_WORDS]


def _loops(words: Sequence[str]) -> bool:
    """The same word three times running, or the same three words three times."""
    # A letter of Chinese or Thai is no word.
    spaced = [word for word in words if not _NO_EDGE.match(word)]
    if any(a == b == c for a, b, c in zip(spaced, spaced[1:], spaced[2:], strict=False) if not a.isdigit()):
        return True
    return any(count >= 3 for count in Counter(zip(spaced, spaced[1:], spaced[2:], strict=False)).values())


def _shared_start(words: Sequence[str], source: Sequence[str]) -> int:
    """How many of the first words occur in the source as one run."""
    text = f" {' '.join(source)} "
    least, most = 0, len(words)
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if f" {' '.join(words[:middle])} " in text else (least, middle - 1)
    return least


def _contains(words: Sequence[str], run: Sequence[str]) -> bool:
    return any(list(words[i : i + len(run)]) == list(run) for i in range(len(words) - len(run) + 1))
