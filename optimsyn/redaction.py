"""Takes secrets out of whatever is about to be shown or written, and finds them where none may stand."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

# Names that hold a secret by custom: OPENAI_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, DB_PASSWORD ...
_SECRET_NAME = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)($|_(?!(?:FILE|PATH|DIR|ENV)$))", re.I
)
# Shorter values are placeholders such as `EMPTY` or `none`; taking them out would make messages unreadable.
_SHORTEST_SECRET = 8
SHOWN_INSTEAD = "[redacted]"
KEY_CURE = "put the key in the environment and name its variable by `api_key_env`"

# How the keys of well-known services look. None of these fits into the base64 text of a picture.
_KEY_SHAPE = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?P<dashed>[a-z]?sk-[A-Za-z0-9_-]{12,})"
    r"|hf_[A-Za-z0-9]{16,}|gh[oprsu]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abeoprs]-[\w-]{10,}"
    r"|gsk_[A-Za-z0-9]{20,}|xai-[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|pplx-[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{20,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}"
    r")"
)
_CREDENTIALS_IN_ADDRESS = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@|[?&](?:[\w-]*key|[\w-]*token|secret|password|sig|signature)=[^&\s]+", re.I
)
_TOKEN = re.compile(r"[A-Za-z0-9]{24,}")
# Random letters and digits change their kind in 6 of 10 places; words and CamelCase do so in 1 to 4.
_CHANGES = 0.45
# Fields whose value is a long random number by nature.
_RANDOM_FIELDS = frozenset({"revision"})


def secret_values(extra_names: Iterable[str] = ()) -> list[str]:
    """The secrets in the environment, longest first, so that one inside another leaves no rest.

    Args:
        extra_names: Further variables that hold secrets, such as a recipe's `api_key_env`.
    """
    return sorted(_named_secrets(extra_names).values(), key=len, reverse=True)


def _named_secrets(extra_names: Iterable[str] = ()) -> dict[str, str]:
    named = set(extra_names)
    return {
        name: value.strip()
        for name, value in os.environ.items()
        if (name in named or _SECRET_NAME.search(name)) and len(value.strip()) >= _SHORTEST_SECRET
    }


def redact(text: str, extra_names: Iterable[str] = (), extra_values: Iterable[str] = ()) -> str:
    """`text` with every secret of the environment, and whatever is a key by its shape, replaced by `[redacted]`.

    Args:
        text: What is about to be shown.
        extra_names: Further environment variables that hold secrets.
        extra_values: Further secrets, such as a key that is in use but not in the environment.
    """
    return _without([*secret_values(extra_names), *(v for v in extra_values if len(v) >= _SHORTEST_SECRET)], text)


def redact_tree(value: Any, secrets: list[str]) -> Any:
    """A JSON-like value with every secret taken out of its strings, also out of those in lists and mappings."""
    if isinstance(value, str):
        return _without(secrets, value)
    if isinstance(value, dict):
        return type(value)(
            {
                _without(secrets, key) if isinstance(key, str) else key: redact_tree(v, secrets)
                for key, v in value.items()
            }
        )
    if isinstance(value, list):
        return [redact_tree(item, secrets) for item in value]
    return value


def forget_secrets(error: BaseException, extra_names: Iterable[str] = ()) -> None:
    """Takes secrets out of an exception that is about to be shown by somebody else, a notebook for example.

    Its own text is cleaned; a cause whose text holds a secret (a service that echoes the key) is cut off, for its
    class may build the text from anywhere.

    Args:
        error: The exception; it is changed.
        extra_names: Further environment variables that hold secrets.
    """
    names = tuple(extra_names)
    error.args = tuple(redact(part, names) if isinstance(part, str) else part for part in error.args)
    link = error
    while (cause := link.__cause__ or (None if link.__suppress_context__ else link.__context__)) is not None:
        text = str(cause)
        if redact(text, names) != text:
            link.__cause__, link.__context__, link.__suppress_context__ = None, None, True
            return
        link = cause


def _without(secrets: Iterable[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, SHOWN_INSTEAD)
    return _KEY_SHAPE.sub(lambda match: SHOWN_INSTEAD if _is_key(match) else match.group(), text)


def _is_key(match: re.Match[str]) -> bool:
    """Whether what has the shape of a key is one: `sk-learn-tutorial` is not, for all its parts are words."""
    text = match.group("dashed")
    if text is None:
        return True
    parts = re.split(r"[-_]", text)[1:]
    return any(len(part) >= 16 or (len(part) >= 10 and any(c.isdigit() for c in part)) for part in parts)


def looks_like_key(text: str) -> bool:
    """Whether a text holds what is a key by its shape: `sk-…`, `hf_…`, `ghp_…`, a token of random letters and digits.

    Example:
        >>> looks_like_key("openai/gpt-6-luna"), looks_like_key("sk-proj-4f9a8b7c6d5e4f3a2b1c")
        (False, True)
    """
    return _has_known_shape(text) or _is_random(text)


def _has_known_shape(text: str) -> bool:
    return any(_is_key(match) for match in _KEY_SHAPE.finditer(text)) or bool(_CREDENTIALS_IN_ADDRESS.search(text))


def _is_random(text: str) -> bool:
    stripped = text.strip()
    if re.fullmatch(r"[0-9a-f]{32,}|[0-9A-F]{32,}", stripped):
        return True
    return any(_changes(token) for token in _TOKEN.findall(stripped))


def _changes(token: str) -> bool:
    kinds = ["upper" if c.isupper() else "lower" if c.islower() else "digit" for c in token]
    changes = sum(before != after for before, after in pairwise(kinds))
    return len(set(kinds)) == 3 and changes >= _CHANGES * (len(token) - 1)


def find_secret(value: Any, where: str = "") -> str | None:
    """Where in a tree of mappings, lists and strings a secret stands, and why it is one; without the secret itself.

    Args:
        value: What somebody is about to write into a file of a run: a recipe, the parameters of a notebook.
        where: Dotted name of `value`, for the message.

    Returns:
        Such as `models.generator.name looks like a key`, or None when there is none.
    """
    secrets = _named_secrets()
    for name, text in _strings(value, where):
        for variable, secret in secrets.items():
            if secret in text:
                return f"{name or 'the text'} holds the value of the environment variable {variable}"
        if _CREDENTIALS_IN_ADDRESS.search(text):
            return f"{name or 'the text'} is an address with a password or a key in it"
        random = name.rpartition(".")[2] not in _RANDOM_FIELDS and _is_random(text)
        if random or _has_known_shape(text):
            return f"{name or 'the text'} looks like a key"
    return None


def _strings(value: Any, where: str) -> Iterable[tuple[str, str]]:
    """Every string in a tree with its dotted name; names of fields are strings themselves."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            inner = f"{where}.{key}" if where else str(key)
            if looks_like_key(str(key)) or any(secret in str(key) for secret in secret_values()):
                yield f"a field name in {where}" if where else "a field name", str(key)
                continue
            yield from _strings(item, inner)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _strings(item, f"{where}[{place}]")
