"""The escaped and encoded forms of a secret: in an address, in JSON, in HTML, in base64, in hex.

A service echoes a key as it received it, in a header, an address or a JSON body; a library prints an environment with
`repr`; basic authentication is base64 of `user:key`, where the key has one of three alignments.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from urllib.parse import quote, quote_plus

# Shorter strings of base64 occur in ordinary text.
_SHORTEST_FORM = 8
# Invisible characters, which do not hide a secret from a reader.
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
    """Whether a text contains any form of a secret."""
    if any(form in text for form in _forms((secret,))):
        return True
    return _DISGUISED.search(text) is not None and _spelled(secret).search(text) is not None


@lru_cache(maxsize=256)
def _spelled(secret: str) -> re.Pattern[str]:
    """A secret with some or all letters as HTML character codes, or with invisible characters in between."""
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
    """The forms of all secrets, longest first, since one may contain another."""
    forms = {form for secret in secrets for form in _forms_of(secret) if len(form) >= _SHORTEST_FORM}
    # All of them may end up in a row of JSON lines.
    forms |= {json.dumps(form, ensure_ascii=plain)[1:-1] for form in forms for plain in (False, True)}
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _forms_of(secret: str) -> Iterator[str]:
    yield secret
    lines = secret.splitlines()
    if len(lines) > 1:
        # A key file in a variable: lines are printed one by one; header and footer are no secret.
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
        # JSON inside JSON: a reply with an object, saved as a row.
        twice = json.dumps(once, ensure_ascii=plain)[1:-1]
        # As Go escapes JSON for HTML.
        paged = once
        for sign in "<>&'":
            paged = paged.replace(sign, f"\\u{ord(sign):04x}")
        for written in (once, twice, paged):
            yield from (written, written.replace("/", "\\/"), written.replace("/", "\\\\/"))
    yield repr(secret)[1:-1]
    yield from (html.escape(secret), html.escape(secret, quote=False))
    # Jinja's quotes.
    yield html.escape(secret).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    data = secret.encode("utf-8", "surrogatepass")
    units = secret.encode("utf-16-be", "surrogatepass").hex()
    for case in ("02x", "02X"):
        yield "".join(f"%{byte:{case}}" for byte in data)
        yield "".join(f"\\x{byte:{case}}" for byte in data)
    for digits in (units, units.upper()):
        yield "".join("\\u" + digits[start : start + 4] for start in range(0, len(digits), 4))


def _base64(data: bytes) -> Iterator[str]:
    """Base64 of the bytes alone and inside a longer text, without the characters that depend on neighbours."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + data).decode("ascii")
        start = -(-before * 8 // 6)
        stop = (before + len(data)) * 8 // 6
        core = text[start:stop]
        yield from (core, core.replace("+", "-").replace("/", "_"))
        # Escaped in JSON and in an address.
        yield from (core.replace("/", "\\/"), quote(core, safe=""))
