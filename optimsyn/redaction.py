"""Takes secrets out of whatever is about to be shown or written: messages, logs, notebook outputs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

# Names that hold a secret by custom: OPENAI_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, DB_PASSWORD ...
_SECRET_NAME = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)($|_(?!(?:FILE|PATH|DIR|ENV)$))", re.I
)
# Shorter values are placeholders such as `EMPTY` or `none`; taking them out would make messages unreadable.
_SHORTEST_SECRET = 8
SHOWN_INSTEAD = "[redacted]"


def secret_values(extra_names: Iterable[str] = ()) -> list[str]:
    """The secrets in the environment, longest first, so that one inside another leaves no rest.

    Args:
        extra_names: Further variables that hold secrets, such as a recipe's `api_key_env`.
    """
    named = set(extra_names)
    values = {
        value.strip()
        for name, value in os.environ.items()
        if (name in named or _SECRET_NAME.search(name)) and len(value.strip()) >= _SHORTEST_SECRET
    }
    return sorted(values, key=len, reverse=True)


def redact(text: str, extra_names: Iterable[str] = (), extra_values: Iterable[str] = ()) -> str:
    """`text` with every secret of the environment replaced by `[redacted]`.

    Args:
        text: What is about to be shown.
        extra_names: Further environment variables that hold secrets.
        extra_values: Further secrets, such as a key that is in use but not in the environment.
    """
    for value in [*secret_values(extra_names), *(v for v in extra_values if len(v) >= _SHORTEST_SECRET)]:
        text = text.replace(value, SHOWN_INSTEAD)
    return text


def redact_tree(value: Any, secrets: list[str]) -> Any:
    """A JSON-like value with every secret taken out of its strings, also out of those in lists and mappings."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, SHOWN_INSTEAD)
        return value
    if isinstance(value, dict):
        return type(value)({key: redact_tree(item, secrets) for key, item in value.items()})
    if isinstance(value, list):
        return [redact_tree(item, secrets) for item in value]
    return value
