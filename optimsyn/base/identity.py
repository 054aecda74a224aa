"""Is what lies here the product of the same inputs? One digest of named inputs, kept beside the product."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHA256_DIGITS = 64
_PART_DIGITS = 16


def digest_of(facts: Any, digits: int = _PART_DIGITS) -> str:
    """Hex digits of a JSON value; the order of an object's keys does not count.

    Args:
        facts: The value.
        digits: How many of the 64 digits.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:digits]


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
    def of(cls, inputs: Mapping[str, Any], digits: int = _SHA256_DIGITS) -> Identity:
        """The identity of a product.

        Args:
            inputs: JSON values by what a person calls them. The names are no part of the digest, their order is, so
                that an input may be renamed and another one may come last.
            digits: How many digits the one of all has.
        """
        return cls(digest_of(list(inputs.values()), digits), {name: digest_of(value) for name, value in inputs.items()})

    def saved(self, field: str = "identity") -> dict[str, Any]:
        """What to write beside the product, the digest under the name `field`."""
        return {field: self.digest, "identity_of": dict(self.inputs)}

    def same_as(self, saved: Mapping[str, Any], field: str = "identity") -> bool:
        """Whether what `saved` gave came from the same inputs; also of a version that saved the digest alone."""
        return saved.get(field) == self.digest

    def changed_since(self, saved: Mapping[str, Any], field: str = "identity") -> str:
        """Which inputs are others than those of a saved identity, in words; empty where none is."""
        if self.same_as(saved, field):
            return ""
        parts = saved.get("identity_of")
        return (
            " and ".join(differing(parts, self.inputs)) if isinstance(parts, dict) else "something that it depends on"
        )
