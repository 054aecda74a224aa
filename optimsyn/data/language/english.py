"""Whether an English question is whole and can be understood alone: heuristics for English only.

They look at the beginning of a question, where a small model's mistakes are: a verb without a noun, two question words
that do not go together. What they refuse is broken; what they let pass need not be good English.
"""

from __future__ import annotations

import re

_ASKS = "who|whom|whose|what|which|when|where|why|how"
_BE = "is|are|was|were"
_HELPERS = "is|are|was|were|am|do|does|did|has|have|had|can|could|may|might|must|shall|should|will|would"
_PREPOSITIONS = (
    "of|from|by|with|for|at|into|onto|out|off|than|as|upon|between|among|about|during|since|until|per|within|without"
)
_AUXILIARIES = "do|does|did|can|could|may|might|shall|should|will|would"
# "What is in …?" and "Who was on …?" are whole; "What were out of 711,988 inhabitants 56.2%?" is not.
_BROKEN_TEXT = (
    (rf"^(?:what|who) (?:{_BE}) (?:out|than|per|into|onto|off|upon)\b", "a noun is missing behind {}"),
    (rf"^(?:{_ASKS}) (?:{_AUXILIARIES}) (?:{_PREPOSITIONS}|and|or)\b", "a noun is missing behind {}"),
    (rf"^(?:who|what|when|where|why) (?:{_BE}|do|does|did) [$€£]?\d[\d,.]*%?\s*\?", "{} asks for nothing"),
    (r"^(?:who|what|when|where|why|which|how) (?:and|or|but|of|the|a|an) \?", "it ends after {}"),
    (r"^(?:when|where|why|who) (?:the|a|an|of|by|for|than)\b(?!.*,)", "a verb is missing behind {}"),
    (r"^what (?:the|a|an)\b(?!.*,)", "a verb is missing behind {}"),
    (rf"^(?:{_ASKS}) (?:{_ASKS})\b(?! (?:of|else))", "{} are two question words"),
    (
        rf"^(?:what|who|when|where|why|how) (?:{_HELPERS}) (?:is|are|was|were|does|did|can|could|will|would)\b",
        "{} has two verbs",
    ),
    (rf"^(?:{_HELPERS}) (?:of|than|by|from|out|into)\b", "a noun is missing behind {}"),
    (rf"\b(?:of|from|by|with|than|the|a|an|and|or) (?:{_HELPERS}|of|than|the)\s*\?$", "it breaks off at {}"),
)
_BROKEN = [(re.compile(broken), reason) for broken, reason in _BROKEN_TEXT]
_DANGLING = re.compile(r"(?:^|[^\d$€£])\b\d[\d,]*(?:\.\d+)?\s?%\s*\?$")
_DANGLES_AFTER = re.compile(r"^(?:what|who|which|where|when|why) (?:is|are|was|were|did|does|do)\b")
_NOUN_BEFORE_FIGURE = re.compile(
    r"\b(?:of|by|to|at|about|than|over|under|from|least|most|nearly|roughly|around|almost|exceed|exceeds|reach|reached|"
    r"exceeded|the|be|between|and|or|is|are|was|were|equal|equals)\s+\S+\s*$"
)
_SUBJECT_PRONOUN = re.compile(
    rf"^(?:{_ASKS})(?: \w+)? (?:{_HELPERS}) (?:it|he|she|they|this|that|these|those|there)\b"
    rf"(?! (?:is|are|was|were) \w+ing)|^(?:{_HELPERS}) (?:it|he|she|they|this|these|those)\b"
)
_FRONTED = re.compile(
    r",|\b(?:if|when|while|although|because|who|which|that|whose)\b.+\b(?:if|when|while|although|because)\b"
)
_VERB_ENDING = re.compile(r"(?:ed|ing)$")
_GENERIC = frozenset(
    """person people thing things name type kind sort part way reason result effect cause purpose number amount value
    year date day month time place main first second third two three four five happen happened happens called known used
    use made make makes found said say says given give gives become became do done get got take taken took show shown
    shows need needed needs mean means meant help helps important common example following percent percentage share
    total increase increased decrease decreased change changed reduce reduced rise rose fall fell year's often best most
    least less more company group patient patients study case author party rule process method result results""".split()
)


def ungrammatical(question: str) -> str | None:
    """What is broken in an English question; None where nothing shows."""
    text = " ".join(question.lower().split())
    text = re.sub(r"^[\"'“‘(]+", "", text)
    for broken, reason in _BROKEN:
        match = broken.search(text)
        if match is not None:
            return reason.format(repr(match.group().strip(" ?")))
    # A figure at the end that belongs to nothing: "What were the inhabitants 56.2%?"
    if _DANGLES_AFTER.match(text) and _DANGLING.search(text) and not _NOUN_BEFORE_FIGURE.search(text.rstrip("? ")):
        return f"{text.rstrip('?').split()[-1]!r} at its end belongs to nothing"
    return None


def not_alone(question: str, content: list[str]) -> str | None:
    """What shows that a reader without the passage cannot tell what an English question is about.

    Args:
        question: The question.
        content: Its words with content, without question words.
    """
    text = " ".join(question.lower().split())
    own = [word for word in content if word not in _GENERIC]
    if not own:
        return "it names nothing that it asks about"
    if _SUBJECT_PRONOUN.match(text) and not _FRONTED.search(text) and len(own) <= 2 and not _has_name(question):
        return "it speaks of something that only the passage names"
    # "What should be increased?": a lone verb form and no noun.
    if (
        len(own) == 1
        and _VERB_ENDING.search(own[0])
        and re.match(rf"^(?:{_ASKS})\b.*\b(?:be|been|being|{_HELPERS})\b", text)
    ):
        return f"only {own[0]!r} says what it is about"
    return None


def _has_name(question: str) -> bool:
    return bool(re.search(r"(?<!^)(?<![.?!] )\b[A-Z][a-z]+|\d", question.strip()[1:]))
