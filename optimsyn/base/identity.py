"""Is what lies here the product of the same inputs? One digest of named inputs, kept beside the product."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_PART_DIGITS = 16
_PARTS = "inputs_by_name"


def digest_of(facts: Any, digits: int = _PART_DIGITS, *, sort_keys: bool = True, ensure_ascii: bool = True) -> str:
    """Hex digits of a JSON value.

    Args:
        facts: The value.
        digits: How many of the 64 digits.
        sort_keys: The order of an object's keys does not count; False is for digests that were made so before.
        ensure_ascii: As of `json.dumps`; False is for digests that were made so before.
    """
    text = json.dumps(facts, sort_keys=sort_keys, ensure_ascii=ensure_ascii)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def whole_digest(facts: Any) -> str:
    """All 64 digits."""
    return digest_of(facts, 64)


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of the inputs that are not the same in both, those of `before` first."""
    names = dict.fromkeys([*before, *now])
    return [name for name in names if before.get(name) != now.get(name)]


@dataclass(frozen=True)
class Identity:
    """What a product depends on, and whether a kept one depended on the same.

    Attributes:
        digest: Of all inputs in one.
        inputs: Of each by its name, so that a message can say which one changed.

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
        """The identity of a product.

        Args:
            inputs: JSON values by what a person calls them. The names are no part of the digest, the order is.
            digest: Makes one of a JSON value.
        """
        return cls(digest(list(inputs.values())), {name: digest_of(value) for name, value in inputs.items()})

    def saved(self, field: str = "identity") -> dict[str, Any]:
        """What to write beside the product, the digest under the name `field`."""
        return {field: self.digest, _PARTS: dict(self.inputs)}

    def same_as(self, saved: Mapping[str, Any], field: str = "identity") -> bool:
        """Whether a kept product came of the same inputs; also one that an older version kept with the digest alone."""
        return saved.get(field) == self.digest

    def changed_since(self, saved: Mapping[str, Any], field: str = "identity") -> str:
        """Which inputs are others than those of a kept product, in words; empty where none is."""
        if self.same_as(saved, field):
            return ""
        parts = saved.get(_PARTS)
        # An older version did not keep them.
        names = differing(parts, self.inputs) if isinstance(parts, dict) else []
        return " and ".join(names) or "something that it depends on"

    @staticmethod
    def parted(saved: Mapping[str, Any], field: str = "identity") -> tuple[dict[str, Any], dict[str, Any]]:
        """What was kept, taken apart: the identity, and the rest."""
        identity = {name: value for name, value in saved.items() if name in (field, _PARTS)}
        return identity, {name: value for name, value in saved.items() if name not in identity}
