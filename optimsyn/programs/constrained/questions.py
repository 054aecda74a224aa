"""English questions that a given stretch of a sentence answers, as a regular expression.

Every such question is the sentence turned around its answer, so that the answer is right whatever the model picks:

    The barn swallow builds its nest from pellets of mud.
    subject   What | builds its nest from pellets of mud?             the words after the answer
    other     What | does | the barn swallow build its nest from?     the words before it, the verb in its base form

The model chooses the sentence, the answer, the question word, the auxiliary, the form of the verb and where to stop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from optimsyn.programs.constrained.spans import FUNCTION_WORDS, Answer
from optimsyn.programs.constrained.verbs import base_forms, is_past

_AUXILIARIES = frozenset("is are was were has have had can could will would may might must should do does did".split())
_LINKS = frozenset("and but or then so thus however also yet nor".split())
_HAVE = frozenset("has have had".split())
_PREPOSITIONS = frozenset(
    "in on at by for to from with around since until during before after of between about".split()
)
_RELATIVES = frozenset("who whom whose which that where when while because although".split())
_ARTICLES = frozenset("a an the".split())
_PRONOUNS = frozenset("he she it they we i you this that these those there his her its their such who which".split())
_QUANTIFIERS = frozenset("many most some all both several each every other".split())
_HEDGES = frozenset("about nearly over almost approximately around estimated some only".split())
# A question about a count needs its verb within so many words.
_FEWEST_COUNTED = 8
_FEWEST, _MOST = 3, 14

_FRONT = {
    "time": "(When|In what year)",
    "name": "(Who|What)",
    "phrase": "What",
    "number": "(How many|How much|How long|How large)",
    "share": "(What percentage|What share)",
}
_PLACE = frozenset("in at near".split())
_LEADS = _PREPOSITIONS | frozenset(
    "although though while when because as if despite following soon due according given".split()
)
_SUBJECT = {"name": "(Who|What)", "phrase": "What", "number": "How many", "share": "(What percentage|What share)"}


def starts_with_pronoun(sentence: str) -> bool:
    """Whether a sentence starts with a word that points at another one ("He", "This")."""
    words = sentence.split()
    return bool(words) and words[0].strip("\"'(“").lower() in _PRONOUNS


def question_pattern(answer: Answer) -> str | None:
    """An anchored regular expression for the questions that `answer` answers; None when the sentence allows none."""
    ways = [way for way in (_of_subject(answer), _of_rest(answer)) if way]
    return f"^({'|'.join(ways)})\\?$" if ways else None


def _of_subject(answer: Answer) -> str | None:
    """`Which bird builds its nest`: the answer is what the words after it are said of."""
    front = _front(answer, _SUBJECT)
    if front is None or not answer.after or _closed(answer.before[-1:]):
        return None
    first = answer.after[0].lower()
    counted = answer.sort in ("number", "share")
    if not counted and (first in FUNCTION_WORDS - _AUXILIARIES or (answer.before and not _opens_clause(answer.before))):
        return None
    if not counted and not _finite(answer.after):
        return None
    words = _until_break(answer.after)
    if counted and (
        first in FUNCTION_WORDS - {"of"}
        or answer.text[0] in "$€£¥"
        or not any(_bare(word) in _AUXILIARIES or is_past(_bare(word)) for word in words[1:_FEWEST_COUNTED])
    ):
        return None
    ends = [end for end in range(_FEWEST, min(len(words), _MOST) + 1) if _may_end(words[end - 2], words[end - 1])]
    if not ends or any(re.search(r"[()\[\]\"“”|]", word) for word in words[: ends[0]]):
        return None
    return _nested(front, [_escaped(_bare(word, end=False)) for word in words], ends)


def _of_rest(answer: Answer) -> str | None:
    """`What does the swallow build its nest from`: the answer is what the words before it lead to."""
    front = _front(answer, _FRONT)
    if front is None:
        return None
    words = list(answer.before)
    while words and _bare(words[-1]).lower() in _HEDGES | FUNCTION_WORDS - _PREPOSITIONS - _AUXILIARIES:
        words.pop()
    place = bool(words) and answer.sort in ("name", "phrase") and words[-1].lower() in _PLACE
    if place or answer.sort == "time":
        # "Where did she live", "When did she die": the preposition goes with the answer.
        front = "Where" if place else front
        while words and _bare(words[-1]).lower() in _PREPOSITIONS | _ARTICLES:
            words.pop()
    clause = _main_clause(words)
    if clause is None:
        return None
    unit = ""
    if answer.sort == "number" and answer.after and answer.after[0].isalpha() and answer.after[0] not in FUNCTION_WORDS:
        unit = f" {_escaped(answer.after[0])}"
    auxiliary, rest = _turned(clause)
    return f"{front}{unit} {auxiliary} {rest}"


def _front(answer: Answer, fronts: dict[str, str]) -> str | None:
    """The question words for an answer; `Which language` where the answer itself ends in that word."""
    front = fronts.get(answer.sort)
    words = answer.text.split()
    if front is None or answer.sort not in ("name", "phrase") or len(words) < 2 or _bare(words[-2]) in FUNCTION_WORDS:
        return front
    head = _bare(words[-1])
    return f"({front}|Which {_escaped(head)})" if head.islower() and head.isalpha() else front


def _main_clause(words: Sequence[str]) -> list[str] | None:
    """The words from the subject on, if they are one plain clause with a verb; what leads up to a comma is left out."""
    if not words:
        return None
    start = 0
    while len(words) > 1 and words[0].lower() in _LINKS:
        words = words[1:]
    if words[0].lower() in _LEADS or words[0].endswith(","):
        start = next((index + 1 for index, word in enumerate(words) if word.endswith(",")), len(words))
    clause = list(words[start:])
    if not _FEWEST <= len(clause) <= _MOST or any(re.search(r"[()\[\]\"“”;:|—–]", word) for word in clause):
        return None
    first, last = _bare(clause[0]).lower(), _bare(clause[-1]).lower()
    if (
        first in _PRONOUNS | _LEADS
        or first.endswith(("ed", "ing"))
        or last in ("and", "or", "but", "that", "which", "not")
        or clause[-1][-1] in ",."
    ):
        return None
    inner = [_bare(word).lower() for word in clause[1:]]
    # A relative clause or a second verb: turning this round would take more grammar than we have.
    if _RELATIVES.intersection(inner) or sum(word in _AUXILIARIES for word in inner) > 1:
        return None
    return clause if _auxiliary_at(clause) is not None or _verbs_at(clause) else None


def _turned(clause: Sequence[str]) -> tuple[str, str]:
    """The auxiliary that moves to the front, and the clause without it.

    `the nest was built by` becomes `was` and `the nest built by`; `the swallow builds` becomes `does|do` and
    `the swallow build`.
    """
    at = _auxiliary_at(clause)
    if at is not None:
        rest = [*clause[:at], *clause[at + 1 :]]
        return _bare(clause[at]).lower(), " ".join(_plain(word, first=index == 0) for index, word in enumerate(rest))
    verbs = _verbs_at(clause)
    past = any(is_past(_bare(clause[verb])) for verb in verbs)
    words = [_plain(word, first=index == 0) for index, word in enumerate(clause)]
    for verb in verbs:
        forms = base_forms(_bare(clause[verb]))
        # A single past form is the verb. Otherwise the model chooses: "pages" may be the verb or the subject.
        options = forms if past and len(verbs) == 1 else [_bare(clause[verb]), *forms]
        comma = "," if clause[verb].endswith(",") else ""
        words[verb] = f"({'|'.join(map(_escaped, options))}){comma}"
    return "did" if past else "(does|do)", " ".join(words)


def _auxiliary_at(clause: Sequence[str]) -> int | None:
    for at in range(1, len(clause)):
        word, following = _bare(clause[at]).lower(), _bare(clause[at + 1]).lower() if at + 1 < len(clause) else ""
        # "had land claims" has a verb of its own, "had fled" an auxiliary.
        if word in _AUXILIARIES and (word not in _HAVE or is_past(following) or following in ("been", "not", "also")):
            return at
    return None


def _verbs_at(clause: Sequence[str]) -> list[int]:
    """Where the finite verb may be: past forms if there are any, else words in -s."""
    past, present = [], []
    for at in range(1, len(clause)):
        word, before = _bare(clause[at]), _bare(clause[at - 1]).lower()
        following = _bare(clause[at + 1]).lower() if at + 1 < len(clause) else ""
        if word in _HAVE:
            past.append(at)
        if not word.islower() or word in FUNCTION_WORDS or before in _ARTICLES | _PREPOSITIONS:
            continue
        if is_past(word) and following != "by":
            past.append(at)
        elif word.endswith("s") and following != "of" and not word.endswith("ss") and len(word) > 3:
            present.append(at)
    return past or present


def _finite(words: Sequence[str]) -> bool:
    """Whether words start with a finite verb, or with an adverb and one."""
    heads = [_bare(word) for word in words[:2]]
    if len(heads) > 1 and heads[0].endswith("ly"):
        heads = heads[1:]
    head = heads[0] if heads else ""
    if not head.islower():
        return False
    following = _bare(words[1]) if len(words) > 1 else ""
    if is_past(head) and following == "by":
        return False
    if head in _AUXILIARIES or is_past(head):
        return True
    return head not in FUNCTION_WORDS and head.endswith("s") and len(head) > 3


def _plain(word: str, *, first: bool) -> str:
    """A word as it stands in a clause after the auxiliary."""
    bare = _bare(word, end=False)
    if first and bare.lower() in _ARTICLES | _QUANTIFIERS:
        bare = bare.lower()
    return _escaped(bare)


def _opens_clause(before: Sequence[str]) -> bool:
    """Whether the words before an answer leave it the subject: only articles, or a phrase that ends in a comma."""
    rest = list(before)
    while rest and _bare(rest[-1]).lower() in _ARTICLES:
        rest.pop()
    return not rest or rest[-1].endswith(",")


def _closed(last: Sequence[str]) -> bool:
    return bool(last) and last[0][-1:] in ')]"”'


def _until_break(words: Sequence[str]) -> list[str]:
    """The words up to the first bracket, quotation mark, semicolon or end of a sentence."""
    kept: list[str] = []
    for word in words:
        if re.search(r"[(\[{\"“|—–]", word) or not _bare(word):
            break
        kept.append(word)
        if word[-1] in '.;:)]"”!?':
            break
    return kept


def _may_end(before: str, word: str) -> bool:
    plain = _bare(word).lower()
    return plain not in FUNCTION_WORDS and not (is_past(plain) and _bare(before).lower() in ("and", "or"))


def _bare(word: str, *, end: bool = True) -> str:
    """A word without punctuation; with `end=False` a comma after it stays."""
    plain = word.strip(" ;:.!?\"'‘’“”()[]{}*_•|<>")
    return plain.strip(",") if end else plain.lstrip(",")


def _nested(front: str, words: Sequence[str], ends: Sequence[int]) -> str:
    """`front w1 w2 (w3 (w4)?)?`: may stop after any number of words in `ends`."""
    tail = ""
    for end in range(ends[-1], 0, -1):
        word = " " + (words[end - 1].rstrip(",") if end == ends[-1] else words[end - 1])
        if tail and end in ends:
            # Where the question may stop, a comma only stands if it goes on.
            comma = "," if words[end - 1].endswith(",") else ""
            tail = f"{word.rstrip(',')}({comma}{tail})?"
        else:
            tail = word + tail
    return front + tail


def _escaped(word: str) -> str:
    return re.sub(r"([.\[\]{}()*+?^$|/])", r"\\\1", word.replace('"', "").replace("\\", ""))
