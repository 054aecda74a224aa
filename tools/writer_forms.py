"""The forms that a rubric can ask for, with a function for each that tests a pair.

The seed corpus of the writer is checked with these, and so is how well the writer obeys. They judge form, not truth: a
wrong year is still a date. They read English, German and Korean.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_DATE = re.compile(
    rf"\b(1\d\d\d|20\d\d|\d{{1,4}} (bc|ad|bce|ce)|\d0s|\d+(st|nd|rd|th) century|{_MONTHS}|monday|tuesday|wednesday"
    r"|thursday|friday|saturday|sunday|century|spring|summer|autumn|winter|midnight|noon)\b",
    re.IGNORECASE,
)
_DATE_ABROAD = re.compile(
    r"\b(januar|februar|märz|mai|juni|juli|oktober|dezember|montag|dienstag|mittwoch|donnerstag|freitag|samstag|sonntag"
    r"|jahrhundert|frühling|frühjahr|sommer|herbst|mitternacht|mittag)"
    r"|\d\s*(년|월|일|세기)|[월화수목금토일]요일|봄|여름|가을|겨울|동지|단오|한식|설날|추석|정월|섣달|그믐",
    re.IGNORECASE,
)
# A full stop of a title or of a German ordinal ends no sentence.
_INNER_STOP = re.compile(
    r"\bDr\.|(?<=\d)\.(?=\s(?:Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember"
    r"|Jahrhundert)\b)"
)
_NUMBER_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion half "
    "third quarter thirds quarters twice once dozen double none"
).split()
_NUMBERS_ABROAD = (
    r"\b(eine?[nmrs]?|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|elf|zwölf|\w+zehn|\w+zig|hundert|tausend|halb\w*)(mal)?\b"
    r"|\b(한|두|세|석|네|백|천|만)(?= )|\b(하나|둘|셋|넷|다섯|여섯|일곱|여덟|아홉|열|스물|스무|서른|마흔|쉰"
    r"|예순|절반|하루|이틀|사흘|나흘|닷새|보름)"
)
_FIGURE = re.compile(rf"\d|\b({'|'.join(_NUMBER_WORDS)})\b|{_NUMBERS_ABROAD}", re.IGNORECASE)
_CAUSE = re.compile(
    r"\b(why|cause[sd]?|causing|reasons?|because|due|leads? to|led to|made|makes|explains?"
    r"|warum|weshalb|wieso|weswegen|grund|gründe|ursache\w*)\b|왜|이유|까닭|원인|때문",
    re.I,
)
_DEFINITION = re.compile(
    r"\b(mean(s|t|ing)?|defined?|definition|what (is|are|was|were)|called|refer(s|red)? to|term"
    r"|bedeutet\w*|versteh\w+|bezeichnet\w*|was (ist|sind|war|waren|heißt|meint)|begriff)\b"
    r"|뜻|무엇(인가|이었|을 (말|이르|가리)|입니까)|란 무엇|정의",
    re.I,
)
_COMPARISON = re.compile(
    r"\b(than|compare[ds]?|compared|comparison|differ(s|ed|ent|ence|ences)?|both|versus|unlike|whereas|while|"
    r"more|less|fewer|most|least|\w+er|between|same|similar|contrast|als|unterscheide\w+|unterschied\w*|vergleich\w*"
    r"|verglichen|beide\w*|anders|gegenüber|gemeinsam)\b|보다|차이|다른|다르|달랐|비교|견주|더 |공통|같은 점",
    re.I,
)
VERDICT = re.compile(r"(yes|no(?! one\b)|maybe|ja|nein|vielleicht|예|아니요|알 수 없음)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Written:
    """A pair and its passage.

    Attributes:
        passage: The text.
        question: What is asked.
        answer: Its answer.
        options: All four options of a multiple-choice pair, the right one among them; else empty.
    """

    passage: str
    question: str
    answer: str
    options: tuple[str, ...] = ()


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'’.,-]+", text)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _sentences(text: str) -> int:
    """Number of sentences; a full stop inside a number or an abbreviation does not count."""
    text = _INNER_STOP.sub("", text)
    return len(re.findall(r"[.!?][\"'”’)]*(?=\s+[A-ZÄÖÜ가-힣\"'“‘(]|\s*$)", text.strip()))


def is_figure(pair: Written) -> bool:
    """A number, with its unit where it has one, in at most eight words, and no date."""
    words = _words(pair.answer)
    years = re.fullmatch(r"\W*(1\d\d\d|20\d\d)\W*", pair.answer)
    return bool(_FIGURE.search(pair.answer)) and len(words) <= 8 and years is None


def is_name(pair: Written) -> bool:
    """The name of a person, place, organisation or thing: one to six words, without a leading number."""
    words = _words(pair.answer)
    return (
        1 <= len(words) <= 6 and not pair.answer[:1].isdigit() and not is_verdict(pair) and _sentences(pair.answer) == 0
    )


def is_date(pair: Written) -> bool:
    """A year, a day, a month, a century or a time of year, in at most eight words."""
    dated = _DATE.search(pair.answer) or _DATE_ABROAD.search(pair.answer)
    return bool(dated) and len(_words(pair.answer)) <= 8


def is_cause(pair: Written) -> bool:
    """A question about a reason, and an answer of three words or more."""
    return bool(_CAUSE.search(pair.question)) and len(_words(pair.answer)) >= 3 and not is_verdict(pair)


def is_definition(pair: Written) -> bool:
    """A question about a meaning, and an answer of four words or more."""
    return bool(_DEFINITION.search(pair.question)) and len(_words(pair.answer)) >= 4 and not is_verdict(pair)


def is_comparison(pair: Written) -> bool:
    """A question that compares two things."""
    return bool(_COMPARISON.search(pair.question)) and not is_verdict(pair)


def is_list(pair: Written) -> bool:
    """Two or more items, separated by commas, semicolons or `and`."""
    items = re.split(r",|;|·|\b(?:and|or|und|oder|및|그리고)\b|(?<=[가-힣])(?:와|과) ", pair.answer)
    return sum(bool(item.strip()) for item in items) >= 2 and not is_verdict(pair)


def is_verdict(pair: Written) -> bool:
    """Yes, no or maybe, alone or with a remark on the strength of the evidence."""
    return bool(VERDICT.match(pair.answer.strip()))


def is_clause(pair: Written) -> bool:
    """Five words or more (four in Korean, which writes its particles on the words), verbatim from the passage."""
    least = 4 if re.search("[가-힣]", pair.answer) else 5
    return len(_words(pair.answer)) >= least and _plain(pair.answer) in _plain(pair.passage)


def is_options(pair: Written) -> bool:
    """Four different options, the answer one of them, none over three times as long as another."""
    lengths = [len(_words(option)) for option in pair.options]
    alike = len(lengths) == 4 and max(lengths) <= 3 * max(1, min(lengths)) + 2
    return alike and len({_plain(option) for option in pair.options}) == 4 and pair.answer in pair.options


def is_explanation(pair: Written) -> bool:
    """Two sentences."""
    return _sentences(pair.answer) == 2 and len(_words(pair.answer)) >= 10


FORMS: dict[str, Callable[[Written], bool]] = {
    "figure": is_figure,
    "name": is_name,
    "date": is_date,
    "cause": is_cause,
    "definition": is_definition,
    "comparison": is_comparison,
    "list": is_list,
    "verdict": is_verdict,
    "clause": is_clause,
    "options": is_options,
    "explanation": is_explanation,
}
