"""Seeds derived from their purpose, so that a resumed run draws the same as an uninterrupted one."""

from __future__ import annotations

import hashlib
import random


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**31) that depends on the parts alone (no clock, no process hash seed)."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def shuffled(items: list[str], *parts: object) -> list[str]:
    """The items in a seeded random order."""
    copy = list(items)
    random.Random(derive_seed(*parts)).shuffle(copy)
    return copy


def turn_seed(seed: int, turn: int) -> int:
    """The seed of a later search of the guiding text, 2 being the first one after a policy's training."""
    return derive_seed(seed, "turn", turn)


def search_seed(seed: int, passage_id: str) -> int:
    """The seed of a passage's pairs in the search of a guiding text with this seed; the same under every text."""
    return derive_seed(seed, "optimize_prompt", passage_id)
