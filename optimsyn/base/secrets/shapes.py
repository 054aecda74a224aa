"""Recognises keys whose value is unknown: by a service's prefix, by their place, by randomness.

From certain to likely:

- a *shape* that a service gives its keys (`sk-…`, `ghp_…`, a PEM header);
- a *place* where keys stand: an address with a password, `Bearer …`, `password=…`;
- random letters and digits.

Shapes and places are removed from every message. What only looks random is refused in recipes and parameters, and left
alone in texts, where it may be a formula or a document's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

_B64 = r"[A-Za-z0-9+/]"
# Prefixes of services' keys. Some occur by chance in the base64 text of a picture, which `spans` leaves alone.
_SHAPE = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    # OpenAI, Anthropic, OpenRouter, DeepSeek, Langfuse, Cerebras and others.
    r"(?P<dashed>[a-z]?sk-[A-Za-z0-9_-]{12,})"
    # Hugging Face, GitHub, GitLab, Docker, npm, PyPI.
    r"|(?:hf|api_org)_[A-Za-z0-9]{16,}|gh[oprsu]_[A-Za-z0-9]{16,}|github_pat_\w{20,}"
    r"|gl(?:pat|dt|rt|soat|cbt|ptt|ft|agent)-[\w.-]{16,}|dckr_(?:pat|oat)_[\w-]{20,}|npm_[A-Za-z0-9]{30,}"
    r"|pypi-AgE[\w-]{20,}"
    # Amazon, Google, Azure, Alibaba, DigitalOcean, Databricks.
    r"|A[KS]IA[0-9A-Z]{16}(?![0-9A-Za-z])|AIza[\w-]{30,}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"
    rf"|[A-Za-z0-9]{{40,}}(?:ACOG|APIM|AzSe){_B64}{{3,16}}(?!{_B64})"
    r"|LTAI[A-Za-z0-9]{12,20}(?![0-9A-Za-z])|do[opr]_v1_[0-9a-f]{40,}|dapi[0-9a-f]{32}(?:-\d)?"
    # Slack, Discord, Telegram.
    r"|xox[abeoprs]-[\w-]{10,}|xapp-\d-[\w-]{10,}|[MNO][A-Za-z\d_-]{23,25}\.[\w-]{6}\.[\w-]{27,}|\d{8,10}:AA[\w-]{32,}"
    # Groq, xAI, NVIDIA, Perplexity, Replicate, Together, Fireworks, Jina, Voyage, Tavily, RunPod, LangSmith.
    r"|gsk_[A-Za-z0-9]{20,}|xai-[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|pplx-[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{20,}"
    r"|tgp_v1_[\w-]{20,}|fw_[A-Za-z0-9]{20,}|jina_[\w-]{32,}|pa-[\w-]{40,}|tvly-(?:dev-|prod-)?[A-Za-z0-9]{20,}"
    r"|rpa_[A-Z0-9]{30,}|lsv2_(?:pt|sk)_[0-9a-f]{32}\w*"
    # Stripe, SendGrid, Mailgun, Twilio, Shopify, Notion, Figma, Linear, Postman, Atlassian, Vault, Grafana, age.
    r"|[rsp]k_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/=]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|key-[0-9a-f]{32}|(?:SK|AC)[0-9a-f]{32}(?![0-9A-Za-z])|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"
    r"|ntn_[A-Za-z0-9]{40,}|secret_[A-Za-z0-9]{40,}|fig[dou]_[\w-]{30,}|lin_(?:api|oauth)_[A-Za-z0-9]{30,}"
    r"|PMAK-[0-9a-f]{24}-[0-9a-f]{30,}|ATATT3[\w=-]{30,}|hv[bs]\.[\w-]{20,}|glsa_[A-Za-z0-9]{30,}_[0-9a-f]{8}"
    r"|sntrys_[\w+/=-]{30,}|AGE-SECRET-KEY-1[0-9A-Z]{50,}|EAACEdEose0cBA[A-Za-z0-9]+"
    # JSON web tokens.
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}"
    r")"
)
# A key in PEM form: up to its footer, else its header and the lines after it.
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:\\[rn]|[\sA-Za-z0-9+/=:,.-])*?-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:(?:\\[rn]|\s)*[A-Za-z0-9+/=]{16,})*)"
)
# `user:password@host`, but not a port and a path (`host.org:443/@name`).
_PASSWORD_IN_ADDRESS = re.compile(
    r"(?<=://)(?P<user>[^\s/:@\"'<>]*):(?P<secret>(?:(?!\d{1,5}/\S*/@|\d{1,5}/@)[^\s@\"'<>]+))@(?=[\w\[.-])"
)
_QUERY = re.compile(
    r"[?&;](?P<name>[\w.-]*(?:api[_-]?key|secret|password|passwd|pwd|credential|signature|access[_-]?token)"
    r"|(?P<weak>[\w.-]*(?:key|token)|auth|authorization|sig|sas|code))=(?P<secret>[^&\s\"'<>#]+)",
    re.I,
)
_WEBHOOK = re.compile(r"(?<=hooks\.slack\.com/services/)T\w+/B\w+/(?P<secret>\w{16,})")
_HEADER = re.compile(
    r"\b(?:(?P<full>Authorization[\"']?\s*[:=]\s*[\"']?(?:Bearer|Basic|Token|Digest)\s+)|(?:Bearer|Basic)\s+)"
    r"(?P<secret>[A-Za-z0-9._~+/=-]{8,}+)",
    re.I,
)
# `password=…`, `"api_key": "…"`, `the token is …`.
_STRONG = (
    r"api[\s_-]?key|secret[\s_-]?(?:access[\s_-]?)?key|client[\s_-]?secret|private[\s_-]?key|account[\s_-]?key"
    r"|shared[\s_-]?access[\s_-]?key|access[\s_-]?key(?:[\s_-]?id)?|(?:access|auth|refresh|bearer|session)[\s_-]?token"
    r"|pass(?:word|wd|phrase|wort)|pwd|mot de passe|contraseña|credentials?"
)
_NAME = (
    rf"(?:(?P<strong>{_STRONG})|(?<![A-Za-z])(?P<weak>key|token|secret|auth|authorization))"
    r"[\"']?\s*+(?:=>|:=|[:=]|\b(?:is|ist|est|es)\b)"
)
_NAME_ALONE = re.compile(_NAME, re.I)
_NAMED = re.compile(
    _NAME + r"\s*+[\"'`]?(?P<secret>[^\s\"'`,;<>()\[\]{}]{8,}+)(?![\[(])",
    re.I,
)
_WORDS_OF_NAMES = ("key", "token", "secret", "auth", "pass", "pwd", "contrase", "credential")
_LONGEST_NAME = 24
_LONGEST_VALUE = 4096
# The first letters of a picture, PDF, archive or font in base64.
_BINARY_STARTS = (
    r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|PHN2Z|PD94bWw|JVBERi0|AAABAA|SUkq|UEsDB|H4sIA|Qk[0-3]|d09G|AAEAAAA|T2dnUw|SUQz)"
)
# Longer than any key in base64; in one piece, or in lines of one length but for the last.
_BINARY = re.compile(
    rf"(?<!{_B64}){_BINARY_STARTS}(?:{_B64}{{400,}}=*|{_B64}{{40,75}}(?:\r?\n{_B64}{{64,76}}){{5,}}(?:\r?\n{_B64}{{1,75}}=*)?)"
)
# The base64 text of a file, and named digests.
_NO_KEY = re.compile(
    rf"{_BINARY_STARTS}{_B64}*=*|data:[\w/+.-]+;base64,{_B64}*=*|\bsha(?:1|256|384|512)[-:]{_B64}+=*"
    r"|(?:docs|drive|sheets)\.google\.com/\S+|youtu\.?be\S*|\bInChI=\S+"
)
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.I)
_HEX = re.compile(r"[0-9a-f]{24,}|[0-9A-F]{24,}")
_TOKEN = re.compile(r"[A-Za-z0-9]{24,}")
# A secret key of Amazon, or any 30 random bytes, in base64.
_FORTY = re.compile(r"(?<![A-Za-z0-9+/=_.-])(?=[A-Za-z0-9]*[+/])[A-Za-z0-9+/]{40,88}={0,2}(?![A-Za-z0-9+/=_.-])")
# Random letters and digits change their kind in 6 of 10 places, words and CamelCase in 1 to 4.
_CHANGES = 0.45
_SOME_CHANGES = 0.3
_FEW_CHANGES = 0.2
# Letter pairs that are common in European languages: eight in ten of a word's pairs, two in ten of random ones.
_COMMON = frozenset(
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de hi ri ro ic "
    "ne ea ra ce li ch ll be ma si om ur ca el ta la ns di fo ho pe ec pr no ct us ac ot il tr ly nc et ut ss so rs un "
    "lo wa ge ie wh ee wi em ad ol rt po we na ul ni ts mo ow pa im mi ai sh ir su id os iv ia am fi ci vi pl ig tu ev "
    "ld ry mp fe bl ab gh ty op wo sa ay ex ke ui da ei ag uc um ue qu ep bo cl do ap ok ck sp gr cr br ff tt pp ba bu "
    "va vo gi go ga gu hy ph yl ox ben zy og eg av ov sc sm sk sl sn sw up ug ub af if ef lf ln rn rm rd rc rb rg rk "
    "rl".split()
)
_COMMON_SHARE = 0.5
_MOST_COMMON_SHARE = 0.65
_FEW_PAIRS = 6


def spans(text: str) -> Iterator[tuple[int, int]]:
    """The spans of keys in a text, by shape or place; they may overlap. Pictures in base64 have none."""
    binary = [match.span() for match in _BINARY.finditer(text)]
    for match in _SHAPE.finditer(text):
        if _is_key(match) and not any(start <= match.start() and match.end() <= stop for start, stop in binary):
            yield match.span()
    for match in _PEM.finditer(text):
        yield match.span()
    for match in (*_HEADER.finditer(text), *_named(text)):
        if _in_place(match):
            yield match.span("secret")
    yield from _address_spans(text)


def in_address(text: str) -> bool:
    """Whether an address holds a password or a key."""
    return any(True for _ in _address_spans(text))


def is_shaped(text: str) -> bool:
    """Whether a text holds a key by shape or place."""
    return any(True for _ in spans(text))


def is_random(text: str) -> bool:
    """Whether a text has random letters and digits."""
    stripped = text.strip()
    # A commit and a SHA-256 have 40 and 64 digits.
    if re.fullmatch(r"[0-9a-f]{32}|[0-9A-F]{32}", stripped):
        return True
    cleared = _NO_KEY.sub(" ", stripped)
    if any(_by_chance(token) for token in _TOKEN.findall(cleared)):
        return True
    return any(_by_chance(match.group().replace("/", "").replace("+", "")) for match in _FORTY.finditer(cleared))


def is_odd(value: str) -> bool:
    """Whether a short value is no word, name, path or plain number; after `token=` it is then a key."""
    value = value.rstrip(".,;:!?")
    if _UUID.fullmatch(value) or (_HEX.fullmatch(value) and not value.isdigit()):
        return True
    letters = re.sub(r"[^A-Za-z0-9]", "", value)
    if len(letters) < (12 if letters.isalpha() else 8) or letters.isdigit():
        return False
    return _share(letters) < _COMMON_SHARE and _kind_changes(letters) >= _SOME_CHANGES


def is_named_key(name: str, value: str) -> bool:
    """Whether a field's name says that its value is a key, and the value may be one.

    Args:
        name: The field's last name, such as `api_key` or `Authorization`.
        value: Its value.
    """
    if re.search(r"env$|file$|path$|name$|\bmax|tokens$", name, re.I) or _is_placeholder(value):
        return False
    if re.search(rf"(?:{_STRONG})$|^authorization$|^(?:x-)?api[_-]?key$", name, re.I):
        return True
    return bool(re.search(r"(?:^|[_-])(?:key|token|secret|auth)$", name, re.I)) and is_odd(value)


def _named(text: str) -> Iterator[re.Match[str]]:
    """`name=value` with a name for keys; searched around such names only, which is faster in long texts."""
    lowered = text.lower()
    # A few letters are longer in lower case, which shifts positions.
    places = lowered if len(lowered) == len(text) else text
    for word in _WORDS_OF_NAMES:
        at = places.find(word)
        while at >= 0:
            name = _NAME_ALONE.search(text, max(0, at - _LONGEST_NAME), at + 2 * _LONGEST_NAME)
            match = name and _NAMED.match(text, name.start(), name.start() + _LONGEST_VALUE)
            if match:
                yield match
            at = places.find(word, at + len(word))


def _address_spans(text: str) -> Iterator[tuple[int, int]]:
    if "://" in text:
        for match in _PASSWORD_IN_ADDRESS.finditer(text):
            if not _is_placeholder(match["secret"]):
                yield match.span("secret")
        for match in _WEBHOOK.finditer(text):
            yield match.span("secret")
    if "=" in text:
        for match in _QUERY.finditer(text):
            value = match["secret"]
            if not _is_placeholder(value) and (match["weak"] is None or _is_secretive(value) or is_odd(value)):
                yield match.span("secret")


def _is_key(match: re.Match[str]) -> bool:
    """Whether a match is a key: `sk-learn-tutorial` is not, since all its parts are words."""
    text = match.groupdict().get("dashed")
    if text is None:
        return True
    parts = re.split(r"[-_]", text)[1:]
    return any(
        (len(part) >= 16 and not (part.isalpha() and part.islower() and _share(part) >= _COMMON_SHARE))
        or (len(part) >= 10 and any(c.isdigit() for c in part))
        for part in parts
    )


def _in_place(match: re.Match[str]) -> bool:
    """Whether the value in a key's place is a key, and not a word or code."""
    groups, value = match.groupdict(), match["secret"]
    if _is_placeholder(value):
        return False
    if groups.get("full"):
        return True
    if groups.get("strong"):
        return _is_secretive(value) and not _is_code(value)
    if match.re is _HEADER and len(value) >= 12 and any(map(str.isdigit, value)):
        return True
    return is_odd(value)


def _is_secretive(value: str) -> bool:
    """Whether a value may be a password: letters with digits or signs, and no date, number or version."""
    value = value.rstrip(".,;:!?")
    letters, digits = sum(c.isalpha() for c in value), sum(c.isdigit() for c in value)
    if len(value) < 8 or not letters:
        return False
    signs = len(re.findall(r"[^\w\s.:-]", value))
    return digits >= 1 or signs >= 2 or (len(value) >= 20 and not re.search(r"[-_.]", value))


def _is_code(value: str) -> bool:
    """`os.environ`, `self._key2`, `config.keys.team1`: code, not a value."""
    return bool(re.fullmatch(r"(?:[A-Za-z_]+\w*\.)+[A-Za-z_]\w*|\$\{?\w+\}?|%\w+%|--?[\w-]+", value))


def _is_placeholder(value: str) -> bool:
    """`EMPTY`, `$KEY`, `<your key>`, `…`, `xxxx`, `[redacted]`."""
    plain = value.strip().strip("[]<>{}\"'").casefold()
    return (
        len(plain) < 3
        or value.strip().startswith(("$", "<", "{", "%(", "[redacted"))
        or plain in PLACEHOLDERS
        or bool(re.fullmatch(r"(.)\1+|[.…*x-]+|your[\w .-]*|my[_-]?(?:api[_-]?)?(?:key|token|secret|password)", plain))
    )


PLACEHOLDERS = frozenset(
    "empty none null nil dummy fake test testing placeholder example default unused changeme change-me password "
    "not-needed no-key not-used notneeded unset undefined true false todo key token secret redacted "
    "no-key-required sk-no-key-required not-required localhost anonymous disabled token-abc123 ollama lm-studio".split()
)
"""Usual values for a server that asks for a key and needs none; they are no secrets."""


def _by_chance(token: str) -> bool:
    kinds = set(map(_kind, token))
    if len(kinds) < 2 or "digit" not in kinds or _HEX.fullmatch(token):
        return False
    changes, share = _kind_changes(token), _share(token)
    if len(kinds) == 3:
        return share < (_COMMON_SHARE if changes < _CHANGES else _MOST_COMMON_SHARE) and changes >= _SOME_CHANGES
    # Upper-case letters and digits alone are part numbers, formulas or sequences.
    return "upper" not in kinds and len(token) >= 28 and changes >= _FEW_CHANGES and share < _COMMON_SHARE


def _kind(letter: str) -> str:
    return "upper" if letter.isupper() else "lower" if letter.islower() else "digit"


def _kind_changes(token: str) -> float:
    kinds = [_kind(letter) for letter in token]
    return sum(before != after for before, after in pairwise(kinds)) / max(1, len(kinds) - 1)


def _share(token: str) -> float:
    """The share of common letter pairs among all; 0 if there are too few to tell."""
    pairs = [a + b for a, b in pairwise(token.casefold()) if a.isalpha() and b.isalpha()]
    return sum(pair in _COMMON for pair in pairs) / len(pairs) if len(pairs) >= _FEW_PAIRS else 0.0
