"""Removes secrets from all output, and refuses them where none are allowed.

*Messages* (also logs, notebooks, reports) go through `redact`, which removes the values of secret variables and
whatever has the shape of a key. *Data* (documents, pairs, replies, ledgers) goes through `kept`, which removes the
values only: a document that explains what keys look like stays as it is.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO, TypeVar

from optimsyn.base.environment import variable, variables
from optimsyn.base.secrets.shapes import PLACEHOLDERS, in_address, is_named_key, is_random, is_shaped, spans
from optimsyn.base.secrets.spellings import holds, without

T = TypeVar("T")

# Usual names of secrets: OPENAI_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, DB_PASSWORD, PGPASSWORD ...
_SECRET_NAME = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)"
    r"($|_(?!(?:FILE|PATH|DIR|ENV|URL|URI|HOST|PORT|TYPE)$))|PASSWORD$|_(?:PASS|PWD|PAT|AUTH)$",
    re.I,
)
# Shorter values are placeholders such as `EMPTY` or `none`; redacting them makes messages unreadable.
_SHORTEST_SECRET = 8
# A shorter key of letters alone may be an ordinary word.
_LONGEST_WORD = 16
SHOWN_INSTEAD = "[redacted]"
KEY_CURE = "put the key in the environment and name its variable by `api_key_env`"

# Fields whose value is random and no secret.
_RANDOM_FIELDS = frozenset({"revision"})
# Fields that name a variable, such as `api_key_env`.
_NAMES_VARIABLE = re.compile(r"(?:^|_)env$")
_VARIABLE_IN_TEXT = re.compile(r"_env[\"']?\s*:\s*[\"']?([A-Za-z_]\w*)")
# The variables that recipes in this process name.
_named_by_recipes: set[str] = set()


def remember_variables(names: Iterable[str]) -> None:
    """Treats the values of these variables as secrets from now on, in every function here."""
    _named_by_recipes.update(name for name in names if name)


def remember_variables_of(text: str) -> None:
    """The same for all variables that a recipe's text names, before it is parsed."""
    remember_variables(_VARIABLE_IN_TEXT.findall(text))


def secret_values(extra_names: Iterable[str] = ()) -> list[str]:
    """The secrets in the environment, longest first, since one may contain another.

    Args:
        extra_names: Further variables that hold secrets, such as a recipe's `api_key_env`.
    """
    return sorted(_named_secrets(extra_names).values(), key=len, reverse=True)


def _named_secrets(extra_names: Iterable[str] = ()) -> dict[str, str]:
    named = {*extra_names, *_named_by_recipes}
    return {
        name: value.strip()
        for name, value in variables().items()
        if (name in named or (_SECRET_NAME.search(name) and not _is_place(value))) and _is_secret(value.strip())
    }


def _is_secret(value: str) -> bool:
    return len(value) >= _SHORTEST_SECRET and value.casefold() not in PLACEHOLDERS


def _is_place(value: str) -> bool:
    """GOOGLE_APPLICATION_CREDENTIALS holds the path of a key file."""
    # Not `Path.exists`, which raises where a long key begins with a slash.
    return value.startswith("/") and os.path.exists(value)  # noqa: PTH110


def plain_key_problem(name: str) -> str | None:
    """Why a variable's value is refused as a key: it occurs in ordinary text, which redaction would damage.

    Args:
        name: A variable that a recipe names.

    Returns:
        None for a good key, a placeholder (`EMPTY`, `none`), or a variable that is not set.
    """
    value = (variable(name) or "").strip()
    if not value or value.casefold() in PLACEHOLDERS:
        return None
    if len(value) < _SHORTEST_SECRET:
        fault = f"has fewer than {_SHORTEST_SECRET} characters"
    elif _is_plain(value):
        fault = f"is a word or a number of under {_LONGEST_WORD} characters"
    elif not value.isascii() or not value.isprintable():
        return f"the value of {name} has a character that no service takes in a key; copy the key again"
    else:
        return None
    return (
        f"the value of {name} {fault}, which texts hold by chance, so it could not be kept out of files; use a key "
        "with letters and digits, or EMPTY for a server that asks for none"
    )


def _is_plain(value: str) -> bool:
    words = re.sub(r"[\s_.-]", "", value)
    return len(value) < _LONGEST_WORD and (words.isalpha() or words.isdigit())


def redact(text: str, extra_names: Iterable[str] = (), extra_values: Iterable[str] = ()) -> str:
    """`text` with every secret of the environment, and whatever has the shape of a key, replaced by `[redacted]`.

    Secrets are recognised as they are, and encoded as in an address, JSON, HTML, base64 or hex.

    Args:
        text: The text to show.
        extra_names: Further environment variables that hold secrets.
        extra_values: Further secrets, such as a key that is not in the environment.
    """
    return _without([*secret_values(extra_names), *filter(_is_secret, extra_values)], text)


def redact_tree(value: Any, secrets: list[str]) -> Any:
    """A JSON-like value with the secrets removed from all its strings."""
    return _mapped(value, lambda text: _without(secrets, text))


def kept(text: str, extra_values: Iterable[str] = ()) -> str:
    """`text` as it may be saved: without the values of secret variables, in any encoding.

    Everything that this package writes goes through this function or `redact`. Keys of unknown origin stay: in data
    they are data. Plain words stay too, since they also occur in field names and documents; a recipe that names a
    variable with such a value is refused (`plain_key_problem`).

    Args:
        text: A line of a ledger, a reply, a whole file.
        extra_values: Further secrets.
    """
    return without(text, _told(extra_values), SHOWN_INSTEAD)


def kept_tree(value: T, extra_values: Iterable[str] = ()) -> T:
    """The same for every string of a JSON-like value."""
    secrets = _told(extra_values)
    result: T = _mapped(value, lambda text: without(text, secrets, SHOWN_INSTEAD)) if secrets else value
    return result


def _told(extra_values: Iterable[str]) -> list[str]:
    return [value for value in (*secret_values(), *filter(_is_secret, extra_values)) if not _is_plain(value)]


def unasked(text: str, asked: str) -> str:
    """A reply without anything shaped like a key, unless the request contains it: then it is quoted data.

    Args:
        text: The reply.
        asked: All texts of the request.
    """
    return _cut(text, [(start, stop) for start, stop in spans(text) if text[start:stop] not in asked])


def _mapped(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return type(value)(
            {clean(key) if isinstance(key, str) else key: _mapped(item, clean) for key, item in value.items()}
        )
    if isinstance(value, list):
        return [_mapped(item, clean) for item in value]
    return value


class CleanWriter(io.TextIOBase):
    """A text stream that removes secrets, for the logs of libraries.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text; libraries print a key in one piece."""
        self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        """Passes on."""
        self._stream.flush()

    def writable(self) -> bool:
        """Always."""
        return True


def forget_secrets(error: BaseException, extra_names: Iterable[str] = ()) -> None:
    """Removes secrets from an exception that other code is about to show, such as a notebook.

    Its own text is cleaned; a cause whose text has a secret (a service that echoes the key) is cut off, since its class
    may build the text in any way.

    Args:
        error: The exception; changed in place.
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
    text = without(text, list(secrets), SHOWN_INSTEAD)
    return _cut(text, list(spans(text)))


def _cut(text: str, cuts: list[tuple[int, int]]) -> str:
    """`text` with these spans, which may overlap, redacted."""
    stop = len(text)
    for start, end in sorted(cuts, reverse=True):
        if end > stop:
            end = stop
        if end <= start:
            continue
        text = text[:start] + SHOWN_INSTEAD + text[end:]
        stop = start
    return text


def looks_like_key(text: str) -> bool:
    """Whether a text has something shaped like a key: `sk-…`, `hf_…`, `ghp_…`, a token of random letters and digits.

    Example:
        >>> looks_like_key("openai/gpt-6-luna"), looks_like_key("sk-proj-4f9a8b7c6d5e4f3a2b1c")
        (False, True)
    """
    return is_shaped(text) or is_random(text)


def find_secret(value: Any, where: str = "") -> str | None:
    """Where a tree of mappings, lists and strings has a secret, and why it is one; without the secret itself.

    The variables that the tree names (`api_key_env: TEAM_PASS`) count as secrets from then on.

    Args:
        value: What is about to be written into a run: a recipe, the parameters of a notebook.
        where: Dotted name of `value`, for the message.

    Returns:
        Such as `models.generator.name looks like a key`; None without a secret.
    """
    remember_variables(_variables_in(value))
    secrets = _named_secrets()
    short = {name: (variable(name) or "").strip() for name in _named_by_recipes if name not in secrets}
    for name, text, plain in _strings(value, where):
        place = name or "the text"
        for holder, secret in secrets.items():
            if holds(text, secret):
                return f"{place} holds the value of the environment variable {holder}"
        for holder, secret in short.items():
            if secret.casefold() not in PLACEHOLDERS and _is_word_of(secret, text):
                return f"{place} holds the value of the environment variable {holder}"
        if not plain:
            continue
        if in_address(text):
            return f"{place} is an address with a password or a key in it"
        field = name.rpartition(".")[2]
        if is_shaped(text) or (field not in _RANDOM_FIELDS and is_random(text)):
            return f"{place} looks like a key"
        if is_named_key(field, text):
            return f"{place} is named like a key"
    return None


def _is_word_of(secret: str, text: str) -> bool:
    return bool(secret) and (text.strip() == secret or (len(secret) > 3 and secret in re.split(r"[^\w!-~]|\s", text)))


def _variables_in(value: Any) -> Iterable[str]:
    """The variables that the fields of a tree name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, str) and _NAMES_VARIABLE.search(str(key).rpartition(".")[2]):
                yield item
            else:
                yield from _variables_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _variables_in(item)


def _strings(value: Any, where: str) -> Iterable[tuple[str, str, bool]]:
    """Every text in a tree with its dotted name, and whether it is a string: YAML reads some keys as numbers or dates.

    Field names that look like secrets are included.
    """
    if isinstance(value, str):
        yield where, value, True
    elif isinstance(value, Mapping):
        for key, item in value.items():
            name = str(key)
            if looks_like_key(name) or any(holds(name, secret) for secret in secret_values()):
                yield f"a field name in {where}" if where else "a field name", name, True
                continue
            yield from _strings(item, f"{where}.{key}" if where else name)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _strings(item, f"{where}[{place}]")
    elif value is not None and not isinstance(value, bool):
        yield where, str(value), False
