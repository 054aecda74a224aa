"""Whether a question or an answer is whole, in any language: nothing cut off, repeated or refused."""

from __future__ import annotations

from collections import Counter

import regex

from optimsyn.data.language.dictionary import cut_word
from optimsyn.data.language.grounding import is_korean_ending
from optimsyn.data.language.known import pattern
from optimsyn.data.language.segment import UNSPACED, bare, has_unspaced, normalized, words_of

QUESTION_MARK = regex.compile(r"[?？؟⸮;՞፧]\W*$")
"""What ends a question, also in Greek, Armenian and Ethiopic."""
_UNMARKED = regex.compile(r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_END = regex.compile(r"[?？؟;՞፧:：.。…।၊။៕]\W*$")
_KOREAN_END = regex.compile(r"[까니나가지요대래]\W*$")
_JAPANESE_END = regex.compile(r"か[。.\W]*$")
_OPENING, _CLOSING = "([{（［｛「『【《〈“«", ")]}）］｝」』】》〉”»"
_PAIRS = dict(zip(_CLOSING, _OPENING, strict=True))
# The end of a table's row beside the start of the next one, or an empty cell.
_ROWS = regex.compile(r"\|\s+\|")
_BORDER = regex.compile(r"(?:^|\s)\|(?:\s|$)")
_BRACKETS = regex.compile(r"\([^()]*\)|\{[^{}]*\}|\[[^\[\]]*\]")
# Signs that no answer begins with.
_NO_START = regex.compile(r"^\s*[,;:.!?)\]}、，。；：！？」』）】؛،%％](?!\d)")
_NO_END = regex.compile(r"[,;、，；،؛(（「『［\[{]\s*$")
_LISTED = regex.compile(r"(?:^|\W)\w{1,2}$")
_SEGMENTS = regex.compile(r"[.,;!?。、，；！？،؛\n]+\s*")
_REPEATED_WORDS = 3
# "No" stands in "notice" and is no piece of it.
_SHORTEST_CUT = 4
_SHORTEST_CUT_UNSPACED = 2
_LETTERS_A_WORD = 2
# A stretch of some letters or a sign, three times running.
_LOOP = regex.compile(r"(\d+[\p{L}%％].{0,40}?|[\p{L}%％].{1,40}?)\1\1")
_GAPS = regex.compile(r"[\s.,;!?。、，；！？،؛]+|(?<=[\d%％])(?:と|and|และ)")
_LONGEST_LOOP = 300
_LETTERS_SAID_AGAIN = 6
_SHARE_SAID_AGAIN = 0.45
_HANGUL = regex.compile(r"\p{Hangul}")
_THAI = regex.compile(r"\p{Thai}")
_LONGEST_LOOK = 1200
_LETTER = regex.compile(r"[\p{L}\p{M}]")
# What may follow a whole word in the same run of letters, by language; None: nothing that is known.
_ENDINGS = {
    "en": "s es ed d ing ly er 's n al",
    "de": "e n s en er es em st t ern te ten",
    "ar": "ه ها هم هن ي ك نا كم ات ان ين ون ة ت وا ا",
}
_PREFIXES = {"ar": ("ال", "و", "ب", "ل", "ف", "ك", "لل", "وال", "بال", "فال", "كال", "ول", "وب", "س")}
_ENDINGS_OF = {language: frozenset(map(normalized, listed.split())) for language, listed in _ENDINGS.items()}
_KOREAN_STARTS = regex.compile(
    r"^(?:을|를|에|에서|에게|으로|로|은|는|이|가|의|와|과|도|만|까지|부터|보다|처럼|이나|라고|고|며|면서|하여|하고|되어|되고|된|될|되는)\s"
)
# Japanese particles that stand behind a word, so never at the beginning of an answer.
_JAPANESE_STARTS = regex.compile(
    r"^(?:を|が|に|へ|で|の|は|も|と|から|まで|より|や|って|っ|ん|ゃ|ゅ|ょ|ッ|ャ|ュ|ョ|ー|ます|です|した|され|られ|れる|せる)"
)
_JAPANESE_STARTS_BUT = regex.compile(
    r"^(?:でき|です|でも|では|はい|もう|もの|もと|もち|とき|ところ|とても|とり|とく|にほん|にわ|にく|はし|はっ|はな|はじ|やく|やす|やや|やま|より多|のち|のう|のど|がん|がい|へい|へん|でん|から[^、]の|もっと|もし|まで)"
)
_CUT_THAI = regex.compile(r"^[\u0E30-\u0E3A\u0E45-\u0E4E]|[\u0E40-\u0E44]$")
_CUT_NUMBER = regex.compile(r"\d,$")
_FOLLOWING_THAI = regex.compile(r"[\p{M}ะาำๅๆ]")
_CONNECTING_START = regex.compile(r"^(?:and|or|but|which|because of which|of which|whose)\s")


def is_question(question: str, language: str) -> bool:
    """Whether a text ends as questions do in its language, or asks with its words.

    Thai and its neighbours use no question mark. In a language without lists any end of a sentence will do.
    """
    if QUESTION_MARK.search(question):
        return True
    asks = pattern(language, "asks")
    if asks is None:
        return bool(_END.search(question)) or bool(_UNMARKED.search(question))
    text = normalized(question)
    if language == "ko" and not _KOREAN_END.search(text):
        return False
    if language == "ja" and _JAPANESE_END.search(text):
        return True
    return asks.search(text) is not None


def is_order(question: str, language: str) -> bool:
    """Whether a text tells the reader to do something, in place of asking."""
    orders = pattern(language, "orders")
    if orders is None or QUESTION_MARK.search(question):
        return False
    text = normalized(question).rstrip(".。! ")
    found = [match for match in orders.finditer(text) if match.start() == 0 or match.end() == len(text)]
    return bool(found)


def unclosed(text: str) -> bool:
    """Whether a bracket or quotation mark is open at the end, or closed without being opened."""
    open_ones: list[str] = []
    for place, sign in enumerate(text):
        if sign in _OPENING:
            open_ones.append(sign)
        elif sign in _PAIRS:
            # German and its neighbours close with “ what „ opened, and lists write "a)".
            if open_ones and open_ones[-1] == _PAIRS[sign]:
                open_ones.pop()
            elif sign in ")）" and _LISTED.search(text[max(0, place - 4) : place]):
                continue
            elif sign not in "”“»«":
                return True
    return any(sign not in "“«" for sign in open_ones)


def repeats(text: str) -> bool:
    """Whether a text says the same again and again: a part of some words twice, a stretch of letters three times."""
    text = text[:_LONGEST_LOOK]
    unspaced = has_unspaced(text)
    seen: Counter[str] = Counter()
    for part in _SEGMENTS.split(text):
        plain = bare(part)
        size = len(plain) / _LETTERS_A_WORD if unspaced else len(words_of(part))
        seen[plain] += 1
        # Two words may come twice in a list, three or more do not.
        if seen[plain] >= (2 if size >= _REPEATED_WORDS else 3) and size >= _REPEATED_WORDS - 1:
            return True
    if _LOOP.search(_GAPS.sub("", normalized(text[:_LONGEST_LOOP]))):
        return True
    return _said_again(bare(text)) >= _SHARE_SAID_AGAIN


def _said_again(plain: str) -> float:
    """The share of a text that repeats long stretches of what comes before."""
    least = _LETTERS_SAID_AGAIN if has_unspaced(plain) or _HANGUL.search(plain) else 2 * _LETTERS_SAID_AGAIN
    if _THAI.search(plain):
        least = 2 * _LETTERS_SAID_AGAIN
    place = again = 0
    while place + least <= len(plain):
        length = least
        if plain[place : place + length] not in plain[:place] or plain[place : place + length].isdigit():
            place += 1
            continue
        while place + length < len(plain) and plain[place : place + length + 1] in plain[:place]:
            length += 1
        again += length
        place += length
    return again / len(plain) if plain else 0.0


def refuses(answer: str, language: str) -> bool:
    """Whether an answer says that it knows none, in its language or in English."""
    text = normalized(answer)
    short = len(words_of(text)) <= (40 if has_unspaced(text) else 14)
    for known in dict.fromkeys((language, "en")):
        unknown = pattern(known, "unknown")
        match = unknown.search(text) if unknown and short else None
        if match is not None and _is_most(match, text, known):
            return True
    return False


def _is_most(match: regex.Match[str], text: str, language: str) -> bool:
    """A reply that refuses begins or ends with it; "of unknown origin" does not."""
    tail = text[match.end() :].strip(" .。!").strip()
    head = text[: match.start()].strip()
    few = 12 if language in ("ko", "zh", "ja", "th") else 24
    if language not in ("ko", "zh", "ja", "th") and " " not in match.group():
        # "unknown" is a reply, "unknown names" may be an answer.
        return not head and not tail
    whole = len(match.group()) >= 0.5 * len(text)
    return whole or (not head and len(tail) <= few) or (len(match.group()) >= 3 and (len(tail) <= few or not head))


def _in_a_table(answer: str, source: str) -> bool:
    """Whether an answer of one line goes over the borders of cells; in a formula or a command a bar is no border."""
    if "\n" in answer.strip() or _ROWS.search(source) is None:
        return False
    return _BORDER.search(_BRACKETS.sub("", answer)) is not None


def fragment(answer: str, source: str, language: str) -> str | None:
    """What shows that an answer is only a piece of a sentence; None for a whole one.

    Args:
        answer: The answer.
        source: The normalised passage.
        language: Of the passage.
    """
    if unclosed(answer):
        return "a bracket or quotation mark is not closed"
    if _NO_START.search(answer) or _NO_END.search(answer):
        return "it begins or ends with a sign that stands between words"
    if _in_a_table(answer, source):
        return "it has the borders of a table's cells"
    text = normalized(answer)
    if language == "ko" and _KOREAN_STARTS.match(text) and not _is_at_start(text, source):
        return "it begins with a particle"
    if language == "ja" and _JAPANESE_STARTS.match(text) and not _JAPANESE_STARTS_BUT.match(text):
        return "it begins with a particle"
    if language == "en" and _CONNECTING_START.match(text):
        return "it begins in the middle of a sentence"
    place = source.find(text)
    following = source[place + len(text) : place + len(text) + 1] if text and place >= 0 else ""
    goes_on = following and regex.match(r"[.,]?\d", source[place + len(text) :]) is not None
    if text[-1:].isdigit() and goes_on and source.count(text) == 1:
        return "it is cut off in a number"
    if text.endswith(".") and following.isdigit() and source.count(text) == 1:
        return "it is cut off in a number"
    if language == "th" and following and _FOLLOWING_THAI.match(following) and following != "ๆ":
        return "it is cut off in a word"
    if _CUT_THAI.search(answer.strip()) or _CUT_NUMBER.search(text):
        return "it is cut off"
    return _cut_in_a_word(text.strip(" .。、,!?\"'“”„«»()"), source, language)


def _is_at_start(text: str, source: str) -> bool:
    place = source.find(text)
    return place >= 0 and (place == 0 or not source[place - 1].isalnum())


def _cut_in_a_word(text: str, source: str, language: str) -> str | None:
    """An answer in the words of the passage that begins or ends inside one of them everywhere."""
    if len(text) < (_SHORTEST_CUT_UNSPACED if has_unspaced(text) else _SHORTEST_CUT):
        return None
    place = source.find(text)
    cut = None
    # An answer is short; one that is everywhere in a passage is no fragment.
    for _ in range(20):
        if place < 0:
            return cut
        cut = _cut_at(place, place + len(text), source, language)
        if cut is None:
            return None
        place = source.find(text, place + 1)
    return None


def _cut_at(start: int, end: int, source: str, language: str) -> str | None:
    unspaced = rf"[{UNSPACED}]"
    word = cut_word(start, end, source, language)
    if word is not None:
        return f"it is cut off in {word!r}"
    if end < len(source) and _joined(source, end, unspaced):
        rest = _letters(source, end, 1)
        if not _may_follow(rest, source[start:end], source, language):
            return f"it is cut off before {rest!r}"
    if start and _joined(source, start, unspaced):
        rest = _letters(source, start - 1, -1)
        if language in _PREFIXES:
            if rest not in _PREFIXES[language]:
                return f"it begins inside {rest + source[start:end].split()[0]!r}"
        elif language not in ("ko",) and (source[start:end].count(" ") or language == "en"):
            return f"it begins inside {rest + source[start:end].split()[0]!r}"
    return None


def _joined(source: str, place: int, unspaced: str) -> bool:
    """Whether letters of one spaced word stand on both sides of a place."""
    before, behind = source[place - 1], source[place]
    if regex.match(unspaced, before) or regex.match(unspaced, behind):
        return False
    if (before.isascii() != behind.isascii()) and ("HANGUL" in _names(before, behind)):
        return False
    return bool(_LETTER.match(before) and _LETTER.match(behind))


def _names(*letters: str) -> str:
    return "HANGUL" if any("\uac00" <= letter <= "\ud7a3" for letter in letters) else ""


def _letters(source: str, place: int, step: int) -> str:
    """The letters of a word on one side of a place."""
    letters: list[str] = []
    while 0 <= place < len(source) and _LETTER.match(source[place]) and len(letters) < 40:
        letters.append(source[place])
        place += step
    return "".join(letters[::step])


def _may_follow(rest: str, answer: str, source: str, language: str) -> bool:
    if language == "ko":
        return is_korean_ending(rest)
    if language not in _ENDINGS_OF:
        # Endings of other languages: a word that lacks more than half is cut.
        last = answer.split()[-1]
        return len(rest) <= max(3, len(last))
    if rest in _ENDINGS_OF[language]:
        return True
    # The first part of a German compound is a word, and may stand elsewhere.
    last = answer.split()[-1]
    alone = " " not in answer or regex.search(rf"(?<!\w){regex.escape(last)}(?!\w)", source) is not None
    return language == "de" and len(rest) >= 4 and len(last) >= 4 and alone
