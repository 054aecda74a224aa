"""The parts of the validity checks that depend on the language, and which checks know which languages.

The language of a pair is that of its passage. `grounded`, `format`, `length` and the like know the words of every
script; what needs lists of words runs in the languages of `optimsyn.data.language.known` only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import regex

from optimsyn.data.forms import Looked, form_of
from optimsyn.data.language import english
from optimsyn.data.language.detect import language_name, language_of
from optimsyn.data.language.grounding import NUMERAL, Source, Unit, strange_share
from optimsyn.data.language.known import knows, opposites, pattern, words
from optimsyn.data.language.segment import bare, has_unspaced, normalized, word_count
from optimsyn.data.language.whole import fragment, is_order, is_question, refuses, repeats
from optimsyn.data.records import Pair, Passage
from optimsyn.data.text import FUNCTION_WORDS, words_of

NEEDS_WORDS = ("answer_fits_question", "mentions_document", "stands_alone")
"""Checks that run only in languages whose words are known."""
NEEDS_ENGLISH = ("whole_question",)
"""Checks of which a part, the grammar, is for English only."""
ENGLISH_QUESTION_WORDS = frozenset(
    """how much many long far old large when where who which what why year percentage share compare compared differ
    meaning mean means term word words exact sentence say says tell describe date named""".split()
)
"""Words of an English question that ask."""
_SHARE_IN_PASSAGE = 0.7
_SHARE_OF_PASSAGES = 0.02
_SHARE_OF_QUESTION = 0.5
# Without a list of words that carry no content, more of a question is strange.
_SHARE_OF_ANY_QUESTION = 0.34
_UNIT = regex.compile(
    r"(?<![a-z])(?:kg|mg|ml|l|dl|mmhg|cm|mm|km|km2|m|m2|g|gy|eur|euro|usd|us|q\d)(?![a-z])|円|元|圆|人|割|歳|岁|個|个|次|回|倍|"
    r"명|원|개|배|회|주|달러|위안|엔|퍼센트|포인트|บาท|คน|ร้อยละ|บรรทัด|เปอร์เซ็นต์|ราว|คริสต์ศักราช|ประมาณ|(?<!\w)(?:prozent|euro|dollar|mark|"
    r"دينار|ريال|درهم|جنيه|دولار|بالمئه|المئه|درجه|يورو)(?!\w)"
)
_FEW_UNITS = 2
# Words with content of a question with a pronoun that only the passage explains; more where it comes early.
_FEW_WITH_POINTER = 2.0
_FEW_WITHOUT_SUBJECT = 3.0
_SHARE_OF_HEAD = 0.6
_AT_START = 2
# A longer answer may say with a negation what the passage says without.
_FEW_WORDS = 6
_MORE_AT_START = 3


# Words that ask in English and are words of no other language with Latin letters; WHO in capitals is a name.
_ENGLISH_ASKING = frozenset("what why how when which who where whose does did".split())
_LATIN = regex.compile(r"(?<![\w-])[A-Z]?[a-z]+(?![\w-])")


def check_whole_question(pair: Pair, context: Looked) -> str | None:
    """The question asks something in the passage's language, is no order, and is whole (grammar: English only)."""
    if form_of(pair).is_verdict(pair) and pair.form:
        return None
    language = context.language
    if language == "en":
        broken = english.ungrammatical(pair.question)
        return None if broken is None else f"the question is not whole: {broken}"
    given = {word.lower() for word in _LATIN.findall(context.source.text)}
    mixed = next(
        (w for w in _LATIN.findall(pair.question) if w.lower() in _ENGLISH_ASKING and w.lower() not in given), None
    )
    if mixed is not None:
        return f"it asks in English ({mixed}), and the passage is in another language"
    if not is_question(pair.question, language):
        return "it does not ask anything"
    if is_order(pair.question, language):
        return "it tells to do something in place of asking"
    return None


def check_whole_answer(pair: Pair, context: Looked) -> str | None:
    """The answer is no piece of a sentence, is not said twice, and does not say that it knows none."""
    if form_of(pair).is_verdict(pair):
        return None
    if refuses(pair.answer, context.language):
        return "the answer says that it knows none"
    if repeats(pair.answer):
        return "the answer repeats itself"
    broken = fragment(pair.answer, context.source.text, context.language)
    return None if broken is None else f"the answer is only a piece: {broken}"


def check_stands_alone(pair: Pair, context: Looked) -> str | None:
    """A question that is asked without the passage names what it is about."""
    if pair.context is not None or (pair.form and form_of(pair).is_verdict(pair)):
        return None
    language = context.language
    if language == "en":
        reason = english.not_alone(pair.question, english_content(pair.question))
        return None if reason is None else f"without the passage nobody can answer it: {reason}"
    pointing = pattern(language, "pointing")
    if pointing is None:
        return None
    units = _question_units(pair.question, context)
    named = [unit for unit in units if unit.known or unit.strict]
    weight = sum(unit.weight for unit in units if unit.text not in words(language, "pointing"))
    if not named and not units:
        return "without the passage nobody can answer it: it names nothing that it asks about"
    question = normalized(pair.question)
    match = pointing.search(question)
    if match is not None and (match.start() <= _AT_START or not any(unit.strict for unit in units)):
        few = _FEW_WITH_POINTER + (match.start() <= _SHARE_OF_HEAD * len(question))
        few += _MORE_AT_START * (match.start() <= _AT_START)
        if weight <= few:
            return f"without the passage nobody can answer it: {match.group().strip()!r} is said nowhere else"
    headless = pattern(language, "headless")
    if headless is not None and headless.match(question) and weight <= _FEW_WITHOUT_SUBJECT:
        return "without the passage nobody can answer it: it names no subject"
    return None


def grounded(pair: Pair, context: Looked) -> str | None:
    """`grounded` for passages in other languages than English."""
    language, source = context.language, context.source
    # A calculated figure has a check of its own.
    if not (form_of(pair).is_verdict(pair) or form_of(pair).is_derived(pair)):
        # Who compares two figures of the passage says which is the larger one.
        empty = ("empty", "larger") if len(NUMERAL.findall(normalized(pair.answer))) > 1 else ("empty",)
        # Forms whose answers have lines show their quote here, which may be missing.
        units = source.content(pair.answer, empty)
        units = units or ([_whole(pair.answer, context)] if bare(pair.answer) else [])
        # An answer may end with the verb of its question.
        asked = Source(pair.question, language)
        units = [unit for unit in units if unit.known or unit.strict or not asked.has(unit)] or units
        strict = [unit.text for unit in units if unit.strict and not unit.known]
        missing = _missing_numeral(pair.answer, source)
        if strict or missing:
            return f"the passage does not give {missing or strict[0]}"
        if strange_share(units) > 1 - _SHARE_IN_PASSAGE:
            strange = [unit.text for unit in units if not unit.known]
            return f"the answer's {', '.join(strange[:3])} does not come from the passage"
        turned = _turned_round(pair, source.text, language)
        if turned is not None:
            return turned
    units = _question_units(pair.question, context)
    missing = None if form_of(pair).is_verdict(pair) else _missing_numeral(pair.question, source)
    if missing:
        return f"the passage does not give the question's figure {missing}"
    if units and not any(unit.known for unit in units):
        return "the question shares no subject with the passage"
    least = _SHARE_OF_QUESTION if knows(language) else _SHARE_OF_ANY_QUESTION
    if strange_share(units) > 1 - least:
        strange = [unit.text for unit in units if not unit.known]
        return f"the question's {', '.join(strange[:3])} does not come from the passage"
    return None


def answered_by_itself(pair: Pair, context: Looked) -> str | None:
    """`answered_by_itself` for passages in other languages than English."""
    question = normalized(pair.question)
    either = pattern(context.language, "either")
    plain = bare(pair.answer)
    if has_unspaced(pair.answer) or context.language == "ko":
        inside = len(plain) > 1 and plain in bare(question)
    else:
        there = Source(pair.question, context.language)
        units = there.content(pair.answer)
        inside = bool(units) and all(unit.known for unit in units)
    # "Is it higher or lower?" offers its answers.
    offered = either is not None and regex.search(
        rf"{regex.escape(plain)}\W*(?:{either.pattern})|(?:{either.pattern})\W*{regex.escape(plain)}", question
    )
    if inside and not offered:
        return f"the question already says {pair.answer!r}"
    return None


def mentions_document(pair: Pair, context: Looked) -> str | None:
    """`mentions_document` for passages in other languages than English."""
    source = pattern(context.language, "source")
    if source is None:
        return None
    for text in (pair.question, pair.answer):
        for match in source.finditer(normalized(text)):
            # A noun that the passage itself uses is the subject.
            if match.group().strip() not in context.source.text:
                return f"it speaks of {match.group().strip()!r}"
    return None


def answer_fits_question(pair: Pair, context: Looked) -> str | None:
    """`answer_fits_question` for passages in other languages than English."""
    language = context.language
    question, answer = normalized(pair.question), normalized(pair.answer)
    if not knows(language) or not answer:
        return None
    asked = {kind: _asks(question, language, kind) for kind in ("who", "when", "many", "why", "where")}
    bare_answer = answer.strip(" .。!")
    verdicts = pattern(language, "verdict")
    either = pattern(language, "either")
    if (
        verdicts is not None
        and verdicts.fullmatch(bare_answer)
        and any(asked.values())
        and not either_in(either, question)
    ):
        return "yes or no does not answer an open question"
    time, number = pattern(language, "time"), pattern(language, "number")
    digit = regex.search(r"\d", answer)
    if asked["when"] and not asked["many"] and not (digit or (time and time.search(answer))):
        return "it asks when, the answer names no time"
    if asked["many"] and not (digit or (number and number.search(answer)) or (time and time.search(answer))):
        return "it asks for a quantity, the answer names none"
    for kind in ("who", "why", "where"):
        if asked[kind] and not asked["many"] and not asked["when"] and _is_only_figure(answer, language):
            return f"it asks {kind}, the answer is a figure"
    return None


def _is_only_figure(answer: str, language: str) -> bool:
    """Whether an answer has nothing but figures, units and words of time and quantity."""
    time, number, empty = (pattern(language, field) for field in ("time", "number", "empty"))
    if regex.search(r"\d", answer) is None and (number is None or number.search(answer) is None):
        return False
    rest = _UNIT.sub(" ", answer)
    for listed in (time, number, empty):
        rest = rest if listed is None else listed.sub(" ", rest)
    return regex.search(r"\p{L}", rest) is None


def either_in(either: regex.Pattern[str] | None, question: str) -> bool:
    """Whether a question offers its answers."""
    return either is not None and either.search(question) is not None


def checks_not_run(language: str, checks: Iterable[str]) -> dict[str, str]:
    """Checks that do not run, or only in part, in a language: why, by name.

    Args:
        language: Its ISO 639-1 code.
        checks: The names of those that a recipe runs.
    """
    reasons: dict[str, str] = {}
    for name in checks:
        if name in NEEDS_WORDS and language != "en" and not knows(language):
            reasons[name] = f"`{name}` does not run there, it has no words of {language_name(language)}"
        elif name in NEEDS_ENGLISH and language != "en":
            reasons[name] = f"`{name}` does not look at grammar there, it knows that of English only"
    return reasons


def language_notes(passages: Sequence[Passage], disabled: Iterable[str] = ()) -> list[str]:
    """A sentence for each language but English that passages are in: the checks that do not run, or not whole, and why.

    Args:
        passages: Of a run.
        disabled: Checks that the recipe disables.
    """
    checks = [name for name in (*NEEDS_WORDS, *NEEDS_ENGLISH) if name not in set(disabled)]
    counts = Counter(language_of(passage.text) for passage in passages)
    notes = []
    for language, count in counts.most_common():
        reasons = checks_not_run(language, checks)
        # A table of names may look like any language.
        if reasons and language and count >= _SHARE_OF_PASSAGES * len(passages):
            some = f"{count} of {len(passages)} passages are" if count > 1 else f"1 of {len(passages)} passages is"
            notes.append(f"{some} in {language_name(language)}: {'; '.join(reasons.values())}")
    return notes


def english_content(text: str) -> list[str]:
    """Words of an English text that carry content."""
    return [word for word in words_of(text) if word not in FUNCTION_WORDS and word not in ENGLISH_QUESTION_WORDS]


def _asks(question: str, language: str, kind: str) -> bool:
    asks = pattern(language, kind)
    if asks is None:
        return False
    if language == "ar":
        return asks.match(question) is not None
    return asks.search(question) is not None


def _question_units(question: str, context: Looked) -> list[Unit]:
    units = context.source.content(question)
    if knows(context.language):
        return units
    # Short words of a language without lists are mostly grammar.
    return [unit for unit in units if unit.known or len(unit.text) > 3]


def _whole(text: str, context: Looked) -> Unit:
    plain = bare(text)
    return Unit(plain, bool(plain) and plain in bare(context.source.text), 1.0, False)


def _missing_numeral(text: str, source: Source) -> str | None:
    """The first numeral that the passage does not print, with or without marks between thousands."""
    return next((numeral for numeral in NUMERAL.findall(normalized(text)) if not source.prints(numeral)), None)


def _turned_round(pair: Pair, source: str, language: str) -> str | None:
    """A negation or an opposite where the passage has none."""
    answer, question = normalized(pair.answer), normalized(pair.question)
    for word, opposite in opposites(language):
        if word.search(answer) and opposite.search(source) and not word.search(source) and not word.search(question):
            return f"the passage says {_first(opposite, source)!r} where the answer says {_first(word, answer)!r}"
    negation = pattern(language, "negation")
    if negation is None or language in ("ko", "ar"):
        return None
    # 少ない, fewer, ends like a negation.
    larger = pattern(language, "larger")
    said = negation.search(answer if larger is None else larger.sub(" ", answer))
    if (
        said is not None
        and word_count(answer) <= _FEW_WORDS
        and not negation.search(source)
        and not negation.search(question)
    ):
        return f"the passage does not say {said.group()!r}"
    return None


def _first(word: regex.Pattern[str], text: str) -> str:
    match = word.search(text)
    return match.group() if match else ""


def question_size(question: str) -> int:
    """Words of a question, syllables and letters counted where words have only some."""
    syllables = len(regex.findall(r"\p{Hangul}", question)) / _FEW_UNITS
    return max(word_count(question), round(syllables), len(bare(question)) if has_unspaced(question) else 0)
