"""Was a saved result made from the same inputs? One digest of named inputs, saved beside the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_PART_DIGITS = 16
_PARTS = "inputs_by_name"


def digest_of(facts: Any, digits: int = _PART_DIGITS, *, sort_keys: bool = True, ensure_ascii: bool = True) -> str:
    """The SHA-256 of a JSON value, in hex.

    Args:
        facts: The value.
        digits: How many of the 64 digits.
        sort_keys: Ignore the order of an object's keys; False keeps old digests valid.
        ensure_ascii: As in `json.dumps`; False keeps old digests valid.
    """
    text = json.dumps(facts, sort_keys=sort_keys, ensure_ascii=ensure_ascii)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def whole_digest(facts: Any) -> str:
    """All 64 digits."""
    return digest_of(facts, 64)


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of the inputs that differ, those of `before` first."""
    names = dict.fromkeys([*before, *now])
    return [name for name in names if before.get(name) != now.get(name)]


@dataclass(frozen=True)
class Identity:
    """What a result depends on, to compare with what a saved one depended on.

    Attributes:
        digest: Of all inputs together.
        inputs: A digest of each input by name, so that a message can say which one changed.

    Example:
        >>> before = Identity.of({"the pairs": [1, 2], "the seed": 7}).saved()
        >>> now = Identity.of({"the pairs": [1, 2], "the seed": 8})
        >>> now.same_as(before), now.changed_since(before)
        (False, 'the seed')
    """

    digest: str
    inputs: Mapping[str, str]

    @classmethod
    def of(cls, inputs: Mapping[str, Any], digest: Callable[[Any], str] = whole_digest) -> Identity:
        """The identity of a result.

        Args:
            inputs: JSON values by a readable name. The digest depends on their order, not on the names.
            digest: The digest function for a JSON value.
        """
        return cls(digest(list(inputs.values())), {name: digest_of(value) for name, value in inputs.items()})

    def saved(self, field: str = "identity") -> dict[str, Any]:
        """What to save beside the result, the digest under the name `field`."""
        return {field: self.digest, _PARTS: dict(self.inputs)}

    def same_as(self, saved: Mapping[str, Any], field: str = "identity") -> bool:
        """Whether a saved result has the same inputs; older versions saved the digest alone."""
        return saved.get(field) == self.digest

    def changed_since(self, saved: Mapping[str, Any], field: str = "identity") -> str:
        """The inputs that differ from those of a saved result, in words; empty if none does."""
        if self.same_as(saved, field):
            return ""
        parts = saved.get(_PARTS)
        # Older versions did not save them.
        names = differing(parts, self.inputs) if isinstance(parts, dict) else []
        return " and ".join(names) or "something that it depends on"

    @staticmethod
    def parted(saved: Mapping[str, Any], field: str = "identity") -> tuple[dict[str, Any], dict[str, Any]]:
        """Splits saved data into the identity and the rest."""
        identity = {name: value for name, value in saved.items() if name in (field, _PARTS)}
        return identity, {name: value for name, value in saved.items() if name not in identity}
