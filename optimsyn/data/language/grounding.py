"""Which words of an answer or a question come from a text, with endings, particles and compounds of its language."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import regex

from optimsyn.data.language.detect import language_of
from optimsyn.data.language.endings import AFTER_ARABIC, BEFORE_ARABIC, ENDINGS, PARTICLES
from optimsyn.data.language.known import pattern, words
from optimsyn.data.language.segment import UNSPACED, bare, normalized, words_of

_UNSPACED_RUN = regex.compile(rf"[{UNSPACED}][{UNSPACED}\p{{M}}]*")
NUMERAL = regex.compile(r"\d+(?:[.,٫٬'’]\d+)*")
"""A numeral of a normalised text, with marks between thousands and before decimals."""
_GROUPED = regex.compile(r"[.,٬'’](?=\d{3}(?!\d))")
_HIRAGANA = regex.compile(r"\p{Hiragana}")
_WIDE_LETTER = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}ー々〆〇]")
_HANGUL = regex.compile(r"\p{Hangul}")
_ARABIC = regex.compile(r"\p{Arabic}")
_LATIN = regex.compile(r"[a-z]")
_UNSPACED_WORD = regex.compile(rf"[{UNSPACED}]")
# Letters in a row that show that a word of a script without spaces comes from a text.
_WIDE_WINDOW = 2
_THAI_WINDOW = 4
# A longer word is no word; its parts are not looked for.
_LONGEST_WORD = 40
_FEWEST_OF_A_STEM = 3
_FEWEST_OF_A_PART = 4
_SHARE_OF_A_PREFIX = 0.65
# Words with endings that `_ENDINGS` lists; the other languages are compared by the beginnings of their words.
_ENDINGS_OF = {language: tuple(sorted(listed.split(), key=len, reverse=True)) for language, listed in ENDINGS.items()}
_COMPOUNDS = frozenset(("de", "nl", "sv", "da", "no", "fi", "et", "hu"))
_JOINTS = ("", "s", "n", "en", "es", "e", "er")
# auf-ge-füllt and auf-zu-füllen are auffüllen.
_GERMAN_PREFIX = regex.compile(
    "(auf|ab|an|aus|ein|vor|zu|um|nach|her|hin|mit|zuruck|uber|durch|weg|fest|bei|los)(?:ge|zu)"
)
_PARTICLES_OF = frozenset(PARTICLES)
_LONGEST_PARTICLE = max(map(len, PARTICLES))
_SHORTEST_HANGUL_STEM = 2
# ㄴ, ㄹ, ㅁ and ㅂ, by their number behind a vowel.
_FINALS_OF_ENDINGS = (4, 8, 16, 17)
_WEAK = regex.compile("[اويىءئؤ]")
_FEWEST_CONSONANTS = 3


class Source:
    """A text that words may come from.

    Attributes:
        text: The normalised text.
        language: Its language, as an ISO 639-1 code.

    Example:
        >>> source = Source("괴혈병은 비타민 C의 결핍으로 생긴다.")
        >>> source.strange("비타민C의 결핍"), source.strange("비타민 D")
        ([], ['d'])
    """

    def __init__(self, text: str, language: str | None = None) -> None:
        self.text = normalized(text)
        self.language = language_of(text) if language is None else language

    @cached_property
    def words(self) -> frozenset[str]:
        """Its words."""
        return frozenset(words_of(self.text))

    @cached_property
    def _numerals(self) -> dict[str, str]:
        """Its numerals as they are printed, by what they are without marks between thousands."""
        return {_ungrouped(numeral): numeral for numeral in NUMERAL.findall(self.text)}

    @cached_property
    def _bare(self) -> str:
        return bare(self.text)

    @cached_property
    def _bare_letters(self) -> str:
        """The letters of Hangul taken apart, so that endings that melt into a stem can be told from it."""
        return unicodedata.normalize("NFD", self._bare)

    @cached_property
    def _spaced(self) -> str:
        return " ".join(map(_unaccented, words_of(self.text)))

    @cached_property
    def _stems(self) -> frozenset[str]:
        return frozenset(stem for word in self.words for stem in self._stems_of(word))

    @cached_property
    def _korean(self) -> frozenset[str]:
        return frozenset(stem for word in self.words if _HANGUL.match(word) for stem in _korean_stems(word))

    @cached_property
    def _skeletons(self) -> frozenset[str]:
        return frozenset(skeleton for word in self.words for skeleton in _skeletons(word))

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(word[:length] for word in map(_unaccented, self.words) for length in range(2, len(word) + 1))

    def content(self, text: str, empty: Sequence[str] = ("empty",)) -> list[Unit]:
        """The units of a text that have content of their own, in order, and whether they come from this text.

        Args:
            text: The text.
            empty: Names of the lists of `optimsyn.data.language.known.Known` whose words are left out.
        """
        printed = NUMERAL.sub(lambda numeral: self._numerals.get(_ungrouped(numeral[0]), numeral[0]), normalized(text))
        return list(self._units(printed, empty))

    def prints(self, numeral: str) -> bool:
        """Whether a numeral is here, with or without marks between thousands."""
        return _ungrouped(numeral) in self._numerals

    def strange(self, text: str) -> list[str]:
        """The units with content that do not come from this text."""
        return [unit.text for unit in self.content(text) if not unit.known]

    def has_word(self, word: str) -> bool:
        """Whether a normalised word is here, also with other endings or particles."""
        return word in self.words or self._has(word)

    def has(self, unit: Unit) -> bool:
        """Whether a unit of another text is here."""
        return unit.text in self.text if _UNSPACED_WORD.match(unit.text) else self.has_word(unit.text)

    def _units(self, text: str, lists: Sequence[str]) -> Iterator[Unit]:
        empty = frozenset[str]().union(*(words(self.language, name) for name in lists))
        for run in _runs(text):
            if _UNSPACED_WORD.match(run):
                yield from self._unspaced(run, lists)
            elif run not in empty and not (_HANGUL.match(run) and self._is_empty_korean(run, empty)):
                yield Unit(run, self.has_word(run), 1.0, _is_strict(run, self.language))

    def _is_empty_korean(self, word: str, empty: frozenset[str]) -> bool:
        return any(stem in empty for stem in _korean_stems(word)) or word in _PARTICLES_OF

    def _unspaced(self, run: str, lists: Sequence[str]) -> Iterator[Unit]:
        """Known and unknown stretches of a run without spaces; what is only grammar is left out."""
        wide = _WIDE_LETTER.match(run) is not None
        window = _WIDE_WINDOW if wide else _THAI_WINDOW
        known = [False] * len(run)
        if len(run) < window:
            known = [run in self._bare] * len(run)
        for start in range(len(run) - window + 1):
            if run[start : start + window] in self._bare:
                known[start : start + window] = [True] * window
        empty = [wide and _HIRAGANA.match(letter) is not None for letter in run]
        for listed in filter(None, (pattern(self.language, name) for name in lists)):
            for match in listed.finditer(run):
                empty[match.start() : match.end()] = [True] * (match.end() - match.start())
        start = 0
        while start < len(run):
            end = start
            state = _state(known[start], empty[start])
            while end < len(run) and _state(known[end], empty[end]) == state:
                end += 1
            alone = end - start == 1 and run[start] in self._bare
            if state != "empty":
                yield Unit(run[start:end], state == "known" or (alone and wide), (end - start) / window, False)
            start = end

    def _has(self, word: str) -> bool:
        if _is_strict(word, self.language) or len(word) > _LONGEST_WORD:
            return False
        if _HANGUL.match(word):
            return self._has_korean(word)
        if not self._stems.isdisjoint(self._stems_of(word)):
            return True
        if _ARABIC.match(word):
            return not self._skeletons.isdisjoint(_skeletons(word))
        plain = _unaccented(word)
        if self.language in _COMPOUNDS and len(plain) >= _FEWEST_OF_A_PART:
            return self._is_compound(plain)
        if self.language in _ENDINGS_OF:
            return False
        needed = max(_FEWEST_OF_A_STEM, round(_SHARE_OF_A_PREFIX * len(plain)))
        return len(plain) >= needed and plain[:needed] in self._beginnings

    def _stems_of(self, word: str) -> set[str]:
        if _ARABIC.match(word):
            return _arabic_stems(word)
        plain = _unaccented(word)
        stems = {plain}
        for ending in _ENDINGS_OF.get(self.language, ()):
            if plain.endswith(ending) and len(plain) - len(ending) >= _FEWEST_OF_A_STEM:
                stems.add(plain[: -len(ending)])
        if self.language == "de" and plain.startswith("ge") and len(plain) > 6:
            stems |= {stem[2:] for stem in stems if len(stem) > 5}
        parted = _GERMAN_PREFIX.match(plain) if self.language == "de" else None
        if parted is not None:
            stems |= {parted[1] + stem[parted.end() :] for stem in stems if len(stem) > parted.end() + 2}
        return stems

    def _is_compound(self, word: str) -> bool:
        """Whether a word is made of parts of at least four letters that are in the text, joints and an ending."""
        # reached[i]: the first i letters are parts of the text.
        endings = ("", *_ENDINGS_OF.get(self.language, ()))
        reached = [True] + [False] * len(word)
        for start in range(len(word)):
            if not reached[start]:
                continue
            if word[start:] in endings:
                return True
            for end in range(start + _FEWEST_OF_A_PART, len(word) + 1):
                if word[start:end] not in self._spaced:
                    break
                for joint in _JOINTS:
                    if word.startswith(joint, end):
                        reached[end + len(joint)] = True
        return reached[len(word)]

    def _has_korean(self, word: str) -> bool:
        if len(word) >= _SHORTEST_HANGUL_STEM and word in self._bare:
            return True
        if not self._korean.isdisjoint(_korean_stems(word)):
            return True
        # reached[i]: the first i syllables are parts of the text.
        reached = [True] + [False] * len(word)
        for start in range(len(word)):
            if not reached[start]:
                continue
            if start and word[start:] in _PARTICLES_OF:
                return True
            for end in range(start + _SHORTEST_HANGUL_STEM, len(word) + 1):
                if word[start:end] not in self._bare:
                    break
                reached[end] = True
        if reached[len(word)]:
            return True
        return any(self._has_verb(stem) for stem in _korean_stems(word) if stem != word)

    def _has_verb(self, stem: str) -> bool:
        """A stem of one syllable begins a word; one of several is there up to the first letter of its last syllable."""
        if len(stem) < _SHORTEST_HANGUL_STEM:
            return any(other.startswith(stem) for other in self.words)
        letters = unicodedata.normalize("NFD", stem[:-1]) + unicodedata.normalize("NFD", stem[-1])[0]
        return letters in self._bare_letters


@dataclass(frozen=True)
class Unit:
    """A word with content, or a stretch of a script without spaces.

    Attributes:
        text: It, normalised.
        known: Whether it comes from the source.
        weight: How many words it stands for.
        strict: Whether it has to be there as it is: an abbreviation, a figure, a letter between other scripts.
    """

    text: str
    known: bool
    weight: float
    strict: bool


@lru_cache(maxsize=512)
def source_of(title: str, text: str) -> Source:
    """The source of a passage; its language is that of its text."""
    return Source(f"{title} {text}", language_of(text))


def _ungrouped(numeral: str) -> str:
    return _GROUPED.sub("", numeral)


def strange_share(units: Sequence[Unit]) -> float:
    """The share of content that does not come from the source; 0 without content."""
    total = sum(unit.weight for unit in units)
    return sum(unit.weight for unit in units if not unit.known) / total if total else 0.0


def _runs(text: str) -> Iterator[str]:
    """Words, and stretches of scripts without spaces as they stand between others."""
    place = 0
    for stretch in _UNSPACED_RUN.finditer(text):
        yield from words_of(text[place : stretch.start()])
        yield stretch.group()
        place = stretch.end()
    yield from words_of(text[place:])


def _state(known: bool, empty: bool) -> str:
    return "empty" if empty else "known" if known else "strange"


def _is_strict(word: str, language: str) -> bool:
    """Figures, and Latin words in a text of another script, have no endings."""
    if any(map(str.isdigit, word)):
        return True
    return language not in _LATIN_LANGUAGES_BY_ENDING and _LATIN.match(word) is not None and language in _OTHER_SCRIPTS


_LATIN_LANGUAGES_BY_ENDING = frozenset(_ENDINGS_OF)
_OTHER_SCRIPTS = frozenset(
    "ko zh ja th ar fa ur he hi mr bn ru uk bg sr el ka hy ta te kn ml gu pa si lo km my".split()
)


def _unaccented(word: str) -> str:
    if word.isascii():
        return word
    return "".join(letter for letter in unicodedata.normalize("NFD", word) if not unicodedata.combining(letter))


def is_korean_ending(letters: str) -> bool:
    """Whether these are one or two particles or endings of Korean, as they stand behind a word."""
    return letters in _PARTICLES_OF or any(
        letters[:cut] in _PARTICLES_OF and letters[cut:] in _PARTICLES_OF for cut in range(1, len(letters))
    )


@lru_cache(maxsize=8192)
def _korean_stems(word: str) -> frozenset[str]:
    """The word without a particle or ending, without a second one behind it, and itself."""
    stems = {word}
    for _ in range(2):
        stems |= {_without_final(stem) for stem in stems}
        stems |= {
            stem[:-length]
            for stem in list(stems)
            for length in range(1, min(_LONGEST_PARTICLE, len(stem) - 1) + 1)
            if stem[-length:] in _PARTICLES_OF
        }
    return frozenset(stems)


def _without_final(word: str) -> str:
    """A verb without the consonant of an ending: 큰 is 크, 늘어난 is 늘어나."""
    final = (ord(word[-1]) - 0xAC00) % 28 if "\uac00" <= word[-1] <= "\ud7a3" else 0
    return word[:-1] + chr(ord(word[-1]) - final) if final in _FINALS_OF_ENDINGS else word


def _arabic_stems(word: str) -> set[str]:
    stems = {word, *(word[len(front) :] for front in BEFORE_ARABIC if word.startswith(front))}
    stems |= {stem[: -len(behind)] for stem in stems for behind in AFTER_ARABIC if stem.endswith(behind)}
    return {stem for stem in stems if len(stem) >= _FEWEST_OF_A_STEM} | {word}


def _skeletons(word: str) -> Iterable[str]:
    """The consonants of an Arabic word, which its plurals and verbs share."""
    return {bones for stem in _arabic_stems(word) if len(bones := _WEAK.sub("", stem)) >= _FEWEST_CONSONANTS}
