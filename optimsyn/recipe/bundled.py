"""The bundled documents and questions, as a recipe names them."""

from __future__ import annotations

from pathlib import Path

EMBEDDED_PREFIX = "embedded:"


BUNDLED = Path(__file__).parents[1] / "data" / "bundled"


def bundled_domains() -> tuple[str, ...]:
    """The domains with bundled documents and questions: what may follow `embedded:`."""
    return tuple(sorted(folder.parent.name for folder in BUNDLED.glob("*/documents.jsonl")))
