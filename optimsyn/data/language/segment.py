"""The words of a text in any script: the one place that says where a word begins and ends."""

from __future__ import annotations

import unicodedata

import regex

# Katakana's long mark and the iteration marks belong to no script of their own.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー々〆〇\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that are written without spaces, as the inside of a character class."""
# A letter of such a script with its marks is a word; Hangul is apart from Latin letters and digits ("비타민C의").
_WORDS = regex.compile(rf"(?V1)[{UNSPACED}]\p{{M}}*|\p{{Hangul}}+|[[\w]--[{UNSPACED}\p{{Hangul}}]]+")
_FEW_LETTERS_A_WORD = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}ー々〆〇]")
_MORE_LETTERS_A_WORD = regex.compile(r"(?V1)[[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]--\p{M}]")
_WIDE = regex.compile(rf"[{UNSPACED}\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+")
_ANY_UNSPACED = regex.compile(rf"[{UNSPACED}]")
_LETTERS_OF_MARKS = regex.compile(rf"[{UNSPACED}\p{{Hangul}}]\p{{M}}*|[^\s{UNSPACED}\p{{Hangul}}]+")
_BARE = regex.compile(r"[^\w]+|_+")
_SPACES = regex.compile(r"\s+")
# A longer run without spaces is no single word (a table rule, a base64 blob) and counts as several, so that passages
# stay short.
_LONGEST_WORD = 24
_CHARS_A_WORD = 6
# Letters for what is a word of English in a translation, measured on parallel texts: some 1.7 in Chinese, 2.3 in
# Japanese, 4 in Thai.
_WIDE_A_WORD = 2
_THAI_A_WORD = 4
# Invisible marks for the direction of writing.
BIDI_CONTROLS = tuple(map(ord, "\u061c\u200e\u200f")) + tuple(range(0x202A, 0x202F)) + tuple(range(0x2066, 0x206A))
# Vowel signs of Arabic and Hebrew, which few people write, the stretching of Arabic letters, joiners, soft hyphens.
_UNWRITTEN = (
    *range(0x0610, 0x061B), *range(0x064B, 0x0660), 0x0670, *range(0x06D6, 0x06EE), 0x0640, *range(0x0591, 0x05BE),
    0x00AD, *range(0x200B, 0x200E), 0x2060, 0xFEFF,
)  # fmt: skip
# Ways to write one letter in Arabic and Persian.
_ARABIC = str.maketrans("أإآٱىیکةۀ", "ااااييكهه")
_FOLDED: dict[int, int | None] = dict.fromkeys((*BIDI_CONTROLS, *_UNWRITTEN)) | _ARABIC
_DIGITS = regex.compile(r"[^\P{Nd}0-9]")


def normalized(text: str) -> str:
    """`text` for comparisons.

    Unicode NFKC, case folded, digits of all scripts as 0 to 9, Arabic without vowel signs and variants of letters, no
    invisible marks, white space collapsed.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    plain = unicodedata.normalize("NFKC", text).translate(_FOLDED).casefold()
    plain = _DIGITS.sub(lambda digit: str(unicodedata.digit(digit.group())), plain)
    return _SPACES.sub(" ", plain).strip()


def words_in(text: str) -> list[str]:
    """The words as they are written, without punctuation: a letter each in scripts without spaces."""
    return _WORDS.findall(text)


def words_of(text: str) -> list[str]:
    """The words of the normalised text, without punctuation; digits are words.

    Example:
        >>> words_of("비타민C의 결핍, 维生素C")
        ['비타민', 'c', '의', '결핍', '维', '生', '素', 'c']
    """
    return _WORDS.findall(normalized(text))


def word_count(text: str) -> int:
    """Words by white space; in scripts without spaces by letters, so that a count says as much as in English.

    Longer unbroken runs count one word per six characters.
    """
    wide = 0.0
    if not text.isascii() and _ANY_UNSPACED.search(text):
        wide = len(_FEW_LETTERS_A_WORD.findall(text)) / _WIDE_A_WORD
        wide += len(_MORE_LETTERS_A_WORD.findall(text)) / _THAI_A_WORD
        text = _WIDE.sub(" ", text)
    spaced = sum(1 if len(w) <= _LONGEST_WORD else -(-len(w) // _CHARS_A_WORD) for w in text.split())
    return spaced + -int(-wide // 1)


def has_unspaced(text: str) -> bool:
    """Whether a text has letters of a script without spaces."""
    return not text.isascii() and _ANY_UNSPACED.search(text) is not None


def bare(text: str) -> str:
    """The normalised text without white space and punctuation."""
    return _BARE.sub("", normalized(text))


def answer_tokens(text: str) -> list[str]:
    """The tokens by which answers are compared: letters of Chinese, Japanese, Korean, Thai and the like, else words.

    As in the evaluation of CMRC, DRCD and KorQuAD. The text comes normalised and without punctuation.
    """
    return text.split() if text.isascii() else _LETTERS_OF_MARKS.findall(text)
