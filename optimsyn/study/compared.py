"""A sample with its similarity and its influence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ComparedSample:
    """A sample compared by embedding and by influence.

    Attributes:
        kind: `synthetic pair` or `expert question`.
        question: Its question.
        answer: Its answer.
        similarity: Cosine of its centred embedding with the mean embedding of the direction's questions.
        influence: On the direction's questions.
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
