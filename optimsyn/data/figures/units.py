"""Words and signs of scales and units behind or before a numeral.

No unit is converted: 1 km is not 1,000 m. Nouns that are counted (35 ships) are words of the text, no units.
"""

from __future__ import annotations

import re

_SCALES = {
    2: "hundred",
    3: "thousand thousands thsd tausend tsd. tys.",
    6: "million millions mn mln mio mio. millionen millón millones milione milioni milhão milhões miljoen 百万",
    9: "billion billions bn bln milliard milliards milliarde milliarden mrd mrd. miliardo miliardi mld bilhão bilhões "
    "miljard 十億",
    12: "trillion trillions trn billionen 兆 조",
    4: "万 萬 만",
    8: "亿 億 억",
}
SCALE = {word: power for power, words in _SCALES.items() for word in words.split()}
# Letters that are a scale only beside a currency: $5m, £2.1bn, €40k.
SCALE_LETTER = {"k": 3, "m": 6, "b": 9, "t": 12}
_UNITS = {
    "%": "% percent prozent procent",
    "pp": "pp",
    "$": "$ us$ usd dollar dollars",
    "€": "€ eur euro euros",
    "£": "£ gbp",
    "¥": "¥ jpy yen 円",
    "₩": "₩ krw 원",
    "₹": "₹ inr rupee rupees",
    "kg": "kg kilogram kilograms kilogramme kilogrammes",
    "g": "g gram grams gramme grammes",
    "mg": "mg milligram milligrams",
    "µg": "µg μg mcg microgram micrograms",
    "km": "km kilometre kilometres kilometer kilometers",
    "m": "m metre metres meter meters",
    "cm": "cm centimetre centimetres centimeter centimeters",
    "mm": "mm millimetre millimetres millimeter millimeters",
    "l": "l litre litres liter liters",
    "ml": "ml millilitre millilitres milliliter milliliters",
    "year": "year years",
    "month": "month months",
    "week": "week weeks",
    "day": "day days",
    "hour": "hour hours hr hrs h",
    "minute": "minute minutes min mins",
    "second": "second seconds s",
}
UNIT = {word: unit for unit, words in _UNITS.items() for word in words.split()} | {
    "per cent": "%",
    "percentage point": "pp",
    "percentage points": "pp",
}
CURRENCIES = frozenset("$€£¥₩₹")
_BEFORE = ("US$", "$", "€", "£", "¥", "₩", "₹", "USD", "EUR", "GBP", "JPY", "KRW", "INR")
BEFORE = rf"(?<![^\W\d_])(?:{'|'.join(map(re.escape, _BEFORE))})"
"""A currency before its figure, as a pattern."""


def _pattern(words: list[str]) -> str:
    # Longest first; a word ends where its letters do, other signs anywhere.
    ordered = sorted(words, key=len, reverse=True)
    return "|".join(
        re.escape(word) + (r"(?![^\W_])" if word[-1].isascii() and word[-1].isalpha() else "") for word in ordered
    )


BEHIND_SCALE = re.compile(rf"[ \u00a0-]?(?P<scale>{_pattern(list(SCALE))})(?![a-zà-ÿ])", re.IGNORECASE)
BEHIND_LETTER = re.compile(r"[ \u00a0]?(?P<scale>[kmbt])(?![^\W_])", re.IGNORECASE)
# One letter is a unit in lower case only: 5 g is a weight, 5G a network.
BEHIND_UNIT = re.compile(
    rf"[ \u00a0-]?(?P<unit>(?i:{_pattern([word for word in UNIT if len(word) > 1])})|"
    rf"{_pattern([word for word in UNIT if len(word) == 1])})"
)
