"""What the checks of the writer's corpora share: words, and the rules of rubrics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from optimsyn.data.records import Rubric

DOMAINS = ("medicine", "law", "finance", "humanities", "social_sciences")
# Stop words, ignored when two rubrics are compared.
_COMMON = {
    "en": set("a an the and or of to in on for with by from that which is are was were be as at it its this".split()),
    "de": set(
        "der die das den dem des ein eine einen einem einer eines und oder nicht auch in im an am auf für mit bei von "
        "vom zu zum zur aus nach über unter als wie dass weil wenn ist sind war wird werden hat haben er sie es".split()
    ),
    "ko": set(),
}


class Strict(BaseModel):
    """Refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def plain(text: str) -> str:
    """Words only, for comparisons."""
    return " ".join(re.findall(r"\w+", text.lower()))


def content(text: str, language: str = "en") -> set[str]:
    """The content words."""
    return set(plain(text).split()) - _COMMON[language]


def faults_of_lines(rubric: Rubric) -> Iterator[str]:
    """Criteria of the wrong length."""
    for name, line in rubric.model_dump().items():
        if not 3 <= len(line.split()) <= 24 or "\n" in line:
            yield f"rubric.{name} has {len(line.split())} words; it must have 3 to 24 on one line"


def faults_of_likeness(rubrics: Sequence[Rubric], language: str = "en") -> Iterator[str]:
    """Rubrics of one passage that share too many words."""
    words = [content(" ".join(rubric.model_dump().values()), language) for rubric in rubrics]
    for index in range(len(words)):
        for other in range(index):
            shared = len(words[index] & words[other]) / max(1, min(len(words[index]), len(words[other])))
            if shared > 0.7:
                yield f"the rubrics of examples {other} and {index} share {shared:.0%} of their words"


def faults_of_repetition(
    texts: dict[str, Sequence[str]], rubrics: Sequence[Rubric], guiding: Sequence[str]
) -> Iterator[str]:
    """Texts that occur twice, criteria more than three times, guiding texts more than twelve times.

    Args:
        texts: What must be different, such as passages and questions, by its name in messages.
        rubrics: Of all examples.
        guiding: The guiding texts of all examples.
    """
    for label, each in texts.items():
        yield from (f"{label} {count} times: {text[:60]!r}" for text, count in Counter(each).items() if count > 1)
    for name in Rubric.model_fields:
        lines = Counter(plain(getattr(rubric, name)) for rubric in rubrics)
        yield from (f"rubric.{name} {count} times: {line!r}" for line, count in lines.items() if count > 3)
    yield from (f"a guiding text {count} times: {t[:60]!r}" for t, count in Counter(guiding).items() if count > 12)
