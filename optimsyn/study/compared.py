"""A sample by what an embedding and what the target sees of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ComparedSample:
    """One sample under both eyes.

    Attributes:
        kind: `synthetic pair` or `expert question`.
        question: Its question.
        answer: Its answer.
        similarity: Cosine of its centred embedding with the mean of those of the direction-giving questions.
        influence: On the direction-giving questions.
        x: First principal component of the embeddings.
        y: Second.
    """

    kind: str
    question: str
    answer: str
    similarity: float
    influence: float
    x: float
    y: float
