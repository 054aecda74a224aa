"""Comparing a free answer with the accepted ones: exact match and token F1, normalised as for SQuAD."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from optimsyn.data.language.segment import answer_tokens

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, no English articles, single spaces (Rajpurkar et al. 2016, evaluation script).

    Two differences: punctuation is Unicode's rather than ASCII's, and articles stay if nothing else is left (the answer
    "A" names a vitamin or a choice).
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    bare = "".join(char for char in folded if not unicodedata.category(char).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", bare).split()) or " ".join(bare.split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the accepted answers after normalisation.

    Spaces between letters of Chinese, Japanese, Korean, Thai and the like do not count: their writers set them freely.
    """
    predicted = _tokens(prediction)
    return any(predicted == _tokens(answer) for answer in answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Largest harmonic mean, over the accepted answers, of precision and recall of the prediction's tokens.

    A token is a word; in Chinese, Japanese, Korean, Thai and the like a letter, as for CMRC, DRCD and KorQuAD.
    """
    return max((_token_f1(prediction, answer) for answer in answers), default=0.0)


def _token_f1(prediction: str, answer: str) -> float:
    predicted, wanted = _tokens(prediction), _tokens(answer)
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = (Counter(predicted) & Counter(wanted)).total()
    return 2 * common / (len(predicted) + len(wanted))


def _tokens(text: str) -> list[str]:
    return answer_tokens(normalize_answer(text))
