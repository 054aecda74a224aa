"""Keeps keys out of messages, logs and files."""

from __future__ import annotations

import os
import re

REDACTED = "[redacted]"
_SECRET_NAME = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)(_|$)", re.IGNORECASE)
# A shorter value is more likely a word such as "none" or "test" that stands in many harmless messages.
_SHORTEST = 6


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret, as far as its name tells."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str, *secrets: str | None) -> str:
    """Replaces every secret of the environment, and the given ones, in a text meant for a person or a file.

    Args:
        text: A message, for example what a server sent back.
        secrets: Further secrets, such as the key in use; empty ones are ignored.
    """
    known = {value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= _SHORTEST}
    known.update(value for value in secrets if value)
    # Longest first, so that a key that contains another one leaves no tail behind.
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, REDACTED)
    return text
