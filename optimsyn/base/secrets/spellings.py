"""How a secret looks after somebody has escaped or encoded it: in an address, in JSON, in HTML, in base64, in hex.

A service echoes a key the way it got it, and it got it in a header, an address or a JSON body; a library prints an
environment with `repr`; basic authentication is base64 of `user:key`, where the key stands at one of three alignments.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from urllib.parse import quote, quote_plus

# Fewer characters of base64 than these are found in ordinary text.
_SHORTEST_FORM = 8
# Characters that no eye sees, between which a secret is still read as one.
_UNSEEN = "\x00-\x08\x0b\x0c\x0e-\x1f\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff"
_DISGUISED = re.compile(f"&#|[{_UNSEEN}]")


def without(text: str, secrets: Sequence[str], instead: str) -> str:
    """`text` with every form of every secret replaced."""
    for form in _forms(tuple(secrets)):
        if form in text:
            text = text.replace(form, instead)
    if _DISGUISED.search(text) is not None:
        for secret in secrets:
            text = _spelled(secret).sub(lambda _: instead, text)
    return text


def holds(text: str, secret: str) -> bool:
    """Whether any form of a secret stands in a text."""
    if any(form in text for form in _forms((secret,))):
        return True
    return _DISGUISED.search(text) is not None and _spelled(secret).search(text) is not None


@lru_cache(maxsize=256)
def _spelled(secret: str) -> re.Pattern[str]:
    """A secret whose letters stand as numbers of HTML, all or some, or with unseen characters between them."""
    letters = [
        f"(?:{re.escape(letter)}|&#0*{ord(letter)};|&#[xX]0*(?i:{ord(letter):x});)"
        for letter in secret
        if letter.strip()
    ]
    if len(letters) < _SHORTEST_FORM:
        return re.compile(r"(?!)")
    return re.compile(f"[{_UNSEEN}]*".join(letters))


@lru_cache(maxsize=256)
def _forms(secrets: tuple[str, ...]) -> tuple[str, ...]:
    """Of all secrets, the longest first, so that one inside another leaves no rest."""
    forms = {form for secret in secrets for form in _forms_of(secret) if len(form) >= _SHORTEST_FORM}
    # Whatever somebody wrote is a row of JSON lines in the end.
    forms |= {json.dumps(form, ensure_ascii=plain)[1:-1] for form in forms for plain in (False, True)}
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _forms_of(secret: str) -> Iterator[str]:
    yield secret
    lines = secret.splitlines()
    if len(lines) > 1:
        # A key file kept in a variable; its lines are printed one by one, its head and foot are no secret.
        for line in lines:
            if len(line.strip()) >= 2 * _SHORTEST_FORM and not line.startswith("-----"):
                yield from _forms_of(line.strip())
    yield from _escaped(secret)
    data = secret.encode("utf-8", "surrogatepass")
    for written in (data.hex(), data.hex(":"), data.hex(" ")):
        yield from (written, written.upper())
    yield from _base64(data)


def _escaped(secret: str) -> Iterator[str]:
    whole = quote(secret, safe="", errors="surrogatepass")
    plus = quote_plus(secret, errors="surrogatepass")
    for address in (quote(secret, errors="surrogatepass"), whole, plus, quote(whole)):
        yield from (address, re.sub("%[0-9A-F]{2}", lambda found: found.group().lower(), address))
    for plain in (False, True):
        once = json.dumps(secret, ensure_ascii=plain)[1:-1]
        # JSON inside of JSON: a reply that holds an object, kept as a row.
        twice = json.dumps(once, ensure_ascii=plain)[1:-1]
        # As services in Go write it, for pages.
        paged = once
        for sign in "<>&'":
            paged = paged.replace(sign, f"\\u{ord(sign):04x}")
        for written in (once, twice, paged):
            yield from (written, written.replace("/", "\\/"), written.replace("/", "\\\\/"))
    yield repr(secret)[1:-1]
    yield from (html.escape(secret), html.escape(secret, quote=False))
    # What Jinja writes for quotes.
    yield html.escape(secret).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    data = secret.encode("utf-8", "surrogatepass")
    units = secret.encode("utf-16-be", "surrogatepass").hex()
    for case in ("02x", "02X"):
        yield "".join(f"%{byte:{case}}" for byte in data)
        yield "".join(f"\\x{byte:{case}}" for byte in data)
    for digits in (units, units.upper()):
        yield "".join("\\u" + digits[start : start + 4] for start in range(0, len(digits), 4))


def _base64(data: bytes) -> Iterator[str]:
    """Base64 of the bytes on their own and inside a longer text, without the letters that their neighbours share."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + data).decode("ascii")
        start = -(-before * 8 // 6)
        stop = (before + len(data)) * 8 // 6
        core = text[start:stop]
        yield from (core, core.replace("+", "-").replace("/", "_"))
        # As it stands in JSON and in an address.
        yield from (core.replace("/", "\\/"), quote(core, safe=""))
